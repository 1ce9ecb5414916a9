"""The feature set: a directory of Parquet shards that anyone can read, and the manifest that makes it whole.

    plan.parquet         written first: which clip goes to which shard
    manifest.json        written last: without it the set is unfinished and is refused here
    shards/training-00003-of-00016.parquet
    quarantine.parquet   the clips that gave no feature, each with its reason
    README.md            the card: what is inside, and the lines that read it elsewhere

This module owns the contract and its reading; ``plan`` owns the plan, ``shards`` writes the shards and ``preprocess``
drives them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mgc.audio.logmel import LogMelSpec
from mgc.core.errors import InputError, StoreError, first_line
from mgc.core.storage import Folder

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

FORMAT = 2
"""Version of the layout; a reader refuses another."""
MANIFEST = "manifest.json"
PLAN = "plan.parquet"
QUARANTINE = "quarantine.parquet"
SHARDS = "shards"

SCHEMA = pa.schema(
    [
        ("track_id", pa.int64()),
        ("split", pa.string()),
        ("genre", pa.string()),
        ("label", pa.int8()),
        ("artist_id", pa.string()),
        ("path", pa.string()),
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
the ``promised_seconds`` of the file's headers came out, as far as a feature reaches; clearly fewer are ``damaged``."""

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


@dataclass(frozen=True)
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
    """What a finished feature set says of itself."""

    format: int
    fingerprint: str
    """Hash of recipe, decoder, plan and source files; a set with another one is another set."""
    recipe: dict[str, Any]
    """What the fingerprint covers but for the clips: the fields of ``mgc.features.plan.Recipe``."""
    genres: tuple[str, ...]
    """Label i is ``genres[i]``."""
    clips: dict[str, dict[str, int]]
    """Rows by split and genre."""
    quarantined: dict[str, int]
    """Clips without a feature, by reason."""
    artist_leaks: tuple[dict[str, Any], ...]
    """Artists in more than one split, as ``mgc.collection.tracks.artist_leaks`` lists them."""
    shards: tuple[ShardEntry, ...]

    @property
    def spec(self) -> LogMelSpec:
        """The log-Mel recipe."""
        return LogMelSpec(**self.recipe["spec"])

    def to_json(self) -> str:
        """Stable, readable JSON: the same set gives the same bytes."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read what ``to_json`` wrote; KeyError, TypeError or ValueError if it is not that."""
        fields = json.loads(text)
        if fields["format"] != FORMAT:
            raise InputError(f"format {fields['format']}, this version reads {FORMAT}; preprocess into a new folder")
        fields["genres"] = tuple(fields["genres"])
        fields["artist_leaks"] = tuple(fields["artist_leaks"])
        fields["shards"] = tuple(ShardEntry(**entry) for entry in fields["shards"])
        return cls(**fields)


@dataclass(frozen=True)
class FeatureSet:
    """A finished feature set."""

    folder: Folder
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path | Folder) -> FeatureSet:
        """Open a set by its manifest; ``path`` may be the URI of a folder in an object store.

        Raises
        ------
        InputError
            There is no such directory, the set is unfinished, or the manifest cannot be read.
        """
        folder = Folder.at(path)
        if folder.kind() != "folder":
            raise InputError(f"--features {folder}: no such directory; make it with «mgc preprocess --out {folder}»")
        manifest = read_manifest(folder)
        if manifest is None:
            raise InputError(f"--features {folder}: unfinished (no {MANIFEST}); run the same «mgc preprocess» again")
        return cls(folder, manifest)

    def table(self, entry: ShardEntry, columns: list[str]) -> pa.Table:
        """Some columns of a shard.

        Raises
        ------
        InputError
            The shard is gone or not what the manifest says.
        """
        try:
            with self.folder.random_access(entry.file) as file:
                table = pq.read_table(file, columns=columns)
        except StoreError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise InputError(
                f"{self.folder}/{entry.file}: cannot be read ({first_line(error)}); preprocess again"
            ) from None
        if len(table) != entry.rows:
            raise InputError(f"{self.folder}/{entry.file}: {len(table)} rows, the manifest says {entry.rows}")
        return table


