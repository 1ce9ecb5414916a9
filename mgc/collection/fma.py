"""Reading FMA: ``fma_metadata/tracks.csv`` beside ``fma_small/NNN/NNNNNN.mp3``.

``tracks.csv`` has three header rows, quoted cells of many lines, genres that are NaN, and 106,574 rows in 260 MB.
Its subsets are nested: *medium* holds the rows of *small* too, and *large* holds all.
The layout is documented at https://github.com/mdeff/fma.
"""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from mgc.collection.splits import SPLITS
from mgc.core.errors import InputError, first_line, path_error

if TYPE_CHECKING:
    from mgc.core.errors import MgcError
    from mgc.core.storage import Folder

SUBSETS = ("small", "medium", "large")
"""From the smallest to the largest; each includes those before it."""
TRACKS_CSV = "fma_metadata/tracks.csv"

NEEDED = {
    "track_id": "track_id",
    "genre": "track.genre_top",
    "split": "set.split",
    "subset": "set.subset",
    "artist_id": "artist.id",
    "artist_name": "artist.name",
}
OPTIONAL = {"title": "track.title", "duration": "track.duration", "license": "track.license"}
"""Our column: FMA's, as its first two header rows joined by a dot."""


def is_fma(root: Folder) -> bool:
    """Whether ``root`` is an FMA folder, complete or not: any of the folders that FMA's archives make is there."""
    return any(root.kind(name) == "folder" for name in ("fma_metadata", *(f"fma_{subset}" for subset in SUBSETS)))


def clip_path(track_id: int, subset: str) -> str:
    """Path of a clip in FMA, relative to its folder.

    Parameters
    ----------
    track_id
        FMA's id.
    subset
        One of ``SUBSETS``.

    Examples
    --------
    >>> clip_path(2, "small")
    'fma_small/000/000002.mp3'
    """
    padded = f"{track_id:06d}"
    return f"fma_{subset}/{padded[:3]}/{padded}.mp3"


def check_subset(subset: str) -> None:
    """Raise ``InputError`` for a subset that FMA does not have."""
    if subset not in SUBSETS:
        raise InputError(f"`subset={subset}`: FMA has no such subset; choose from {', '.join(SUBSETS)}")


def read_fma(root: Folder, subset: str) -> tuple[pa.Table, dict[str, int]]:
    """Read the rows of a subset from FMA's ``tracks.csv``.

    Parameters
    ----------
    root
        The folder that holds ``fma_metadata``.
    subset
        One of ``SUBSETS``; the smaller ones are included.

    Returns
    -------
    rows
        In the file's order: ``track_id`` (int64), ``path`` relative to ``root``, ``genre``,
        ``split`` (one of ``SPLITS``), ``artist_id``, ``artist_name``, ``title``, ``license`` and ``duration``
        (float64, seconds of the whole track, of which the clip is 30 s). Rows whose file is missing are included.
    left_out
        How many rows are of an ``other_subset``, and how many of the subset have ``no_genre``.

    Raises
    ------
    InputError
        No such root or file, columns missing, an unknown or an empty subset, a cell that is no number or no split.
    StoreError, RunError
        The object store, or the disk, does not answer.
    """
    check_subset(subset)
    if root.kind() != "folder":
        raise InputError(f"{root}: no such folder; give the folder that holds fma_metadata and fma_{subset}")
    if root.kind(TRACKS_CSV) != "file":
        raise InputError(f"{root}: no {TRACKS_CSV}; unpack fma_metadata.zip there")
    file = f"{root}/{TRACKS_CSV}"
    rows = _parse(root)
    chosen = _of_subset(rows, subset, file)
    with_genre = chosen.filter(pc.is_valid(chosen["genre"]))
    if not with_genre.num_rows:
        raise InputError(f"{file}: none of the {chosen.num_rows} rows of subset {subset} has a genre")
    left_out = {
        "other_subset": rows.num_rows - chosen.num_rows,
        "no_genre": chosen.num_rows - with_genre.num_rows,
    }
    ids = _cast(with_genre, "track_id", pa.int64(), file)
    if ids.null_count:
        raise InputError(f"{file}: {ids.null_count} rows of subset {subset} have no track_id; give them one")
    for track_id, split in zip(ids.to_pylist(), with_genre["split"].to_pylist(), strict=True):
        if split not in SPLITS:
            raise InputError(f"{file}: track {track_id} has split={split!r}; expected one of {', '.join(SPLITS)}")
    columns = {
        "track_id": ids,
        "path": pa.array([clip_path(track_id, subset) for track_id in ids.to_pylist()], pa.string()),
        **{name: with_genre[name] for name in ("genre", "split", "artist_id", "artist_name", "title", "license")},
        "duration": _cast(with_genre, "duration", pa.float64(), file),
    }
    return pa.table(columns), left_out


