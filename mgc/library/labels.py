"""A label set: what a model says of every file of a library, in Parquet shards that anyone can read.

    plan.parquet         written first: which file is in which shard
    shards/labels-00000.parquet
    quarantine.parquet   the files that gave no label, each with its reason
    manifest.json        written last: without it the set is unfinished and readers refuse it

This module holds names and formats of these files.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mgc.core.errors import InputError, StoreError, first_line
from mgc.core.storage import Folder
from mgc.features.layout import MANIFEST, SHARDS, ShardEntry, check_shards, read_table, storage_failure

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 1
"""Version of the layout; a reader refuses another."""

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("seconds", pa.float64()),
        ("genre", pa.string()),
        ("confidence", pa.float32()),
        ("unsure", pa.bool_()),
        ("probabilities", pa.list_(pa.float32())),
        (
            "windows",
            pa.list_(
                pa.struct(
                    [
                        ("start", pa.float32()),
                        ("end", pa.float32()),
                        ("genre", pa.string()),
                        ("confidence", pa.float32()),
                    ]
                )
            ),
        ),
        ("warning", pa.string()),
    ]
)
"""A row is a file: its ``path`` below the library's root, the most probable ``genre``, its calibrated probability
(``confidence``), the probabilities of all genres in the manifest's order, and the same for each stretch that the model
hears at a time, in seconds. ``warning`` says why a row is worth less than others."""

QUARANTINE_SCHEMA = pa.schema(
    [("path", pa.string()), ("reason", pa.string()), ("detail", pa.string()), ("seconds", pa.float64())]
)


@dataclass(frozen=True)
class Settings:
    """All that decides what a label set says of a file."""

    model: str
    """Fingerprint of the model."""
    genres: tuple[str, ...]
    """Probability i is of ``genres[i]``."""
    precision: float
    """Share of right answers, on the model's validation clips, that ``unsure`` leaves."""
    threshold: float | None
    """Confidence below which a row is ``unsure``; None: every row is."""
    decoder: str
    """The decoder and its versions."""

    def to_json(self) -> str:
        """Encode the settings; the same settings give the same text."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Settings:
        """Decode the text of ``to_json``."""
        fields = json.loads(text)
        return cls(**fields | {"genres": tuple(fields["genres"])})


@dataclass(frozen=True)
class LabelManifest:
    """Settings, counts and shards of a finished label set."""

    format: int
    root: str
    """The library, by path or URI; paths of rows are relative to it."""
    settings: Settings
    genres: dict[str, int]
    """Rows by genre."""
    unsure: int
    """Rows that are unsure."""
    quarantined: dict[str, int]
    """Files without a label, by reason."""
    shards: tuple[ShardEntry, ...]

    def to_json(self) -> str:
        """Stable, readable JSON."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def read(cls, folder: Folder) -> LabelManifest | None:
        """Read the manifest of a label set; None where there is none.

        Parameters
        ----------
        folder
            Of the label set.

        Raises
        ------
        InputError
            The file is there and is not a manifest of this format.
        RunError
            The disk or the object store cannot be read.
        """
        try:
            fields = json.loads(folder.read(MANIFEST))
            if fields["format"] != FORMAT:
                raise ValueError(f"format {fields['format']}, this version reads {FORMAT}")
            fields["settings"] = Settings.from_json(json.dumps(fields["settings"]))
            fields["shards"] = tuple(ShardEntry(**entry) for entry in fields["shards"])
            check_shards(entry.file for entry in fields["shards"])
            return cls(**fields)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, StoreError, KeyError, TypeError, ValueError) as error:
            raise storage_failure(f"{folder}/{MANIFEST}", error) or InputError(
                f"{folder}/{MANIFEST}: not the manifest of a label set ({first_line(error)})"
            ) from None


@dataclass(frozen=True)
class Labels:
    """A finished label set."""

    folder: Folder
    manifest: LabelManifest

    @classmethod
    def open(cls, place: str | Path | Folder) -> Labels:
        """Open a finished label set.

        Parameters
        ----------
        place
            Path or URI.

        Raises
        ------
        InputError
            There is none, or it is unfinished.
        """
        folder = Folder.at(place)
        manifest = LabelManifest.read(folder)
        if manifest is None:
            unfinished = "is unfinished; run the same «mgc label» again" if folder.kind(SHARDS) else "no label set"
            raise InputError(f"`labels={folder}`: {unfinished}")
        return cls(folder, manifest)

    def table(self, columns: list[str] | None = None) -> pa.Table:
        """Read the rows of all shards [rows of ``SCHEMA``].

        Parameters
        ----------
        columns
            Names of those to read; all by default.

        Raises
        ------
        InputError
            A shard is lost or damaged.
        RunError
            The disk or the object store cannot be read.
        """
        schema = pa.schema([SCHEMA.field(name) for name in columns or SCHEMA.names])
        return pa.concat_tables([schema.empty_table(), *(self._shard(entry, schema) for entry in self.manifest.shards)])

    def _shard(self, entry: ShardEntry, schema: pa.Schema) -> pa.Table:
        try:
            with self.folder.random_access(entry.file) as file:
                table = read_table(file, schema.names).select(schema.names).replace_schema_metadata(None).cast(schema)
            if len(table) != entry.rows:
                raise ValueError(f"{len(table)} rows, the manifest says {entry.rows}")
            return table
        except (OSError, StoreError, pa.ArrowException, KeyError, ValueError) as error:
            raise storage_failure(f"{self.folder}/{entry.file}", error) or InputError(
                f"{self.folder}/{entry.file}: damaged ({first_line(error)}); delete it and run «mgc label» again"
            ) from None

    def to_pandas(self) -> Any:
        """Read all rows as a ``pandas.DataFrame``."""
        return self.table().to_pandas()
