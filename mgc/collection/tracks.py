"""The tracks table: one row per clip, from FMA's metadata, from a folder per genre or from a CSV file.

``read_tracks(root)`` finds out which of the three it is:

- **FMA**: ``fma_metadata/tracks.csv`` beside ``fma_small/``; the official split. Rows stay even where the clip's file
  is absent: the audit reports it, preprocessing quarantines it.
- **A folder per genre** (GTZAN's layout): ``ROOT/blues/blues.00000.wav``; the artists are unknown, the split is drawn.
- **A CSV file**: ``path,genre[,split,artist][,title][,duration]``; paths are relative to the file's folder; without
  the column ``split`` one is drawn, with all clips of an artist in one split.

Each may be on a disk or in an object store (``s3://bucket/fma``).

The same input gives the same ids, labels and splits on any machine.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mgc.collection import fma
from mgc.collection.csv_file import KINDS, csv_rows, seconds
from mgc.collection.splits import SPLITS, draw_splits, same_name
from mgc.core.errors import InputError
from mgc.core.storage import Folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

_SPLIT_WORDS = {"train": "training", "valid": "validation", "val": "validation"} | {name: name for name in SPLITS}

SCHEMA = pa.schema(
    [
        pa.field("track_id", pa.int64(), nullable=False),
        pa.field("path", pa.string(), nullable=False),  # POSIX, relative to audio_root
        pa.field("genre", pa.string(), nullable=False),
        pa.field("label", pa.int8(), nullable=False),  # position in the sorted genres
        pa.field("split", pa.string(), nullable=False),  # one of SPLITS
        pa.field("artist_id", pa.string()),
        pa.field("artist_name", pa.string()),
        pa.field("title", pa.string()),
        pa.field("duration", pa.float64()),  # seconds, as the source says: of the whole track in FMA
    ]
)
_UNLABELLED = pa.schema([field for field in SCHEMA if field.name != "label"])
_UNSPLIT = pa.schema([field for field in _UNLABELLED if field.name != "split"])
ROWS_AT_ONCE = 1 << 12
"""Rows of a source that are Python objects at a time."""

AUDIO_SUFFIXES = frozenset({".mp3", ".wav", ".flac", ".ogg", ".au", ".m4a", ".aif", ".aiff"})
MAX_GENRES = 127  # an int8 label


@dataclass(frozen=True)
class Tracks:
    """The clips of one collection.

    Parameters
    ----------
    table
        One row per clip, sorted by ``track_id``, of the schema ``SCHEMA``.
    audio_root
        The folder that a clip's ``path`` is relative to.
    left_out
        How many rows or files of the source are not in the table, by reason.
    """

    table: pa.Table
    audio_root: Folder
    left_out: dict[str, int]

    @property
    def genres(self) -> tuple[str, ...]:
        """The genres by label: ``genres[label]`` is the genre."""
        return tuple(sorted(pc.unique(self.table["genre"]).to_pylist()))


def read_tracks(
    root: str | Path, *, subset: str = "small", seed: int = 0, known_splits: Callable[[], Mapping[str, str]] = dict
) -> Tracks:
    """Read the tracks table of a collection.

    Parameters
    ----------
    root
        An FMA folder, a folder with a folder per genre, or a CSV file, by path or URI.
    subset
        Of an FMA folder: ``small``, ``medium`` or ``large``; each includes those before it. Ignored otherwise.
    seed
        Draws the split where the collection has none.
    known_splits
        Gives the split by path of clips that have one already: where a split is drawn, these clips and all others of
        their artists keep it. It is called only there.

    Returns
    -------
    Tracks
        The table, the folder of the audio files, and counts of what is not in the table.

    Raises
    ------
    InputError
        ``root`` is none of the three, or something in it is wrong; the message says what and where.
    StoreError, RunError
        The object store, or the disk, does not answer.

    Examples
    --------
    >>> tracks = read_tracks("fma")  # doctest: +SKIP
    >>> tracks.table.num_rows, len(tracks.genres)  # doctest: +SKIP
    (8000, 8)
    """
    fma.check_subset(subset)
    folder = Folder.at(root)
    kind = folder.kind()
    if kind == "file":
        return _from_csv(*folder.parent, seed, known_splits)
    if kind is None:
        raise InputError(f"{folder}: no such file or folder; {KINDS}")
    if fma.is_fma(folder):
        rows, left_out = fma.read_fma(folder, subset)
        return _finish(_columns(rows), folder, left_out)
    return _from_folders(folder, seed, known_splits)


def _from_folders(root: Folder, seed: int, known_splits: Callable[[], Mapping[str, str]]) -> Tracks:
    clips: list[tuple[str, str]] = []  # path, genre
    left_out = {"no_genre": 0, "not_audio": 0}
    for path in root.walk():
        genre, _, inside = path.partition("/")
        if os.path.splitext(path)[1].lower() not in AUDIO_SUFFIXES:
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
        raise InputError(f"{root}: no fma_metadata/tracks.csv, and {found}; {KINDS}")
    rows = ({"track_id": path_id(path), "path": path, "genre": genre} for path, genre in clips)
    return _finish(_columns(_with_drawn_split(_table(rows, _UNSPLIT), seed, known_splits)), root, left_out)


def _from_csv(folder: Folder, name: str, seed: int, known_splits: Callable[[], Mapping[str, str]]) -> Tracks:
    file = f"{folder}/{name}"
    header: set[str] = set()

    def rows() -> Iterator[dict[str, Any]]:
        for line, cells in csv_rows(folder, name):
            header.update(cells)
            yield _csv_row(cells, folder, f"{file}, line {line}")

    table = _table(rows(), _UNLABELLED)
    if not len(table):
        raise InputError(f"{file}: no rows below the header; add a line per clip")
    if "split" not in header:
        table = _with_drawn_split(table.drop_columns(["split"]), seed, known_splits)
    columns = _columns(table)
    del table
    return _finish(columns, folder, {}, name)


def _table(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """The rows as a table; some at a time, because as dictionaries they take ten times the memory."""
    rows, parts = iter(rows), [schema.empty_table()]
    few = iter(lambda: list(islice(rows, ROWS_AT_ONCE)), [])
    while batches := [pa.RecordBatch.from_pylist(each, schema) for each in islice(few, 8)]:
        parts.append(pa.Table.from_batches(batches).combine_chunks())  # large ones are given back column by column
    return pa.concat_tables(parts)


def _columns(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return dict(zip(table.column_names, table.columns, strict=True))


def _refuse_doubles(folder: Folder, name: str) -> None:
    """Name the first path that is on two lines of a CSV file."""
    file = f"{folder}/{name}"
    line_of: dict[str, int] = {}
    for line, cells in csv_rows(folder, name):
        before = line_of.setdefault(_relative(cells["path"], folder), line)
        if before != line:
            raise InputError(f"{file}, line {line}: path={cells['path']!r} is on line {before} already; keep one")


def _csv_row(cells: dict[str, str], folder: Folder, where: str) -> dict[str, Any]:
    for name in ("path", "genre"):
        if not cells[name]:
            raise InputError(f"{where}: {name} is empty; fill it in or remove the line")
    path = _relative(cells["path"], folder)
    artist = cells.get("artist") or None
    row = {
        "track_id": path_id(path),
        "path": path,
        "genre": cells["genre"],
        "artist_id": same_name(artist) if artist else None,
        "artist_name": artist,
        "title": cells.get("title") or None,
        "duration": seconds(cells.get("duration", ""), where),
    }
    if "split" in cells:
        split = _SPLIT_WORDS.get(cells["split"].lower())
        if split is None:
            raise InputError(f"{where}: split={cells['split']!r}; expected one of {', '.join(SPLITS)}")
        row["split"] = split
    return row


def _relative(cell: str, root: Folder) -> str:
    """A path of a CSV file, relative to the file's folder; an absolute one outside the folder stays as it is."""
    folder = root.path
    inside = os.path.normpath(cell)
    if folder is None or not (os.path.isabs(inside) or inside.startswith("..")):
        return inside  # in an object store all clips are below the file
    path = Path(os.path.normpath(folder / cell))
    if os.path.isabs(cell) and not path.is_relative_to(folder):
        return path.as_posix()
    return Path(os.path.relpath(path, folder)).as_posix()