def _of_subset(rows: pa.Table, subset: str, file: str) -> pa.Table:
    wanted = SUBSETS[: SUBSETS.index(subset) + 1]
    chosen = rows.filter(pc.is_in(rows["subset"], value_set=pa.array(wanted)))
    if not chosen.num_rows:
        counts = {str(count["values"]): count["counts"] for count in pc.value_counts(rows["subset"]).to_pylist()}
        held = ", ".join(f"{name} ({count} rows)" for name, count in sorted(counts.items())) or "no rows at all"
        raise InputError(f"{file}: no row of subset {subset}; the file has {held}")
    return chosen


def _parse(root: Folder) -> pa.Table:
    """The columns ``NEEDED`` and ``OPTIONAL`` of all rows, as stripped strings; empty cells are null."""
    file = f"{root}/{TRACKS_CSV}"
    found, width, header_lines = _header(root)
    missing = [theirs for theirs in NEEDED.values() if theirs not in found]
    if missing:
        raise InputError(
            f"{file}: needed columns are missing: {', '.join(missing)}; "
            "expected FMA's tracks.csv, three header rows and all"
        )
    present = {ours: str(found[theirs]) for ours, theirs in (NEEDED | OPTIONAL).items() if theirs in found}
    try:
        cells = pacsv.read_csv(
            root.open(TRACKS_CSV),
            # 16 MiB a block: a row may cross one block boundary, not two
            read_options=pacsv.ReadOptions(
                skip_rows=header_lines, column_names=[str(i) for i in range(width)], block_size=16 << 20
            ),
            parse_options=pacsv.ParseOptions(newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(
                include_columns=list(present.values()),
                column_types=dict.fromkeys(present.values(), pa.string()),
                null_values=["", "NaN", "nan"],
                strings_can_be_null=True,
            ),
        )
    except OSError as error:
        raise _unreadable(file, error) from error
    except pa.ArrowInvalid as error:
        raise InputError(f"{file}: not readable as CSV: {first_line(error)}; unpack it again") from error
    nothing = pa.nulls(cells.num_rows, pa.string())
    return pa.table(
        {ours: _stripped(cells[present[ours]]) if ours in present else nothing for ours in NEEDED | OPTIONAL}
    )


def _header(root: Folder) -> tuple[dict[str, int], int, int]:
    """Column positions by name, the number of columns, and the number of lines that the header takes."""
    try:
        with io.TextIOWrapper(io.BufferedReader(root.open(TRACKS_CSV)), newline="", encoding="utf-8") as handle:
            reader = csv.reader(handle)
            top, second, third = ([cell.strip() for cell in next(reader, [])] for _ in range(3))
            lines = reader.line_num
    except OSError as error:
        raise _unreadable(f"{root}/{TRACKS_CSV}", error) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{root}/{TRACKS_CSV}: not readable as CSV: {first_line(error)}; unpack it again") from error
    found = {".".join(pair): position for position, pair in enumerate(zip(top, second, strict=False))}
    if "track_id" in third:
        found["track_id"] = third.index("track_id")
    return found, len(top), lines


def _unreadable(file: str, error: OSError) -> MgcError:
    return path_error(f"{file}: cannot be read ({error.strerror or first_line(error)})", error)


def _stripped(column: pa.ChunkedArray) -> pa.ChunkedArray:
    trimmed = pc.utf8_trim_whitespace(column)
    return pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)


def _cast(rows: pa.Table, name: str, kind: pa.DataType, file: str) -> pa.ChunkedArray:
    try:
        return rows[name].cast(kind)
    except pa.ArrowInvalid as error:
        raise InputError(f"{file}: column {name} holds something that is no number: {first_line(error)}") from error
