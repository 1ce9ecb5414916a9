"""The layout of a feature set: a directory of Parquet shards that anyone can read, and the manifest that completes it.

    plan.parquet         written first: which clip goes to which shard
    manifest.json        written last: without it the set is unfinished and readers refuse it
    shards/training-00003-of-00016.parquet
    quarantine.parquet   the clips that gave no feature, each with its reason
    contact_sheet.png    spectrograms of a few clips of each genre, which the card shows
    croissant.json       what is inside, in the vocabulary of MLCommons Croissant
    README.md            the dataset card: what is inside, and the lines that read it elsewhere

This module holds names and formats of these files.
"""

from __future__ import annotations

import errno
import json
import re
from dataclasses import asdict, dataclass, field
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from mgc.audio.logmel import LogMelSpec
from mgc.collection.splits import SPLITS
from mgc.core.errors import InputError, RunError, StoreError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from mgc.core.storage import Folder

FORMAT = 2
"""Version of the layout; a reader refuses another."""
MANIFEST = "manifest.json"
PLAN = "plan.parquet"
QUARANTINE = "quarantine.parquet"
CARD = "README.md"
CROISSANT = "croissant.json"
SHEET = "contact_sheet.png"
SHARDS = "shards"

SCHEMA = pa.schema(
    [
        ("track_id", pa.int64()),
        ("split", pa.string()),
        ("genre", pa.string()),
        ("label", pa.int8()),
        ("artist_id", pa.string()),
        ("path", pa.string()),
        ("license", pa.string()),
        ("source_sha1", pa.string()),
        ("seconds", pa.float64()),
        ("promised_seconds", pa.float64()),
        ("damaged", pa.bool_()),
        ("padded", pa.bool_()),
        ("mean_db", pa.float32()),
        ("std_db", pa.float32()),
        ("logmel", pa.binary()),
    ]
)
"""A shard row. ``logmel`` is the z-scored matrix as little-endian float16 in C order (a ``binary`` column reads 2.8
times as fast as Arrow's fixed-shape tensor); its shape, dtype and recipe are in the schema's metadata. ``seconds`` of
the ``promised_seconds`` of the file's headers came out, as far as a feature reaches; clearly fewer are ``damaged``.
``license`` is as the source says, ``unknown`` where it says none; shards of before licences were known lack it."""
WITHOUT_LICENCE = SCHEMA.remove(SCHEMA.get_field_index("license"))
"""A shard row of before licences were known."""

