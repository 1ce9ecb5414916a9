"""Where none of a collection's files is: what was tried, and the likely cause."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mgc.core.storage import Folder

LOOKED_AT = 100
"""The most missing files whose names are looked for elsewhere."""


def nothing_there(root: Folder, paths: Sequence[str], sizes: Sequence[int]) -> str | None:
    """Say why none of a collection's files is there.

    Parameters
    ----------
    root
        The folder that the paths are relative to.
    paths
        Of the tracks table.
    sizes
        Bytes of each file; -1 where there is none.

    Returns
    -------
    str or None
        A line for a person: what was tried, and the likely cause; None where at least one file is there.

    Raises
    ------
    StoreError, RunError
        The object store, or the disk, does not answer.
    """
    if not paths or max(sizes) >= 0:
        return None
    path, cause = _cause(root, paths)
    tried = path if path.startswith("/") else f"{root}/{path}"
    return f"{root}: none of the {len(paths)} files is there; tried {tried}; {cause}"


def _cause(root: Folder, paths: Sequence[str]) -> tuple[str, str]:
    """The path that shows it best, and the likely cause."""
    for path in paths:
        if re.match(r"[A-Za-z]:[\\/]|\\\\", path):
            return path, "drives are another computer's: write paths relative to the CSV file's folder, with /"
        if "\\" in path:
            return path, "the table separates folders by \\: write / in its place"
    there = {path.rpartition("/")[2].casefold(): path for path in root.walk()}
    for path in paths[:LOOKED_AT]:
        if other := there.get(path.rpartition("/")[2].casefold()):
            return path, f"there is {root}/{other}: move the files to where the table says, or correct the table"
    if paths[0].startswith("/"):
        return paths[0], "absolute paths may be another computer's: write them relative to the CSV file's folder"
    return paths[0], f"no file of such a name is below {root}: are the clips unpacked there?"
