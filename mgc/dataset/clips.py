"""The clips of a feature set, for learning: what is known of each in memory, the spectrograms there too or in shards.

Shape suffixes: N clips, B of them, F mel bands, T frames.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mgc.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mgc.features.feature_set import FeatureSet, ShardEntry

GROUP = 16
"""Shards that are open at a time: an epoch takes its clips from so many before it goes on to others."""


class ShardedMel:
    """Spectrograms that stay in their shards, like an array [shape=(N, F, T), dtype=float16] that is read by rows.

    The last ``2 * GROUP`` shards read are kept, so rows that come group by group are read once.
    """

    def __init__(self, feature_set: FeatureSet, entries: Sequence[ShardEntry]) -> None:
        self._feature_set = feature_set
        self._entries = list(entries)
        self._starts = np.cumsum([0, *(entry.rows for entry in entries)])
        self._read: OrderedDict[int, NDArray[np.float16]] = OrderedDict()
        self.shape = (int(self._starts[-1]), *feature_set.manifest.spec.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows_B: NDArray[np.int64]) -> NDArray[np.float16]:
        """The spectrograms of some rows [shape=(B, F, T)]."""
        out = np.empty((len(rows_B), *self.shape[1:]), np.float16)
        shards_B = np.searchsorted(self._starts, rows_B, side="right") - 1
        for shard in np.unique(shards_B):
            here = shards_B == shard
            out[here] = self._shard(int(shard))[rows_B[here] - self._starts[shard]]
        return out

    def _shard(self, shard: int) -> NDArray[np.float16]:
        if shard not in self._read:
            self._read[shard] = _matrices(self._feature_set, self._entries[shard])
            if len(self._read) > 2 * GROUP:
                self._read.popitem(last=False)
        self._read.move_to_end(shard)
        return self._read[shard]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_read": OrderedDict()}


@dataclass(frozen=True)
class Clips:
    """Clips of some splits, ordered by split, shard and row."""

    mel_NFT: NDArray[np.float16] | ShardedMel
    """Z-scored log-Mel spectrograms."""
    labels_N: NDArray[np.int64]
    track_ids_N: NDArray[np.int64]
    artists_N: NDArray[np.str_]
    """Ids; a clip without one is an artist of its own."""
    splits_N: NDArray[np.str_]
    """The split that the feature set has each clip in."""
    shards_N: NDArray[np.int64]
    """The shard that each clip is in, counted from 0."""
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels_N)

    def take(self, rows_B: NDArray[np.int64]) -> Clips:
        """Some of the clips, in memory."""
        return replace(
            self,
            mel_NFT=self.mel_NFT[rows_B],
            labels_N=self.labels_N[rows_B],
            track_ids_N=self.track_ids_N[rows_B],
            artists_N=self.artists_N[rows_B],
            splits_N=self.splits_N[rows_B],
            shards_N=self.shards_N[rows_B],
            paths=tuple(self.paths[row] for row in rows_B),
        )


def load(feature_set: FeatureSet, *splits: str, lazily: bool = False) -> Clips:
    """Read the clips of some splits: 330 kB each, or next to nothing if ``lazily``.

    Raises
    ------
    InputError
        A split has no clips, or a shard is gone or not what the manifest says.
    """
    for split in splits:
        if not any(entry.rows for entry in feature_set.manifest.shards if entry.split == split):
            raise InputError(f"--features {feature_set.folder}: no clips in split «{split}»")
    entries = [entry for split in splits for entry in feature_set.manifest.shards if entry.split == split]
    tables = [feature_set.table(entry, ["label", "track_id", "artist_id", "path"]) for entry in entries]
    label, track_id, artist_id, path = (
        [value for table in tables for value in table[name].to_pylist()]
        for name in ("label", "track_id", "artist_id", "path")
    )
    mel: NDArray[np.float16] | ShardedMel = ShardedMel(feature_set, entries)
    if not lazily:
        mel = np.empty(mel.shape, np.float16)
        start = 0
        for entry in entries:
            mel[start : start + entry.rows] = _matrices(feature_set, entry)
            start += entry.rows
    rows = [entry.rows for entry in entries]
    return Clips(
        mel,
        np.array(label, np.int64),
        np.array(track_id, np.int64),
        np.array([a or f"track {t}" for a, t in zip(artist_id, track_id, strict=True)], np.str_),
        np.repeat([entry.split for entry in entries], rows),
        np.repeat(np.arange(len(entries)), rows),
        tuple(path),
    )


def _matrices(feature_set: FeatureSet, entry: ShardEntry) -> NDArray[np.float16]:
    """The spectrograms of one shard [shape=(rows, F, T)]."""
    from mgc.features.feature_set import logmels  # here: where clips are arrays already, learning needs no pyarrow

    try:
        return logmels(feature_set.table(entry, ["logmel"]), feature_set.manifest.spec.shape)
    except (ValueError, TypeError) as error:
        raise InputError(f"{feature_set.folder}/{entry.file}: {error}") from None
