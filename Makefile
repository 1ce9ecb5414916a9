# For a fresh machine with Python 3.11+ and make: `make demo`, `make test`, `make docs` for the site, `make wheel` for
# what a package index takes (`make wheel CONSTRAINTS=` tries it with the newest releases of what it needs).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CONSTRAINTS ?= constraints.txt

.PHONY: demo test docs wheel lint format clean

demo: $(READY)
	$(BIN)/mgc demo --out demo

test: lint
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo 'Look at site/index.html'

wheel: $(READY)
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m build --wheel --outdir dist/from_the_tree
	cmp dist/*.whl dist/from_the_tree/*.whl
	rm -r dist/from_the_tree
	$(BIN)/twine check --strict dist/*
	$(BIN)/python .ci/check_wheel.py dist $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "mgc needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) demo site dist
