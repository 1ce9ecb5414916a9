"""Reading a folder per genre (GTZAN's layout): ``ROOT/blues/blues.00000.wav``.

Folders named like splits are read as splits: ``ROOT/train/blues/1.wav``, or ``ROOT/blues/train/1.wav``.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from mgc.collection.splits import SPLIT_WORDS
from mgc.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from mgc.core.storage import Folder

AUDIO_SUFFIXES = frozenset(
    {".mp3", ".mp2", ".wav", ".flac", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc"}
    | {".au", ".snd", ".caf", ".w64", ".rf64"}
)
"""Endings of the formats that the decoder (libsndfile) reads; a test decodes one of each."""
OTHER_AUDIO = frozenset(
    {".m4a", ".m4b", ".mp4", ".aac", ".wma", ".ape", ".wv", ".mpc", ".mka", ".webm", ".amr", ".dsf"}
)
"""Endings of formats of music that it does not read."""
_UNCLEAR = "rename or move folders, so that all are splits or all are genres"


def read_genre_folders(root: Folder, kinds: str) -> tuple[list[dict[str, Any]], dict[str, int], list[str]]:
    """Read the clips of a folder per genre.

    Parameters
    ----------
    root
        The folder that holds the genres' folders, or the splits' folders, which then hold those.
    kinds
        Ends a message: what a root may be.

    Returns
    -------
    rows
        ``path`` relative to ``root``, ``genre``, and, where folders say so, ``split`` of each clip.
    left_out
        How many files are ``not_audio``, are audio that has ``no_decoder``, or lie in no genre's folder (``no_genre``).
    notes
        What a person should know of how the folders were read.

    Raises
    ------
    InputError
        There are no two genres, or it is not clear which folders are splits and which are genres.
    StoreError, RunError
        The object store, or the disk, does not answer.
    """
    clips: list[str] = []
    left_out = {"no_genre": 0, "not_audio": 0}
    undecoded: list[str] = []
    for path in root.walk():
        suffix = os.path.splitext(path)[1].lower()
        if suffix in OTHER_AUDIO:
            undecoded.append(suffix)
        elif suffix not in AUDIO_SUFFIXES:
            left_out["not_audio"] += 1
        elif "/" not in path:
            left_out["no_genre"] += 1
        else:
            clips.append(path)
    if undecoded:
        left_out["no_decoder"] = len(undecoded)
    if clips and all(re.fullmatch(r"(\d{3})/\1\d{3}\.mp3", path) for path in clips):
        raise InputError(
            f"{root}: looks like the inside of fma_small, its folders are no genres; "
            "give the folder above, which also holds fma_metadata/tracks.csv"
        )
    rows, notes = _rows(root, clips)
    left_out["no_genre"] += len(clips) - len(rows)
    if len(genres := {row["genre"] for row in rows}) < 2:
        found = f"audio in one folder only ({genres.pop()})" if genres else "no folder with audio in it"
        if undecoded:
            found += f"; mgc has no decoder for {', '.join(sorted({*undecoded}))}, convert these files to FLAC or MP3"
        raise InputError(f"{root}: no fma_metadata/tracks.csv, and {found}; {kinds}")
    return rows, left_out, notes


def without_decoder(paths: Iterable[str]) -> list[str]:
    """A line, for a person, for each format among the paths of a table that is not decoded."""
    counts = Counter(os.path.splitext(path)[1].lower() for path in paths)
    return [
        f"{count} clips end in {suffix}, for which mgc has no decoder: convert them to FLAC or MP3"
        for suffix, count in sorted(counts.items())
        if suffix in OTHER_AUDIO
    ]


def _rows(root: Folder, clips: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of those clips that have a genre, and how the folders were read."""
    parts = [path.split("/") for path in clips]
    outer, inner = {each[0] for each in parts}, {each[1] for each in parts if len(each) > 2}
    words, inner_words = _splits(outer), _splits(inner)
    if words:
        _check(root, outer, inner, words)
        genre_at, split_at = 1, 0
    elif len(set(inner_words.values())) > 1:
        words = inner_words
        if inner > words.keys() or any(len(each) < 3 for each in parts):
            raise InputError(f"{root}: some genres have folders named {_named(words)}, others have not; {_UNCLEAR}")
        genre_at, split_at = 0, 1
    else:
        return [{"path": path, "genre": each[0]} for path, each in zip(clips, parts, strict=True)], []
    rows = [
        {"path": path, "genre": each[genre_at], "split": words[each[split_at]]}
        for path, each in zip(clips, parts, strict=True)
        if len(each) > 2
    ]
    where = "the folders in them" if genre_at else "the folders around them"
    return rows, [f"{root}: {_named(words)} are read as splits, {where} as genres"]


def _check(root: Folder, outer: set[str], inner: set[str], words: dict[str, str]) -> None:
    """Refuse folders of which some are named like splits, and which are not clearly that."""
    if others := outer - words.keys():
        raise InputError(f"{root}: {_named(words)} is named like a split, {_named(others)} is not; {_UNCLEAR}")
    if len(words) == 1:
        (name,) = words
        raise InputError(
            f"{root}: audio in one folder only ({name}), which is named like a split; "
            f"give {root / name}, then the splits are drawn, or put the folders of the other splits beside it"
        )
    if len(set(words.values())) < len(words):
        raise InputError(f"{root}: two of {_named(words)} name the same split; join them")
    if twice := _splits(inner):
        raise InputError(f"{root}: {_named(words)} and, in them, {_named(twice)} are named like splits; {_UNCLEAR}")
    if not inner:
        raise InputError(f"{root}: {_named(words)} are named like splits, and there is no folder of a genre in them")


def _splits(names: set[str]) -> dict[str, str]:
    """The split by the names that are a split's."""
    return {name: SPLIT_WORDS[name.casefold()] for name in names if name.casefold() in SPLIT_WORDS}


def _named(names: Collection[str]) -> str:
    """A few names of folders, for a person."""
    first = sorted(names)[:5]
    return ", ".join(first) + (" …" if len(names) > len(first) else "")
