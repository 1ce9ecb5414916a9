"""Look a data set over before anything is computed from it: counts, missing files, leaking artists, duplicates.

An artist in two splits lets a model score by recognising the artist; on FMA that is worth about 13 points.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from mgc.collection.splits import SPLITS, artist_leaks, leak_message
from mgc.collection.tracks import read

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable
    from pathlib import Path

    from mgc.collection.tracks import Tracks
    from mgc.core.storage import Folder

_MIDDLE_BYTES = 64 << 10
_SHOWN = 5


def audit(root: str | Path, *, subset: str = "small") -> dict[str, Any]:
    """Audit the data set at ``root``.

    Parameters
    ----------
    root
        As ``mgc.collection.tracks.read`` takes it.
    subset
        Which of FMA's subsets.

    Returns
    -------
    dict
        Fit for JSON: ``clips`` (rows of the tracks table), ``by_split`` ``{split: clips}``, ``by_genre``
        ``{genre: clips}``, ``by_genre_and_split`` ``{genre: {split: clips}}``, ``missing`` (paths), ``artist_leaks``
        (see `artist_leaks`), ``duplicate_clips`` (``{"paths", "splits"}`` for each set of files that
        are the same to the byte, ``splits`` being those they are in), ``left_out`` ``{reason: count}``, and ``ok``:
        no artist is in two splits.

    Raises
    ------
    InputError
        ``root`` cannot be read as a data set.
    """
    tracks = read(root, subset=subset)
    splits, genres = tracks.table["split"].to_pylist(), tracks.table["genre"].to_pylist()
    cells = Counter(zip(genres, splits, strict=True))
    sizes, missing = _file_sizes(tracks)
    split_of = dict(zip(tracks.table["path"].to_pylist(), splits, strict=True))
    leaks = artist_leaks(tracks.table)
    return {
        "clips": tracks.table.num_rows,
        "by_split": {split: splits.count(split) for split in SPLITS},
        "by_genre": {genre: genres.count(genre) for genre in tracks.genres},
        "by_genre_and_split": {genre: {split: cells[genre, split] for split in SPLITS} for genre in tracks.genres},
        "missing": missing,
        "artist_leaks": leaks,
        "duplicate_clips": [
            {"paths": paths, "splits": [split for split in SPLITS if split in {split_of[path] for path in paths}]}
            for paths in _duplicates(tracks.audio_root, sizes)
        ],
        "left_out": tracks.left_out,
        "ok": not leaks,
    }


def _file_sizes(tracks: Tracks) -> tuple[dict[str, int], list[str]]:
    """Sizes in bytes by path; and the paths where nothing is."""
    paths = tracks.table["path"].to_pylist()
    sizes = dict(zip(paths, tracks.audio_root.sizes(paths), strict=True))
    return {path: size for path, size in sizes.items() if size >= 0}, [path for path in paths if sizes[path] < 0]


def _duplicates(audio_root: Folder, sizes: dict[str, int]) -> list[list[str]]:
    """Groups of files that are the same to the byte; a whole file is read only where size and middle agree."""

    def middle(path: str) -> bytes | None:
        return _sha1(audio_root, path, max(0, (sizes[path] - _MIDDLE_BYTES) // 2), _MIDDLE_BYTES)

    def whole(path: str) -> bytes | None:
        return _sha1(audio_root, path)

    groups = _alike((path for path, size in sizes.items() if size), lambda path: sizes[path])
    for key in (middle, whole):
        groups = [finer for group in groups for finer in _alike(group, key)]
    return sorted(sorted(group) for group in groups)


def _alike(paths: Iterable[str], key: Callable[[str], Hashable | None]) -> list[list[str]]:
    """Groups of two and more paths of the same key; a path whose key is None is like no other."""
    groups: defaultdict[Hashable, list[str]] = defaultdict(list)
    for path in paths:
        if (value := key(path)) is not None:
            groups[value].append(path)
    return [group for group in groups.values() if len(group) > 1]


def _sha1(folder: Folder, path: str, offset: int = 0, size: int | None = None) -> bytes | None:
    """Hash of a file or of ``size`` bytes of it; None where it cannot be read (preprocessing says why)."""
    try:
        with folder.open(path) as handle:
            if size is None:
                return hashlib.file_digest(handle, "sha1").digest()
            handle.seek(offset)
            return hashlib.sha1(handle.read(size), usedforsecurity=False).digest()
    except OSError:
        return None


def summary(report: dict[str, Any]) -> str:
    """Say what an audit found, for a terminal."""
    sections = [_counts(report), _left_out(report), _missing(report), _repeats(report), _leaks(report)]
    return "\n".join(line for lines in sections for line in lines)


def _counts(report: dict[str, Any]) -> list[str]:
    rows = [(genre, *by_split.values()) for genre, by_split in report["by_genre_and_split"].items()]
    rows.append(("all", *report["by_split"].values()))
    wide = max(len("genre"), *(len(row[0]) for row in rows))

    def line(name: str, cells: Iterable[object]) -> str:
        return f"{name:<{wide}}" + "".join(f"  {cell:>10}" for cell in cells)

    return [line("genre", (*SPLITS, "all")), *(line(row[0], (*row[1:], sum(row[1:]))) for row in rows)]


def _left_out(report: dict[str, Any]) -> list[str]:
    counts = [f"{count} {reason.replace('_', ' ')}" for reason, count in report["left_out"].items() if count]
    return [f"left out: {', '.join(counts)}"] if counts else []


def _missing(report: dict[str, Any]) -> list[str]:
    paths = report["missing"]
    return [f"missing files: {len(paths)} of {report['clips']} clips", *_first(paths)]


def _repeats(report: dict[str, Any]) -> list[str]:
    groups = report["duplicate_clips"]
    across = [group for group in groups if len(group["splits"]) > 1]
    lines = [f"duplicates: {len(groups)} groups of identical files"]
    lines += _first([" = ".join(group["paths"]) for group in groups if group not in across])
    if across:
        lines.append(f"WARNING: {len(across)} of these groups span splits, one recording is in two of them:")
        lines += _first([f"{' = '.join(group['paths'])}  ({', '.join(group['splits'])})" for group in across])
    return lines


def _leaks(report: dict[str, Any]) -> list[str]:
    leaks = report["artist_leaks"]
    return [f"LEAK: {leak_message(leaks)}" if leaks else "artists: none is in more than one split"]


def _first(items: list[str]) -> list[str]:
    more = [f"  … and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
    return [f"  {item}" for item in items[:_SHOWN]] + more
