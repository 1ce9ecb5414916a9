"""The clips of a feature set for training and evaluation: labels and ids in memory, spectrograms there or in shards.

Shape suffixes: N clips, B of them, F mel bands, T frames.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

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
    encoder: dict[str, NDArray[Any]] | None = None
    """Weights of the pretrained encoder that the network is built on, by name: they travel to each worker."""

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def in_memory(self) -> bool:
        """Whether the spectrograms are in memory, and not in their shards."""
        return isinstance(self.mel_NFT, np.ndarray)

    def take(self, rows_B: NDArray[np.int64]) -> Clips:
        """Return some of the clips, in memory.

        Parameters
        ----------
        rows_B
            Which of them [shape=(B,), dtype=int64], in the order wanted.
        """
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
    """Read the clips of some splits.

    Parameters
    ----------
    feature_set
        A finished feature set.
    *splits
        ``training``, ``validation`` or ``test``.
    lazily
        Leave the spectrograms, 330 kB a clip, in their shards and read them as they are asked for.

    Raises
    ------
    InputError
        A split has no clips, or a shard is gone or not what the manifest says.
    """
    for split in splits:
        if not any(entry.rows for entry in feature_set.manifest.shards if entry.split == split):
            raise InputError(f"`features={feature_set.folder}`: no clips in split «{split}»")
    entries = feature_set.manifest.shards_of(*splits)
    columns = ("label", "track_id", "artist_id", "path")
    known: dict[str, list[Any]] = {name: [] for name in columns}
    sharded, start = ShardedMel(feature_set, entries, kept=2 * GROUP), 0
    mel_NFT = np.empty((0 if lazily else len(sharded), *sharded.shape[1:]), np.float16)
    for entry in entries:
        table = feature_set.table(entry, [*columns, *([] if lazily else ["logmel"])])
        for name, values in known.items():
            values += table[name].to_pylist()
        if not lazily:
            mel_NFT[start : start + entry.rows] = feature_set.spectrograms(entry, table)
            start += entry.rows
    rows = [entry.rows for entry in entries]
    artists = [a or f"track {t}" for a, t in zip(known["artist_id"], known["track_id"], strict=True)]
    return Clips(
        sharded if lazily else mel_NFT,
        np.array(known["label"], np.int64),
        np.array(known["track_id"], np.int64),
        np.array(artists, np.str_),
        np.repeat([entry.split for entry in entries], rows),
        np.repeat(np.arange(len(entries)), rows),
        tuple(known["path"]),
    )
