"""The command ``mgc playlists``: an M3U8 file a genre, of what a label set says of a library."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mgc.core.atomic_files import write_text
from mgc.core.errors import InputError, path_error
from mgc.core.results import Result
from mgc.core.storage import URI
from mgc.library.labels import Labels

if TYPE_CHECKING:
    from collections.abc import Iterable

HEAD = "#EXTM3U\n#mgc"
"""First lines of a playlist: the second, a comment to players, says that mgc may replace it."""
COLUMNS = ["path", "seconds", "genre", "confidence", "unsure"]


@dataclass(frozen=True)
class Playlists(Result):
    """The playlists that were written."""

    out: str
    files: dict[str, int]
    """Tracks by playlist."""
    unsure: int
    """Tracks that are in no playlist, because the model is unsure of them."""
    gone: int
    """Tracks that are in none, because their file is not there any more, or has a name with a line break."""

    def __str__(self) -> str:
        width = max(map(len, self.files), default=0)
        lines = [f"{name:<{width}}  {count} tracks" for name, count in self.files.items()]
        left = f"in no playlist: {self.unsure} unsure" + f", {self.gone} gone" * bool(self.gone)
        return "\n".join([*lines, left, f"playlists: {self.out}"])


def playlists(labels: str | Path | Labels, out: str | Path, *, unsure: bool = False) -> Playlists:
    """Write a playlist a genre: its tracks, the most confident first.

    Parameters
    ----------
    labels
        A finished label set, or where it is.
    out
        Folder of the playlists, on a disk; those that mgc wrote there before are replaced, and no others. Paths in
        them are relative to it, so that library and playlists can be moved together.
    unsure
        Take tracks that the model is unsure of, too.

    Returns
    -------
    Playlists
        Tracks by playlist.

    Raises
    ------
    InputError
        There is no label set, its library is in an object store, or ``out`` cannot be written or has a playlist of such
        a name that mgc did not write.

    Examples
    --------
    >>> playlists("labels", "Music/playlists").files["Folk.m3u8"]  # doctest: +SKIP
    31
    """
    found = labels if isinstance(labels, Labels) else Labels.open(labels)
    root = Path(found.manifest.root)
    if URI.match(found.manifest.root):
        raise InputError(f"`labels={found.folder}`: its library {root} is in an object store, which no player opens")
    target = Path(out).expanduser().absolute()
    rows = sorted(found.table(COLUMNS).to_pylist(), key=lambda row: (-row["confidence"], row["path"]))
    sure = [row for row in rows if unsure or not row["unsure"]]
    there = [row for row in sure if _one_line(row["path"]) and (root / row["path"]).is_file()]
    names = _names(found.manifest.settings.genres)
    files: dict[str, int] = {}
    try:
        target.mkdir(parents=True, exist_ok=True)
        if foreign := [name for name in names.values() if (target / name).exists() and not _is_ours(target / name)]:
            raise InputError(f"`out={target}`: {foreign[0]} is not a playlist of mgc; choose another folder")
        for genre, name in names.items():
            if its := [row for row in there if row["genre"] == genre]:
                write_text("\n".join(_lines(genre, its, root, target)) + "\n", target / name)
                files[name] = len(its)
            else:
                (target / name).unlink(missing_ok=True)
    except OSError as error:
        raise path_error(f"`out={target}`: cannot be written ({error.strerror or error})", error) from None
    return Playlists(str(target), files, len(rows) - len(sure), len(sure) - len(there))


def _names(genres: Iterable[str]) -> dict[str, str]:
    """The file of each genre; no two are one on a disk that takes capitals for small letters."""
    names: dict[str, str] = {}
    for genre in genres:
        name = f"{file_name(genre)}.m3u8"
        while name.casefold() in map(str.casefold, names.values()):
            name = f"_{name}"
        names[genre] = name
    return names


def _is_ours(file: Path) -> bool:
    return file.read_bytes().startswith(f"{HEAD}\n".encode())


def _lines(genre: str, rows: Iterable[dict[str, object]], root: Path, target: Path) -> Iterable[str]:
    yield HEAD
    yield f"#PLAYLIST:{' '.join(genre.split())}"
    for row in rows:
        path = os.path.relpath(os.path.realpath(root / str(row["path"])), os.path.realpath(target))
        yield f"#EXTINF:{round(float(str(row['seconds'])))},{Path(path).stem}"
        yield path if not path.startswith("#") else f"./{path}"


def _one_line(text: str) -> bool:
    """Whether a text can be a line of a playlist."""
    return len(text.splitlines()) == 1


def file_name(genre: str) -> str:
    """The name of a genre as a file's on any disk: without characters that one of them refuses.

    Parameters
    ----------
    genre
        The genre.
    """
    return re.sub(r'[\x00-\x1f<>:"/\\|?*]+', "_", genre).strip(". ") or "_"
