"""Reading a folder per genre (GTZAN's layout): ``ROOT/blues/blues.00000.wav``."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from mgc.core.errors import InputError

if TYPE_CHECKING:
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


def read_genre_folders(root: Folder, kinds: str) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Read the clips of a folder per genre.

    Parameters
    ----------
    root
        The folder that holds the genres' folders.
    kinds
        Ends a message: what a root may be.

    Returns
    -------
    rows
        ``path`` relative to ``root``, and ``genre``, of each clip.
    left_out
        How many files are ``not_audio``, are audio that has ``no_decoder``, or lie in no genre's folder (``no_genre``).

    Raises
    ------
    InputError
        There are no two genres.
    StoreError, RunError
        The object store, or the disk, does not answer.
    """
    clips: list[tuple[str, str]] = []  # path, genre
    left_out = {"no_genre": 0, "not_audio": 0}
    undecoded: list[str] = []
    for path in root.walk():
        genre, _, inside = path.partition("/")
        suffix = os.path.splitext(path)[1].lower()
        if suffix in OTHER_AUDIO:
            undecoded.append(suffix)
        elif suffix not in AUDIO_SUFFIXES:
            left_out["not_audio"] += 1
        elif not inside:
            left_out["no_genre"] += 1
        else:
            clips.append((path, genre))
    if clips and all(re.fullmatch(r"(\d{3})/\1\d{3}\.mp3", path) for path, _ in clips):
        raise InputError(
            f"{root}: looks like the inside of fma_small, its folders are no genres; "
            "give the folder above, which also holds fma_metadata/tracks.csv"
        )
    if len(genres := {genre for _, genre in clips}) < 2:
        found = f"audio in one folder only ({genres.pop()})" if genres else "no folder with audio in it"
        if undecoded:
            found += f"; mgc has no decoder for {', '.join(sorted({*undecoded}))}, convert these files to FLAC or MP3"
        raise InputError(f"{root}: no fma_metadata/tracks.csv, and {found}; {kinds}")
    if undecoded:
        left_out["no_decoder"] = len(undecoded)
    return [{"path": path, "genre": genre} for path, genre in clips], left_out
