"""Reading a finished feature set: as Parquet tables, arrays, a torch data set or a pandas data frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from mgc.collection.licences import UNKNOWN
from mgc.core.errors import InputError, StoreError, first_line
from mgc.core.storage import Folder
from mgc.features.layout import MANIFEST, SCHEMA, Manifest, ShardEntry, read_manifest, read_table, storage_failure
from mgc.features.reader import MelDataset

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray


@dataclass(frozen=True)
class FeatureSet:
    """A finished feature set.

    Examples
    --------
    >>> features = FeatureSet.open("features")
    >>> features.to_pandas().groupby(["split", "genre"]).size()
    >>> loader = torch.utils.data.DataLoader(features.torch_dataset("training"), batch_size=32)
    """

    folder: Folder
    manifest: Manifest

    @classmethod
    def open(cls, features: str | Path | Folder | FeatureSet) -> FeatureSet:
        """Open a feature set by its manifest.

        Parameters
        ----------
        features
            Folder of the set: a path, or the URI of a folder in an object store. A FeatureSet is returned as it is.

        Raises
        ------
        InputError
            There is no such directory, the set is unfinished, or the manifest is not one.
        RunError
            The disk or the object store cannot be read.
        """
        if isinstance(features, FeatureSet):
            return features
        folder = Folder.at(features)
        if folder.kind() != "folder":
            raise InputError(f"`features={folder}`: no such directory; make it with «mgc preprocess»")
        manifest = read_manifest(folder)
        if manifest is None:
            raise InputError(f"`features={folder}`: unfinished (no {MANIFEST}); run the same «mgc preprocess» again")
        return cls(folder, manifest)

    def table(self, entry: ShardEntry, columns: list[str]) -> pa.Table:
        """Read some columns of a shard.

        Parameters
        ----------
        entry
            The shard, one of ``manifest.shards``.
        columns
            Names of columns of ``SCHEMA``. A ``license`` that the shard lacks is ``unknown``.

        Raises
        ------
        InputError
            The shard is gone or not what the manifest says.
        RunError
            The disk or the object store cannot be read.
        """
        file = f"{self.folder}/{entry.file}"
        try:
            with self.folder.random_access(entry.file) as stream:
                table = read_table(stream, columns)
            if "license" in columns and "license" not in table.column_names:
                table = table.append_column("license", pa.array([UNKNOWN] * len(table), pa.string()))
            table = table.select(columns)
            other = [name for name in columns if table.schema.field(name).type != SCHEMA.field(name).type]
            if other or any(table[name].null_count for name in columns if name != "artist_id"):
                raise ValueError(f"{', '.join(other)} of another type" if other else "values are missing")
        except (OSError, StoreError, pa.ArrowException, KeyError, ValueError) as error:
            raise storage_failure(file, error) or InputError(
                f"{file}: cannot be read ({first_line(error)}); preprocess again"
            ) from None
        if len(table) != entry.rows:
            raise InputError(f"{file}: {len(table)} rows, the manifest says {entry.rows}")
        return table

    def spectrograms(self, entry: ShardEntry, table: pa.Table | None = None) -> NDArray[np.float16]:
        """Read the scaled log-Mel spectrograms of a shard [shape=(rows, n_mels, n_frames)].

        Parameters
        ----------
        entry
            The shard.
        table
            Its rows, where the column ``logmel`` is read already.

        Raises
        ------
        InputError
            As ``table``.
        """
        try:
            return logmels(self.table(entry, ["logmel"]) if table is None else table, self.manifest.spec.shape)
        except (ValueError, TypeError, KeyError) as error:  # another size, another type, no such column
            raise InputError(f"{self.folder}/{entry.file}: {error}") from None

    def torch_dataset(self, split: str, *, in_memory: bool = False) -> MelDataset:
        """Give the clips of a split as a map-style data set for ``torch.utils.data.DataLoader``.

        Parameters
        ----------
        split
            ``"training"``, ``"validation"`` or ``"test"``.
        in_memory
            Read all spectrograms now, 330 kB each by default: for shuffled reading of more than 32 shards.

        Returns
        -------
        MelDataset
            Items are ``(np.ndarray [shape=(n_mels, n_frames), dtype=float32], int)``: spectrogram and label.

        Raises
        ------
        InputError
            The split has no clips, or a shard is gone or not what the manifest says.
        """
        return MelDataset(self, split, in_memory=in_memory)

    def to_pandas(self, *, spectrograms: bool = False) -> pd.DataFrame:
        """Give the clips as a data frame, one row a clip, in the order of the shards.

        Parameters
        ----------
        spectrograms
            Whether to add the column ``logmel`` of arrays [shape=(n_mels, n_frames), dtype=float16], 330 kB each by
            default.

        Returns
        -------
        pandas.DataFrame
            The other columns of ``SCHEMA``: ``track_id, split, genre, label, artist_id, path, license, source_sha1,
            seconds, promised_seconds, damaged, padded, mean_db, std_db``.
        """
        names = [name for name in SCHEMA.names if name != "logmel"]
        tables = [self.table(entry, names).replace_schema_metadata(None) for entry in self.manifest.shards]
        frame = pa.concat_tables([SCHEMA.empty_table().select(names), *tables]).to_pandas()
        if spectrograms:
            z_NFT = (z_FT for entry in self.manifest.shards for z_FT in self.spectrograms(entry))
            frame["logmel"] = np.fromiter(z_NFT, object, len(frame))
        return frame


def logmels(table: pa.Table, shape: tuple[int, int]) -> NDArray[np.float16]:
    """Give the spectrograms of a table as one array, without copying.

    Parameters
    ----------
    table
        Rows of a shard, with the column ``logmel``.
    shape
        ``(n_mels, n_frames)`` of each.

    Returns
    -------
    np.ndarray [shape=(rows, n_mels, n_frames), dtype=float16]
        Z-scored log-Mel spectrograms.

    Raises
    ------
    ValueError
        The bytes of the rows are not so many spectrograms of this shape.
    """
    column = table["logmel"].combine_chunks()
    if len(column) == 0:
        return np.empty((0, *shape), np.float16)
    values = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    offsets = np.frombuffer(values.buffers()[1], np.int32)[values.offset : values.offset + len(values) + 1]
    data = np.frombuffer(values.buffers()[2], "<f2", offset=offsets[0], count=(offsets[-1] - offsets[0]) // 2)
    return data.reshape(len(values), *shape)
