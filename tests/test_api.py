"""The Python API: every public name is there, light until it is used, and documented parameter by parameter."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mgc

PACKAGE = Path(mgc.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("name", mgc.__all__)
def test_a_public_name_is_there(name):
    assert getattr(mgc, name) is not None
    assert name in dir(mgc)


def test_the_stub_names_what_the_package_has():
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text())
    where = {
        alias.asname or alias.name: f"{node.module}:{alias.name}".removeprefix("mgc.")
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert where == mgc._NAMES
    (names,) = (node.value for node in tree.body if isinstance(node, ast.Assign))
    assert set(ast.literal_eval(names)) == set(mgc.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_thing"):
        mgc.no_such_thing  # noqa: B018


def test_a_name_loads_no_more_than_it_needs():
    code = "import sys, mgc; mgc.PRESETS; mgc.audit; print('torch' in sys.modules, 'mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


# Docstrings

RAY_S = {"Callback", "Searcher", "Stopper", "TrialScheduler", "FIFOScheduler"}
"""Base classes whose methods are called by Ray Tune, which documents them."""


def name_of(base):
    """The last part of a base class's name."""
    return ast.unparse(base).rpartition(".")[2]


def public_functions(tree):
    """Public functions of a module, and public methods of its public classes, with their qualified names."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node, False
        if (
            isinstance(node, ast.ClassDef)
            and not node.name.startswith("_")
            and not RAY_S & set(map(name_of, node.bases))
        ):
            for each in node.body:
                if isinstance(each, ast.FunctionDef) and not each.name.startswith("_"):
                    static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in each.decorator_list)
                    yield f"{node.name}.{each.name}", each, not static


def undocumented(node, method):
    """Parameters that the docstring's section of parameters does not name."""
    arguments = node.args
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args)][method:]
    names += [each.arg for each in arguments.kwonlyargs]
    names += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    names += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    names = [name for name in names if not name.lstrip("*").startswith("_")]
    text = ast.get_docstring(node) or ""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[\w ]*\n-+\n|\Z)", text, re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^(\*{0,2}\w[^\n]*)$", section[1], re.MULTILINE) if section else []
    documented = {name.strip() for heading in headings for name in heading.partition(" : ")[0].split(",")}
    missing = [name for name in names if name not in documented]
    return [] if text and len(names) == 1 and not section else missing  # a summary can say what one parameter is


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_every_parameter_of_a_public_function_is_documented(file):
    tree = ast.parse(file.read_text())
    missing = {
        name: lacking for name, node, method in public_functions(tree) if (lacking := undocumented(node, method))
    }
    assert missing == {}


def test_a_parameter_that_is_not_documented_is_found():
    code = """
def area(width, height):
    \'\'\'Return the area.

    Parameters
    ----------
    width
        In metres.
    \'\'\'
"""
    ((_, node, method),) = public_functions(ast.parse(code))
    assert undocumented(node, method) == ["height"]
