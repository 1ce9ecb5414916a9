"""Check the wheel in ``dist/`` as a stranger meets it: its files, and the commands from an empty environment.

    python .ci/check_wheel.py dist --constraint constraints.txt

It takes some minutes, most of them for installing. Without ``--constraint`` pip chooses the newest releases.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "mgc"


def main() -> None:
    """Check the one wheel of a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dist", type=Path)
    parser.add_argument("--constraint", type=Path, help="pip's constraints file")
    arguments = parser.parse_args()
    (wheel,) = arguments.dist.glob("*.whl")
    check_files(wheel)
    with tempfile.TemporaryDirectory() as folder:
        check_commands(wheel.resolve(), arguments.constraint, Path(folder))


def check_files(wheel: Path) -> None:
    """Compare the wheel's files with the package's: templates, spaces, pages and ``py.typed`` are no Python files."""
    there = {file.relative_to(PACKAGE.parent).as_posix() for file in PACKAGE.rglob("*") if file.is_file()}
    there = {name for name in there if "__pycache__" not in name}
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    if there != packed:
        sys.exit(f"{wheel}: differs from mgc/ in {', '.join(sorted(there ^ packed))}")
    print(f"{wheel.name}: all {len(there)} files of mgc/, and nothing else")


def check_commands(wheel: Path, constraint: Path | None, folder: Path) -> None:
    """Install the wheel into a new environment in ``folder`` and go from a synthetic set to its feature set."""
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    programs = folder / "venv" / "bin"
    options = ["--constraint", constraint.resolve()] if constraint else []
    subprocess.run([programs / "pip", "install", "--quiet", *options, wheel], check=True, cwd=folder)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def mgc(*command: str) -> dict[str, object]:
        line = [programs / "mgc", *command, "--json"]
        done = subprocess.run(line, check=True, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
        answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
        return answer

    made = mgc("toy", "toy", "--clips-per-genre", "4")
    written = mgc("preprocess", "--root", "toy", "--out", "features", "--max-quarantined", "0.1")
    if (made["clips"], written["written"], written["quarantined"]) != (32, 31, 1):
        sys.exit(f"the installed mgc wrote {written} of {made}")
    print(f"{wheel.name}: installed, and made a feature set of {written['written']} clips from a synthetic collection")


if __name__ == "__main__":
    main()
