"""Reading a collection's CSV file, ``path,genre[,split,artist][,title][,duration]``, row by row."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from mgc.core.errors import InputError, path_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mgc.core.storage import Folder

KINDS = (
    "`root` is an FMA folder (fma_metadata/tracks.csv beside fma_small), a folder with a folder per genre, "
    "or a CSV file with the columns path,genre"
)
"""What a collection may be, for messages."""


def csv_rows(folder: Folder, name: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Read rows; blank ones are skipped.

    Parameters
    ----------
    folder
        The folder of the file.
    name
        The file's name.

    Yields
    ------
    (int, dict[str, str])
        The number of the row's first line, and its stripped cells by column.

    Raises
    ------
    InputError
        The file cannot be read as CSV, or lacks a column.
    """
    file = f"{folder}/{name}"
    try:
        with io.TextIOWrapper(io.BufferedReader(folder.open(name)), newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle)
            header = [cell.strip().lower() for cell in next(reader, [])]
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
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: not readable as CSV: {error}; {KINDS}") from error


def seconds(cell: str, where: str) -> float | None:
    """Seconds in a cell, None in an empty one; ``where`` it is begins the message of the ``InputError`` otherwise."""
    if not cell:
        return None
    try:
        return float(cell)
    except ValueError:
        raise InputError(f"{where}: duration={cell!r} is no number; give seconds or leave it empty") from None
