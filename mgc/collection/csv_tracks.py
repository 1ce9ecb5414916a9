"""Reading a CSV file of clips: ``path,genre[,split,artist][,title][,duration][,license]``, a line a clip."""

from __future__ import annotations

import codecs
import csv
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgc.collection.names import same_name
from mgc.collection.splits import SPLIT_WORDS, SPLITS
from mgc.core.errors import InputError, path_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mgc.core.storage import Folder


def read_csv(folder: Folder, name: str, kinds: str, *, allow_outside: bool = False) -> Iterator[dict[str, Any]]:
    """Read the clips of a CSV file, line by line.

    Parameters
    ----------
    folder
        Where the file is; its paths are relative to it.
    name
        The file's name.
    kinds
        Ends a message: what a root may be.
    allow_outside
        Take paths that lead out of the folder, too.

    Yields
    ------
    dict
        ``path``, ``genre``, ``artist_id``, ``artist_name``, ``title``, ``duration``, ``license``, and ``split`` (one of
        ``SPLITS``) where the file has that column.

    Raises
    ------
    InputError
        The file is no such CSV file, or a line of it is wrong; the message names it.
    StoreError, RunError
        The object store, or the disk, does not answer.
    """
    file, line = f"{folder}/{name}", 0
    for line, cells in _lines(folder, name, kinds):
        row = _row(cells, folder, f"{file}, line {line}")
        if not allow_outside and (os.path.isabs(row["path"]) or row["path"].split("/")[0] == ".."):
            raise InputError(
                f"{file}, line {line}: path={cells['path']!r} is outside the file's folder; put the file above all its "
                "clips, or pass `allow_outside=True`"
            )
        yield row
    if not line:
        raise InputError(f"{file}: no rows below the header; add a line per clip")


def refuse_doubles(folder: Folder, name: str, kinds: str) -> None:
    """Name the first path that is on two lines of a CSV file, as an ``InputError``.

    Parameters
    ----------
    folder, name, kinds
        As ``read_csv`` takes them.
    """
    file, line_of = f"{folder}/{name}", dict[str, int]()
    for line, cells in _lines(folder, name, kinds):
        before = line_of.setdefault(_relative(cells["path"], folder), line)
        if before != line:
            raise InputError(f"{file}, line {line}: path={cells['path']!r} is on line {before} already; keep one")


def _lines(folder: Folder, name: str, kinds: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Each row and the number of its first line; cells are stripped, blank rows skipped."""
    file = f"{folder}/{name}"
    try:
        with io.BufferedReader(folder.open(name)) as data:
            reader = csv.reader(io.TextIOWrapper(data, newline="", encoding=_encoding(data.peek(4))))
            header = [cell.strip().lower() for cell in next(reader, [])]
            if any("\0" in cell for cell in header):
                raise InputError(f"{file}: is not in UTF-8, perhaps in UTF-16; save it as UTF-8")
            missing = [name for name in ("path", "genre") if name not in header]
            if missing:
                raise InputError(
                    f"{file}: needed columns are missing: {', '.join(missing)}; its header needs "
                    "path,genre[,split,artist], commas between (of FMA give the folder that holds fma_metadata)"
                )
            line = reader.line_num + 1
            for row in reader:
                cells = [cell.strip() for cell in row]
                if len(cells) > len(header):
                    raise InputError(
                        f"{file}, line {line}: {len(cells)} cells under {len(header)} columns; "
                        "put cells with a comma in double quotes"
                    )
                if any(cells):
                    yield line, dict.fromkeys(header, "") | dict(zip(header, cells, strict=False))
                line = reader.line_num + 1
    except OSError as error:
        raise path_error(f"{file}: cannot be read ({error.strerror or error})", error) from error
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InputError(
            f"{file}: not readable as CSV: byte 0x{byte:02x} is not {error.encoding.upper()}; save it as UTF-8; {kinds}"
        ) from error
    except csv.Error as error:
        raise InputError(f"{file}: not readable as CSV: {error}; {kinds}") from error


def _encoding(start: bytes) -> str:
    """The encoding by the byte-order mark that a file begins with; UTF-8 without one."""
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    return "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def _row(cells: dict[str, str], folder: Folder, where: str) -> dict[str, Any]:
    for name in ("path", "genre"):
        if not cells[name]:
            raise InputError(f"{where}: {name} is empty; fill it in or remove the line")
    path = _relative(cells["path"], folder)
    artist = cells.get("artist") or None
    row = {
        "path": path,
        "genre": cells["genre"],
        "artist_id": same_name(artist) if artist else None,
        "artist_name": artist,
        "title": cells.get("title") or None,
        "duration": _seconds(cells.get("duration", ""), where),
        "license": cells.get("license") or cells.get("licence") or None,
    }
    if "split" in cells:
        split = SPLIT_WORDS.get(cells["split"].lower())
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


def _seconds(cell: str, where: str) -> float | None:
    if not cell:
        return None
    try:
        return float(cell)
    except ValueError:
        raise InputError(f"{where}: duration={cell!r} is no number; give seconds or leave it empty") from None
