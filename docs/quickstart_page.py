"""A hook of mkdocs: the cells of ``docs/quickstart.py`` become part of the page «Quickstart»."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

MARK = "<!-- cells of quickstart.py -->"
CELL = re.compile(r"^# %%(?P<kind> \[markdown\])?.*\n", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the cells in the place of the mark: markdown as text, code as blocks of code."""
    if MARK not in markdown:
        return markdown
    _before, *pieces = CELL.split(Path(__file__).with_name("quickstart.py").read_text())
    cells = [
        re.sub("^# ?", "", text, flags=re.MULTILINE) if kind else f"```python\n{text.strip()}\n```\n"
        for kind, text in zip(pieces[::2], pieces[1::2], strict=True)
    ]
    return markdown.replace(MARK, "\n".join(cells))
