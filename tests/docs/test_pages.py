"""What the pages and the README name is there: files of the code, commands, flags."""

import re
from pathlib import Path

import pytest

from mgc.cli import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    {ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/README.md")} - {ROOT / "docs" / "log.md"}
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_a_page_names_exist(page):
    names = re.findall(r"[`(]((?:[\w-]+/)*[\w-]+\.(?:py|yaml|toml|md|svg|png))[`)]", page.read_text())
    homes = (ROOT, ROOT / "mgc", page.parent)
    made = {"contact_sheet.png", "confusion.png", "model_card.md", "space.yaml", "table.md"}
    missing = {name for name in names if not any((home / name).exists() for home in homes)} - made
    assert {name for name in missing if not name.startswith("pictures/")} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_that_a_page_gives_exist(page):
    given = set(re.findall(r"^mgc ([a-z]+)", page.read_text(), re.MULTILINE))
    assert given <= set(COMMANDS) | {"crown"}


def test_the_table_answers_twelve_questions():
    table = (ROOT / "docs" / "architecture.md").read_text().partition("## Twelve questions")[2].partition("##")[0]
    rows = re.findall(r"^\| .+\? \| (\w+) \| `([\w/.]+)`", table, re.MULTILINE)
    assert len(rows) == 12
    assert all(file.startswith(f"{room}/") for room, file in rows)
