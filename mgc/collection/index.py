"""The command ``mgc index``: the checksums of a collection's files, in the form that a mirdata loader reads.

mirdata (Bittner et al., «mirdata: Software for Reproducible Usage of Datasets», ISMIR 2019) knows a data set by an
index, a JSON file that names each track's files with their MD5, so that everybody can check whether his copy is the one
that others had: ``{"version": "1.0", "tracks": {"2": {"audio": ["fma_small/000/000002.mp3", "5b5a…"]}, "metadata":
{"tracks": ["fma_metadata/tracks.csv", "9d0e…"]}}``. Paths are relative to the data set's folder. A file that the
collection names and that is not there has ``[null, null]``, as mirdata writes a track that lacks one of its files.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mgc.collection import fma
from mgc.collection.missing import nothing_there
from mgc.collection.tracks import read_tracks
from mgc.core.atomic_files import write_text
from mgc.core.errors import InputError, path_error
from mgc.core.progress import Progress
from mgc.core.results import Result

if TYPE_CHECKING:
    from mgc.core.storage import Folder

THREADS = 4
"""Files that are read at a time: hashing gives up the interpreter's lock, and a disk answers several at once."""
METADATA = tuple(
    f"fma_metadata/{name}.csv"
    for name in (
        *("tracks", "genres", "features", "echonest"),
        *("raw_albums", "raw_artists", "raw_echonest", "raw_genres", "raw_tracks"),
    )
)
"""The tables of FMA's archive of metadata; those that are there are named in the index."""
_SHOWN = 10
"""How many missing files are shown by name."""


@dataclass(frozen=True)
class Index(Result):
    """An index that was written."""

    tracks: int
    missing: tuple[str, ...]
    """Paths that the collection names and that are not there, or may not be read."""
    metadata: tuple[str, ...]
    """Files beside the clips."""
    bytes: int
    """Of all files that were read."""
    out: str

    def __str__(self) -> str:
        """Return the counts, and the first missing files."""
        lines = [f"{self.tracks} tracks, {self.bytes / 1e9:.2f} GB hashed, {self.out}"]
        if self.missing:
            lines.append(f"missing: {len(self.missing)} files, null in the index")
            lines += [f"  {path}" for path in self.missing[:_SHOWN]]
        if len(self.missing) > _SHOWN:
            lines.append(f"  … and {len(self.missing) - _SHOWN} more")
        return "\n".join(lines)


def index(
    root: str | Path, out: str | Path, *, subset: str = "small", version: str = "1.0", allow_outside: bool = False
) -> Index:
    """Write the index of a collection: each file's path and MD5.

    The same files give the same bytes. A copy can be checked with ``mirdata.core.Dataset.validate``, or with any
    program that knows MD5.

    Parameters
    ----------
    root
        An FMA folder, a folder with a folder per genre, or a CSV file, by path or URI, as ``read_tracks`` takes it.
    out
        The JSON file to write; one that is there is replaced.
    subset
        Of an FMA folder: ``small``, ``medium`` or ``large``.
    version
        The data set's version, as the index names it.
    allow_outside
        Of a CSV file: take paths that lead out of its folder, too.

    Returns
    -------
    Index
        Counts, and the missing files.

    Raises
    ------
    InputError
        ``root`` cannot be read as a collection, none of its files is there, or ``out`` cannot be written.
    StoreError, RunError
        The object store, or the disk, does not answer.

    Examples
    --------
    >>> index("fma", "fma_index.json").tracks  # doctest: +SKIP
    8000
    """
    out = Path(out)
    tracks = read_tracks(root, subset=subset, allow_outside=allow_outside)
    folder, paths = tracks.audio_root, tracks.table["path"].to_pylist()
    if not out.parent.is_dir():
        raise InputError(f"`out={out}`: {out.parent} is no folder")
    if max(folder.sizes(paths), default=-1) < 0:
        raise InputError(nothing_there(folder, paths))
    beside = [path for path in METADATA if folder.kind(path) == "file"] if fma.is_fma(folder) else []
    wanted = [*paths, *beside]
    progress = Progress("index", len(wanted), "files")
    entries: list[list[str | None]] = []
    read = 0
    pool = ThreadPoolExecutor(THREADS)
    try:
        for path, (md5, size) in zip(wanted, pool.map(lambda path: _md5(folder, path), wanted), strict=True):
            entries.append([path if md5 else None, md5])
            read += size
            progress.advance()
    finally:
        pool.shutdown(cancel_futures=True)
    ids = map(str, tracks.table["track_id"].to_pylist())
    content = {
        "version": version,
        "tracks": {track_id: {"audio": entry} for track_id, entry in zip(ids, entries, strict=False)},
        "metadata": {Path(path).stem: entry for path, entry in zip(beside, entries[len(paths) :], strict=True)},
    }
    try:
        write_text(json.dumps(content, indent=2) + "\n", out)
    except OSError as error:
        raise path_error(f"`out={out}`: cannot be written ({error.strerror})", error) from None
    missing = tuple(path for path, (_, md5) in zip(paths, entries, strict=False) if md5 is None)
    return Index(len(paths), missing, tuple(beside), read, str(out.absolute()))


def _md5(folder: Folder, path: str) -> tuple[str | None, int]:
    """MD5 and size of a file, read in pieces; None and 0 where there is none."""
    try:
        with folder.open(path) as handle:
            digest = hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False))
            return digest.hexdigest(), handle.tell()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None, 0
    except OSError as error:
        raise path_error(f"{folder}/{path}: cannot be read ({error.strerror or error})", error) from error