def path_id(path: str) -> int:
    """The id of a clip: positive, 48 bits of a hash of its path, so that adding clips changes no other id.

    Raises
    ------
    InputError
        The file's name is not UTF-8.
    """
    try:
        return 1 + int.from_bytes(_sha1(path)[:6], "big")
    except UnicodeEncodeError:
        raise InputError(f"{path!r}: the file's name is not UTF-8; rename it") from None


def _sha1(text: str) -> bytes:
    return hashlib.sha1(text.encode(), usedforsecurity=False).digest()


def _with_drawn_split(rows: pa.Table, seed: int, known_splits: Callable[[], Mapping[str, str]]) -> pa.Table:
    paths, before = rows["path"].to_pylist(), known_splits()
    artists = rows["artist_id"].to_pylist() if "artist_id" in rows.column_names else [None] * len(paths)
    groups = [f"artist:{artist}" if artist else f"clip:{path}" for path, artist in zip(paths, artists, strict=True)]
    known = {group: before[path] for group, path in zip(groups, paths, strict=True) if path in before}
    splits = draw_splits(groups, rows["genre"].to_pylist(), seed, known)
    return rows.append_column("split", pa.array(splits, pa.string()))


def _finish(
    columns: dict[str, pa.ChunkedArray], audio_root: Folder, left_out: dict[str, int], csv_file: str | None = None
) -> Tracks:
    """Sort, check that ids are unique, and label; takes the columns away, so that they are not in memory twice."""
    order = np.argsort(columns["track_id"].to_numpy(), kind="stable")
    ordered = {}
    for name in list(columns):
        ordered[name] = columns.pop(name).combine_chunks().take(order)
        pa.default_memory_pool().release_unused()  # it would keep what it is given back
    rows = pa.table(ordered)
    ids = rows["track_id"].to_numpy()
    if len(same := np.flatnonzero(ids[1:] == ids[:-1])):
        if csv_file:
            _refuse_doubles(audio_root, csv_file)
        first, second = rows["path"].slice(same[0], 2).to_pylist()
        raise InputError(
            f"{audio_root}: track_id {ids[same[0]]} stands for two clips, {first} and {second}; remove or rename one"
        )
    genres = pa.array(sorted(pc.unique(rows["genre"]).to_pylist()), pa.string())
    if len(genres) > MAX_GENRES:
        raise InputError(f"{audio_root}: {len(genres)} genres, at most {MAX_GENRES} are possible; is genre a title?")
    labelled = rows.append_column("label", pc.index_in(rows["genre"], value_set=genres))
    return Tracks(labelled.select(SCHEMA.names).cast(SCHEMA).combine_chunks(), audio_root, left_out)
