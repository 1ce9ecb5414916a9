"""The tracks table: one row per clip, from FMA's metadata, from a folder per genre or from a CSV file.

``read_tracks(root)`` finds out which of the three it is:

- **FMA**: ``fma_metadata/tracks.csv`` beside ``fma_small/``; the official split. Rows stay even where the clip's file
  is absent: the audit reports it, preprocessing quarantines it.
- **A folder per genre** (GTZAN's layout): ``ROOT/blues/blues.00000.wav``; the artists are unknown, the split is drawn,
  unless folders are named like splits: ``ROOT/train/blues/1.wav``.
- **A CSV file**: ``path,genre[,split,artist][,title][,duration][,license]``; paths are relative to the file's folder;
  without the column ``split`` one is drawn, with all clips of an artist in one split. A path that leads out of the
  folder is refused, unless ``allow_outside`` is given.

Each may be on a disk or in an object store (``s3://bucket/fma``).

The same input gives the same ids, labels and splits on any machine.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mgc.collection import fma
from mgc.collection.csv_tracks import read_csv, refuse_doubles
from mgc.collection.genre_folders import read_genre_folders, without_decoder
from mgc.collection.licences import UNKNOWN, LicenceFilter
from mgc.collection.names import as_on_disk, composed, one_spelling
from mgc.collection.splits import draw_splits
from mgc.core.errors import InputError
from mgc.core.storage import Folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

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
        pa.field("license", pa.string(), nullable=False),  # as the source says; UNKNOWN where it says none
    ]
)
_UNLABELLED = pa.schema([field for field in SCHEMA if field.name != "label"])
ROWS_AT_ONCE = 1 << 12
"""Rows of a source that are Python objects at a time."""

_KINDS = (
    "`root` is an FMA folder (fma_metadata/tracks.csv beside fma_small), a folder with a folder per genre, "
    "or a CSV file with the columns path,genre"
)
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
    notes
        What a person should know of how the source was read, a line each.
    """

    table: pa.Table
    audio_root: Folder
    left_out: dict[str, int]
    notes: tuple[str, ...] = ()

    @property
    def genres(self) -> tuple[str, ...]:
        """The genres by label: ``genres[label]`` is the genre."""
        return tuple(sorted(pc.unique(self.table["genre"]).to_pylist()))