def logmels(table: pa.Table, shape: tuple[int, int]) -> NDArray[np.float16]:
    """The matrices of a shard's ``logmel`` column as one array [shape=(rows, *shape)]."""
    column = table["logmel"].combine_chunks()
    if len(column) == 0:
        return np.empty((0, *shape), np.float16)
    values = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    offsets = np.frombuffer(values.buffers()[1], np.int32)[values.offset : values.offset + len(values) + 1]
    data = np.frombuffer(values.buffers()[2], "<f2", offset=offsets[0], count=(offsets[-1] - offsets[0]) // 2)
    return data.reshape(len(values), *shape)


def parquet_bytes(table: pa.Table) -> pa.Buffer:
    """A table as the bytes of a Parquet file; the same table gives the same bytes."""
    stream = pa.BufferOutputStream()
    pq.write_table(table, stream, compression="zstd", use_dictionary=["split", "genre"])
    return stream.getvalue()


def read_manifest(folder: Folder) -> Manifest | None:
    """The manifest of a set, or None while the set is unfinished.

    Raises
    ------
    InputError
        The file is there and is not a manifest of this format.
    """
    file = f"{folder}/{MANIFEST}"
    try:
        manifest = Manifest.from_json(folder.read(MANIFEST).decode())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except StoreError:
        raise
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file}: not a manifest ({error}); choose another folder or delete it") from None
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    return manifest


def card(manifest: Manifest) -> str:
    """The set's README: what is inside and how others read it."""
    splits = list(manifest.clips)
    header = "| genre | " + " | ".join(splits) + " |\n|---|" + "---:|" * len(splits)
    table = "\n".join(
        f"| {genre} | " + " | ".join(str(manifest.clips[split].get(genre, 0)) for split in splits) + " |"
        for genre in manifest.genres
    )
    bands, frames = manifest.spec.shape
    quarantine = ", ".join(f"{count} {reason}" for reason, count in manifest.quarantined.items()) or "none"
    split_names = ", ".join(f'"{split}"' for split in splits if sum(manifest.clips[split].values()))
    spec = "\n".join(f"- {name}: {value}" for name, value in manifest.recipe["spec"].items())
    return f"""# Log-Mel feature set

Z-scored log-Mel spectrograms, {bands} bands × {frames} frames, made by mgc.

{header}
{table}

In quarantine (`{QUARANTINE}`): {quarantine}.

## Recipe
{spec}
- decoder: {manifest.recipe["decoder"]}
- fingerprint: `{manifest.fingerprint}`

## Reading it
`logmel` holds {bands} × {frames} little-endian float16 values in C order; dB = value × `std_db` + `mean_db`.
Run these lines in this folder.

pyarrow:
```python
import numpy as np, pyarrow.parquet as pq
table = pq.read_table("shards")
first = np.frombuffer(table["logmel"][0].as_py(), "<f2").reshape({bands}, {frames})
```

DuckDB:
```python
import duckdb
duckdb.sql("SELECT split, genre, count(*) AS clips FROM 'shards/*.parquet' GROUP BY ALL ORDER BY ALL").show()
```

polars:
```python
import numpy as np, polars as pl
frame = pl.read_parquet("shards/*.parquet")
first = np.frombuffer(frame["logmel"][0], "<f2").reshape({bands}, {frames})
```

Hugging Face datasets:
```python
import numpy as np, datasets
files = {{split: f"shards/{{split}}-*.parquet" for split in ({split_names})}}
data = datasets.load_dataset("parquet", data_files=files)
first = np.frombuffer(data["training"][0]["logmel"], "<f2").reshape({bands}, {frames})
```

pandas:
```python
import numpy as np, pandas as pd
frame = pd.read_parquet("shards")
first = np.frombuffer(frame["logmel"][0], "<f2").reshape({bands}, {frames})
```
"""  # noqa: S608 (the DuckDB line is prose)
