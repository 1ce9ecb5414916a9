"""Audit a collection before anything is computed from it: counts, missing files, leaking artists, identical files."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

from mgc.collection.licences import UNKNOWN
from mgc.collection.missing import nothing_there
from mgc.collection.splits import SPLITS, Leak, artist_leaks, gaps, leak_message
from mgc.collection.tracks import read_tracks
from mgc.core.errors import InputError, MgcError
from mgc.core.results import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable
    from pathlib import Path

    from mgc.core.storage import Folder

_MIDDLE_BYTES = 64 << 10
_SHOWN = 5


class Duplicates(TypedDict):
    """Files that are the same to the byte."""

    paths: list[str]
    """Two or more, sorted."""
    splits: list[str]
    """Those that the files are in."""


@dataclass(frozen=True)
class AuditReport(Result):
    """What an audit found in a collection."""

    clips: int
    """Rows of the tracks table."""
    by_split: dict[str, int]
    """Clips of each split."""
    by_genre: dict[str, int]
    """Clips of each genre."""
    by_genre_and_split: dict[str, dict[str, int]]
    """Clips of each genre in each split."""
    missing: list[str]
    """Paths at which there is no file."""
    artist_leaks: list[Leak]
    """Artists in more than one split, as ``splits.artist_leaks`` lists them."""
    duplicate_clips: list[Duplicates]
    """Groups of identical files."""
    left_out: dict[str, int]
    """Rows or files of the source that are not in the tracks table, by reason."""
    notes: tuple[str, ...] = ()
    """How the source was read, where that is not plain."""
    gaps: tuple[str, ...] = ()
    """A line for each split that lacks genres."""
    by_license: dict[str, int] = field(default_factory=dict)
    """Clips of each licence, the most frequent first."""
    nothing_there: str | None = None
    """Where all files are missing, what was tried and the likely cause."""

    @property
    def ok(self) -> bool:
        """Whether files are there, and no artist is in two splits."""
        return not self.artist_leaks and not self.nothing_there

    def to_dict(self) -> dict[str, Any]:
        """The fields and ``ok``."""
        return asdict(self) | {"ok": self.ok}

    def problem(self) -> MgcError | None:
        """An InputError where no file is there, or that names the artists in more than one split."""
        leaks = leak_message(self.artist_leaks) if self.artist_leaks else None
        return None if self.ok else InputError("; ".join(filter(None, (self.nothing_there, leaks))))

    def __str__(self) -> str:
        """A table of the clips by genre and split, and a line for each finding."""
        lines = [*self.notes, *self._counts(), *self._left_out(), *self._licences(), *self._missing()]
        return "\n".join([*lines, *self._duplicates(), *self._leaks()])

    def _counts(self) -> list[str]:
        rows: list[tuple[Any, ...]] = [
            (genre, *by_split.values()) for genre, by_split in self.by_genre_and_split.items()
        ]
        rows.append(("all", *self.by_split.values()))
        wide = max(len("genre"), *(len(row[0]) for row in rows))

        def line(name: str, cells: Iterable[object]) -> str:
            return f"{name:<{wide}}" + "".join(f"  {cell:>10}" for cell in cells)

        lines = [line("genre", (*SPLITS, "all")), *(line(row[0], (*row[1:], sum(row[1:]))) for row in rows)]
        return [*lines, *(f"WARNING: {gap}" for gap in self.gaps)]

    def _left_out(self) -> list[str]:
        counts = [f"{count} {reason.replace('_', ' ')}" for reason, count in self.left_out.items() if count]
        return [f"left out: {', '.join(counts)}"] if counts else []

    def _licences(self) -> list[str]:
        known = self.by_license.keys() - {UNKNOWN}
        return ["licences:", *_first([f"{count} {text}" for text, count in self.by_license.items()])] if known else []

    def _missing(self) -> list[str]:
        return [f"missing files: {len(self.missing)} of {self.clips} clips", *_first(self.missing)]

    def _duplicates(self) -> list[str]:
        groups = self.duplicate_clips
        across = [group for group in groups if len(group["splits"]) > 1]
        lines = [f"duplicates: {len(groups)} groups of identical files"]
        lines += _first([" = ".join(group["paths"]) for group in groups if group not in across])
        if across:
            lines.append(f"WARNING: {len(across)} of these groups span splits, one recording is in two of them:")
            lines += _first([f"{' = '.join(group['paths'])}  ({', '.join(group['splits'])})" for group in across])
        return lines

    def _leaks(self) -> list[str]:
        leaks = self.artist_leaks
        return [f"LEAK: {leak_message(leaks)}" if leaks else "artists: none is in more than one split"]


def audit(root: str | Path, *, subset: str = "small", allow_outside: bool = False) -> AuditReport:
    """Audit the collection at ``root``.

    Parameters
    ----------
    root
        An FMA folder, a folder with a folder per genre, or a CSV file, by path or URI, as ``read_tracks`` takes it.
    subset
        Of an FMA folder: ``small``, ``medium`` or ``large``.
    allow_outside
        Of a CSV file: take paths that lead out of its folder, too.

    Returns
    -------
    AuditReport
        Counts and findings; ``ok`` is false where no file is there or an artist is in two splits.

    Raises
    ------
    InputError
        ``root`` cannot be read as a collection.
    StoreError, RunError
        The object store, or the disk, does not answer.

    Examples
    --------
    >>> report = audit("fma")  # doctest: +SKIP
    >>> report.clips, report.ok  # doctest: +SKIP
    (8000, True)
    """
    tracks = read_tracks(root, subset=subset, allow_outside=allow_outside)
    splits, genres = tracks.table["split"].to_pylist(), tracks.table["genre"].to_pylist()
    cells = Counter(zip(genres, splits, strict=True))
    paths = tracks.table["path"].to_pylist()
    sizes = dict(zip(paths, tracks.audio_root.sizes(paths), strict=True))
    there = {path: size for path, size in sizes.items() if size >= 0}
    split_of = dict(zip(paths, splits, strict=True))
    return AuditReport(
        clips=tracks.table.num_rows,
        by_split={split: splits.count(split) for split in SPLITS},
        by_genre={genre: genres.count(genre) for genre in tracks.genres},
        by_genre_and_split={genre: {split: cells[genre, split] for split in SPLITS} for genre in tracks.genres},
        missing=[path for path in paths if path not in there],
        artist_leaks=artist_leaks(tracks.table),
        duplicate_clips=[
            {"paths": paths, "splits": [split for split in SPLITS if split in {split_of[path] for path in paths}]}
            for paths in _duplicates(tracks.audio_root, there)
        ],
        left_out=tracks.left_out,
        notes=tracks.notes,
        gaps=tuple(gaps(tracks.table, tracks.genres)),
        by_license=dict(Counter(tracks.table["license"].to_pylist()).most_common()),
        nothing_there=nothing_there(tracks.audio_root, paths) if max(sizes.values(), default=0) < 0 else None,
    )


def _duplicates(audio_root: Folder, sizes: dict[str, int]) -> list[list[str]]:
    """Groups of identical files; a whole file is read only where size and middle agree."""

    def middle(path: str) -> bytes | None:
        return _sha1(audio_root, path, max(0, (sizes[path] - _MIDDLE_BYTES) // 2), _MIDDLE_BYTES)

    def whole(path: str) -> bytes | None:
        return _sha1(audio_root, path)

    groups = _alike((path for path, size in sizes.items() if size), lambda path: sizes[path])
    for key in (middle, whole):
        groups = [finer for group in groups for finer in _alike(group, key)]
    return sorted(sorted(group) for group in groups)


def _alike(paths: Iterable[str], key: Callable[[str], Hashable | None]) -> list[list[str]]:
    """Groups of two and more paths of the same key; a path whose key is None is in none."""
    groups: defaultdict[Hashable, list[str]] = defaultdict(list)
    for path in paths:
        if (value := key(path)) is not None:
            groups[value].append(path)
    return [group for group in groups.values() if len(group) > 1]


def _sha1(folder: Folder, path: str, offset: int = 0, size: int | None = None) -> bytes | None:
    """Hash of a file or of ``size`` bytes of it; None where it cannot be read (its quarantine will say why)."""
    try:
        with folder.open(path) as handle:
            if size is None:
                return hashlib.file_digest(handle, "sha1").digest()
            handle.seek(offset)
            return hashlib.sha1(handle.read(size), usedforsecurity=False).digest()
    except OSError:
        return None


def _first(items: list[str]) -> list[str]:
    more = [f"  … and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
    return [f"  {item}" for item in items[:_SHOWN]] + more