def read_tracks(
    root: str | Path,
    *,
    subset: str = "small",
    seed: int = 0,
    known_splits: Callable[[], Mapping[str, str]] = dict,
    allow_outside: bool = False,
    licences: LicenceFilter | None = None,
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
    allow_outside
        Of a CSV file: take paths that lead out of its folder, too.
    licences
        Which licences are taken; any by default. A track of another is treated as if the collection did not have it.

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
    csv_file = ""
    notes: list[str] = []
    if kind is None:
        raise InputError(f"{folder}: no such file or folder; {_KINDS}")
    if kind == "folder" and fma.is_fma(folder):
        table, left_out = fma.read_fma(folder, subset)
    elif kind == "folder":
        rows, left_out, notes = read_genre_folders(folder, _KINDS)
        table = _table(rows)
    else:
        folder, csv_file = folder.parent
        table, left_out = _table(read_csv(folder, csv_file, _KINDS, allow_outside=allow_outside)), {}
        notes = without_decoder(path for part in table["path"].chunks for path in part.to_pylist())
    table = _with(table, "license", pc.fill_null(table["license"], UNKNOWN))
    if licences:
        table, left_out["license"] = _licensed(table, licences, notes, folder)
    table, merged = _with_one_spelling(table)
    if table["split"].null_count:
        table = _with_drawn_split(table, seed, known_splits())
    if csv_file:  # ids and splits are those of the file's spelling, on whatever disk
        parts = table["path"].chunks if folder.path else [table["path"]]  # a bucket is listed as a whole
        on_disk = [pa.array(as_on_disk(folder, part.to_pylist()), pa.string()) for part in parts]
        table = _with(table, "path", pa.chunked_array(on_disk, pa.string()))
        del parts, on_disk
    columns = dict(zip(table.column_names, table.columns, strict=True))
    del table
    return _finish(columns, folder, left_out, [*notes, *merged], csv_file)


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


def _table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """The rows as a table, with their ids; some at a time, because as dictionaries they take ten times the memory."""
    rows, parts = iter(rows), [_UNLABELLED.empty_table()]
    few = iter(lambda: [{"track_id": path_id(row["path"])} | row for row in islice(rows, ROWS_AT_ONCE)], [])
    while batches := [pa.RecordBatch.from_pylist(each, _UNLABELLED) for each in islice(few, 8)]:
        parts.append(pa.Table.from_batches(batches).combine_chunks())  # large ones are given back column by column
    return pa.concat_tables(parts)


def _with(table: pa.Table, name: str, values: Any) -> pa.Table:
    """The table with other values in a column of texts."""
    values = values if isinstance(values, pa.ChunkedArray) else pa.array(values, pa.string())
    return table.set_column(table.schema.get_field_index(name), name, values)


def _licensed(table: pa.Table, licences: LicenceFilter, notes: list[str], root: Folder) -> tuple[pa.Table, int]:
    """Keep the clips whose licence is taken, and note how many of which licence are left out."""
    counts = {each["values"]: each["counts"] for each in pc.value_counts(table["license"]).to_pylist()}
    taken = [text for text in counts if licences.takes(text)]
    out = sorted((text for text in counts if text not in taken), key=lambda text: (-counts[text], text))
    named = ", ".join(f"{counts[text]} {text[:80]}" for text in out[:5]) + (" …" if len(out) > 5 else "")
    left = sum(counts[text] for text in out)
    if not taken:
        raise InputError(f"{root}: none of its {left} clips has a licence that is asked for: {named}")
    if left:
        notes.append(f"{root}: {left} of {len(table)} clips are left out for their licence: {named}")
    return table.filter(pc.is_in(table["license"], value_set=pa.array(taken, pa.string()))), left


def _with_one_spelling(table: pa.Table) -> tuple[pa.Table, list[str]]:
    """Give genres that are the same one name; and say which were merged."""
    counts = {each["values"]: each["counts"] for each in pc.value_counts(table["genre"]).to_pylist()}
    spelt, merged = one_spelling(counts)
    if all(name == its for name, its in spelt.items()):
        return table, merged
    return _with(table, "genre", [spelt[name] for name in table["genre"].to_pylist()]), merged


def _with_drawn_split(table: pa.Table, seed: int, before: Mapping[str, str]) -> pa.Table:
    """Draw a split; clips that had one keep it, as do all others of their artists."""
    paths, artists = table["path"].to_pylist(), table["artist_id"].to_pylist()
    groups = [f"artist:{artist}" if artist else f"clip:{path}" for path, artist in zip(paths, artists, strict=True)]
    its = {composed(path): split for path, split in before.items()}
    known = ((group, before.get(path) or its.get(composed(path))) for group, path in zip(groups, paths, strict=True))
    has = {group: split for group, split in known if split} if before else {}
    return _with(table, "split", draw_splits(groups, table["genre"].to_pylist(), seed, has))


def _finish(
    columns: dict[str, pa.ChunkedArray], audio_root: Folder, left_out: dict[str, int], notes: list[str], csv_file: str
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
            refuse_doubles(audio_root, csv_file, _KINDS)
        first, second = rows["path"].slice(same[0], 2).to_pylist()
        raise InputError(
            f"{audio_root}: track_id {ids[same[0]]} stands for two clips, {first} and {second}; remove or rename one"
        )
    genres = pa.array(sorted(pc.unique(rows["genre"]).to_pylist()), pa.string())
    if len(genres) < 2:
        raise InputError(f"{audio_root}: all clips are of one genre, {genres[0]}; a model needs two to tell apart")
    if len(genres) > MAX_GENRES:
        raise InputError(f"{audio_root}: {len(genres)} genres, at most {MAX_GENRES} are possible; is genre a title?")
    labelled = rows.append_column("label", pc.index_in(rows["genre"], value_set=genres))
    return Tracks(labelled.select(SCHEMA.names).cast(SCHEMA).combine_chunks(), audio_root, left_out, tuple(notes))