QUARANTINE_SCHEMA = pa.schema(
    [
        ("track_id", pa.int64()),
        ("path", pa.string()),
        ("genre", pa.string()),
        ("split", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("seconds", pa.float64()),
    ]
)


_SHARD_FILE = re.compile(rf"{SHARDS}/({'|'.join(SPLITS)})-(\d{{5,}})-of-(\d{{5,}})\.parquet")


@dataclass(frozen=True)
class ShardName:
    """The file of a shard, relative to the set: ``shards/training-00003-of-00016.parquet``."""

    split: str
    index: int
    """Number within the split, from 0."""
    count: int
    """Shards of the split when this one was planned; shards of clips that were added later say more."""

    def __str__(self) -> str:
        return f"{SHARDS}/{self.split}-{self.index:05d}-of-{self.count:05d}.parquet"

    @classmethod
    def parse(cls, file: str) -> ShardName | None:
        """The parts of a shard's file name; None if ``file`` is not one."""
        found = _SHARD_FILE.fullmatch(file)
        return cls(found[1], int(found[2]), int(found[3])) if found else None


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One shard in the manifest."""

    file: str
    """Path relative to the set: ``shards/training-00000-of-00002.parquet``."""
    split: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Recipe, genres, counts and shards of a finished feature set."""

    format: int
    fingerprint: str
    """Hash of recipe, decoder, plan and source files: sets of the same fingerprint have the same features."""
    recipe: dict[str, Any]
    """Fields of the ``mgc.features.recipe.Recipe`` that the set was made by."""
    genres: tuple[str, ...]
    """Label i is ``genres[i]``."""
    clips: dict[str, dict[str, int]]
    """Rows by split and genre."""
    quarantined: dict[str, int]
    """Clips without a feature, by reason."""
    artist_leaks: tuple[dict[str, Any], ...]
    """Artists in more than one split, as ``mgc.collection.splits.artist_leaks`` lists them."""
    shards: tuple[ShardEntry, ...]
    licenses: dict[str, dict[str, int]] = field(default_factory=dict)
    """Rows by split and licence; empty in a set of before licences were known, whose shards have no such column."""

    @property
    def schema(self) -> pa.Schema:
        """Columns of its shards."""
        return SCHEMA if self.licenses else WITHOUT_LICENCE

    @property
    def spec(self) -> LogMelSpec:
        """Parameters of the log-Mel spectrograms."""
        return LogMelSpec(**self.recipe["spec"])

    def shards_of(self, *splits: str) -> list[ShardEntry]:
        """Return the shards of some splits, split by split: the order of a set's clips.

        Parameters
        ----------
        *splits
            ``training``, ``validation`` or ``test``.
        """
        return [entry for split in splits for entry in self.shards if entry.split == split]

    def to_json(self) -> str:
        """Stable, readable JSON: the same set gives the same bytes."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse the JSON of ``to_json``.

        Raises
        ------
        InputError
            It is of another format.
        KeyError, TypeError, ValueError
            It is no manifest.
        """
        fields = json.loads(text)
        if fields["format"] != FORMAT:
            raise InputError(f"format {fields['format']}, this version reads {FORMAT}; preprocess into a new folder")
        fields["genres"] = tuple(fields["genres"])
        fields["artist_leaks"] = tuple(fields["artist_leaks"])
        fields["shards"] = tuple(ShardEntry(**entry) for entry in fields["shards"])
        check_shards(entry.file for entry in fields["shards"])
        return cls(**fields)


def read_manifest(folder: Folder) -> Manifest | None:
    """Read the manifest of a set; None while the set is unfinished.

    Raises
    ------
    InputError
        The file is there and is not a manifest of this format.
    RunError
        The disk or the object store cannot be read.
    """
    file = f"{folder}/{MANIFEST}"
    try:
        return Manifest.from_json(folder.read(MANIFEST).decode())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, StoreError, KeyError, TypeError, ValueError) as error:
        raise storage_failure(file, error) or InputError(
            f"{file}: not a manifest ({error}); choose another folder or delete it"
        ) from None
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def check_shards(files: Iterable[str]) -> None:
    """Raise ``ValueError`` for a file of a shard that is not directly in ``shards/``: it may lie outside the set."""
    for file in files:
        if not re.fullmatch(rf"{SHARDS}/[^/]+\.parquet", str(file)):
            raise ValueError(f"{str(file)[:200]!r} is no file of {SHARDS}/")


def read_table(source: pa.NativeFile | Path, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file, every value checked: pyarrow itself takes text that is not UTF-8, and fails at its use.

    Parameters
    ----------
    source
        The open file, or its path.
    columns
        Names of those to read, in any order; all by default. ``license`` is left out where the file has none.

    Raises
    ------
    OSError, pyarrow.ArrowException, ValueError
        The file is damaged.
    """
    if columns and "license" in columns and "license" not in pq.read_schema(source).names:
        columns = [name for name in columns if name != "license"]
    table = pq.read_table(source, columns=columns)
    table.validate(full=True)
    return table


def parquet_bytes(table: pa.Table) -> pa.Buffer:
    """Encode a table as a Parquet file; the same table gives the same bytes."""
    stream = pa.BufferOutputStream()
    with parquet_writer(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


def parquet_writer(stream: pa.NativeFile | IO[bytes], schema: pa.Schema) -> pq.ParquetWriter:
    """Begin a Parquet file, to be written part by part; each part is a row group.

    Parameters
    ----------
    stream
        The open file.
    schema
        Of all parts.
    """
    return pq.ParquetWriter(stream, schema, compression="zstd", use_dictionary=["split", "genre", "license"])


_ABOUT_THE_PATH = {
    None,  # pyarrow's of damaged bytes
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENAMETOOLONG),
}


def storage_failure(file: str, error: Exception) -> RunError | None:
    """Tell a failing disk or object store from a file that is absent or damaged.

    Parameters
    ----------
    file
        Path of the file that was read, for the message.
    error
        What reading it raised.

    Returns
    -------
    RunError or None
        The error to raise where the storage failed; None where the file itself is at fault.
    """
    if isinstance(error, StoreError):
        return error
    if isinstance(error, OSError) and error.errno not in _ABOUT_THE_PATH:
        return RunError(f"{file}: cannot be read ({error.strerror or first_line(error)})")
    return None
