"""Names as people and disks spell them: which are the same, and which spelling counts.

Unicode has two forms of an «É», one character or two. Tables mostly hold the first, the disks of a Mac the second.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mgc.core.storage import Folder


def same_name(name: str) -> str:
    """A name in its normal form: NFC, lower case, single spaces."""
    return " ".join(composed(name).casefold().split())


def composed(text: str) -> str:
    """A text with each accented letter as one character (NFC)."""
    return unicodedata.normalize("NFC", text)


def one_spelling(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Give names that are the same one spelling.

    Parameters
    ----------
    names : sequence of str [length=n]
        The genre of each clip.

    Returns
    -------
    spelt : list of str [length=n]
        The most frequent spelling of each name, the first of them in alphabetical order; composed, with single spaces.
    merged : list of str
        A line, for a person, for each name that was spelt in several ways.
    """
    spellings: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for name, count in sorted(Counter(names).items()):
        spellings[same_name(name)][name] += count
    chosen = {key: " ".join(composed(found.most_common(1)[0][0]).split()) for key, found in spellings.items()}
    merged = [
        f"one genre, {chosen[key]}: " + ", ".join(f"{_shown(name)} × {count}" for name, count in found.items())
        for key, found in sorted(spellings.items(), key=lambda item: chosen[item[0]])
        if len(found) > 1
    ]
    return [chosen[same_name(name)] for name in names], merged


def as_on_disk(folder: Folder, paths: Sequence[str]) -> list[str]:
    """Paths as their files are named, where names on the disk are decomposed and in the table composed, or reversed.

    Parameters
    ----------
    folder
        The folder that the paths are relative to.
    paths : sequence of str [length=n]
        As a table has them.

    Returns
    -------
    list of str [length=n]
        A path at which there is a file, and one at which there is none in either form, stays as it is.

    Raises
    ------
    StoreError, RunError
        The object store, or the disk, does not answer.
    """
    found: dict[str, str] = {}

    def missing() -> list[str]:
        return [path for path in paths if not path.isascii() and path not in found]

    for form in (None, "NFC", "NFD"):
        tried = {path: unicodedata.normalize(form, path) if form else path for path in missing()}
        sizes = folder.sizes(tried.values())
        found |= {path: there for (path, there), size in zip(tried.items(), sizes, strict=True) if size >= 0}
    if missing():  # perhaps in a mixture of forms
        there = {composed(path): path for path in folder.walk()}
        found |= {path: there[composed(path)] for path in missing() if composed(path) in there}
    return [found.get(path, path) for path in paths]


def _shown(name: str) -> str:
    return f"'{name}'" + (" with decomposed letters" if composed(name) != name else "")
