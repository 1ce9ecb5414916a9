"""The clips of a feature set, for learning: what is known of each in memory, the spectrograms there too or in shards.

Shape suffixes: N clips, B of them, F mel bands, T frames.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mgc.core.errors import InputError
from mgc.features.reader import ShardedMel as ShardedMel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mgc.features.feature_set import FeatureSet

GROUP = 16
"""Shards that are open at a time: an epoch takes its clips from so many before it goes on to others."""


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
    mel: NDArray[np.float16] | ShardedMel = ShardedMel(feature_set, entries, kept=2 * GROUP)
    if not lazily:
        mel = np.empty(mel.shape, np.float16)
        start = 0
        for entry in entries:
            mel[start : start + entry.rows] = feature_set.spectrograms(entry)
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
