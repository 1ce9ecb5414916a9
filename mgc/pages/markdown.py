"""What all Markdown files share: tables, and texts of others that stay texts."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def plain(value: object) -> str:
    """Return a user's text with no tag, link, column or line of its own.

    Parameters
    ----------
    value
        A genre, a licence, a path or the like.
    """
    return re.sub(r"([\\`*\[\]|$~])", r"\\\1", html.escape(" ".join(str(value).split()), quote=False))


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table; columns of whole numbers are aligned to the right.

    Parameters
    ----------
    head
        Names of the columns.
    rows
        Cells of each row, in Markdown.
    """
    cells = [tuple(row) for row in rows]
    numbers = [bool(cells) and all(isinstance(row[place], int) for row in cells) for place in range(len(head))]
    lines = (head, ["---:" if number else "---" for number in numbers], *cells)
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
