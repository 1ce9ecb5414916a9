"""Reading spectrograms by row from the shards of a feature set; numpy alone at import.

Shape suffixes: N clips, B of them, F mel bands, T frames.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from mgc.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mgc.features.feature_set import FeatureSet
    from mgc.features.layout import ShardEntry

KEPT = 32
"""Shards kept in memory: 21 MB each with 64 clips of the default log-Mel."""


class ShardedMel:
    """Spectrograms that stay in their shards, indexed by rows like an array [shape=(N, F, T), dtype=float16].

    A shard is read when one of its rows is first wanted; the shards used last are kept in memory, so that rows which
    come shard by shard, or by groups of at most ``kept`` shards, cost one reading of each.

    Parameters
    ----------
    feature_set
        The finished feature set.
    entries
        Its shards to index, in order: row 0 is the first row of the first one.
    kept
        Shards kept in memory.
    """

    def __init__(self, feature_set: FeatureSet, entries: Sequence[ShardEntry], *, kept: int = KEPT) -> None:
        self._feature_set = feature_set
        self._entries = list(entries)
        self._starts = np.cumsum([0, *(entry.rows for entry in entries)])
        self._kept = kept
        self._shards: OrderedDict[int, NDArray[np.float16]] = OrderedDict()
        self.shape = (int(self._starts[-1]), *feature_set.manifest.spec.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows_B: NDArray[np.int64]) -> NDArray[np.float16]:
        """Read the spectrograms of some rows [shape=(B, F, T)]."""
        out_BFT = np.empty((len(rows_B), *self.shape[1:]), np.float16)
        shards_B = np.searchsorted(self._starts, rows_B, side="right") - 1
        for shard in np.unique(shards_B):
            here_B = shards_B == shard
            out_BFT[here_B] = self._shard(int(shard))[rows_B[here_B] - self._starts[shard]]
        return out_BFT

    def _shard(self, shard: int) -> NDArray[np.float16]:
        if shard not in self._shards:
            self._shards[shard] = self._feature_set.spectrograms(self._entries[shard])
            if len(self._shards) > self._kept:
                self._shards.popitem(last=False)
        self._shards.move_to_end(shard)
        return self._shards[shard]

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the shards in memory: each process of a data loader reads its own."""
        return self.__dict__ | {"_shards": OrderedDict()}


class MelDataset:
    """The clips of one split as a map-style data set, as ``torch.utils.data.DataLoader`` takes it.

    Item ``i`` is ``(z_FT, label)``: the z-scored log-Mel spectrogram [shape=(n_mels, n_frames), dtype=float32] and the
    index of its genre in ``genres``. A batch is read at once (``__getitems__``). It can be pickled for the workers of
    a loader (for a set in an object store start them with ``multiprocessing_context="spawn"``, because clients of
    object stores do not survive a fork). torch is not imported here.

    Parameters
    ----------
    feature_set
        The finished feature set.
    split
        ``"training"``, ``"validation"`` or ``"test"``.
    in_memory
        Read all spectrograms now (float16, 330 kB each by default) instead of each shard when it is wanted. A loader
        that shuffles takes clips from all shards at once: with more than ``KEPT`` of them, reading when wanted reads
        each shard many times an epoch.

    Raises
    ------
    InputError
        The split has no clips, or a shard is gone or not what the manifest says.
    """

    def __init__(self, feature_set: FeatureSet, split: str, *, in_memory: bool = False) -> None:
        entries = [entry for entry in feature_set.manifest.shards if entry.split == split and entry.rows]
        if not entries:
            raise InputError(f"`features={feature_set.folder}`: no clips in split «{split}»")
        tables = [feature_set.table(entry, ["label", "track_id"]) for entry in entries]
        self.genres = feature_set.manifest.genres
        """Names of the labels."""
        self.labels_N = np.concatenate([table["label"].to_numpy() for table in tables]).astype(np.int64)
        """Label of each clip."""
        self.track_ids_N = np.concatenate([table["track_id"].to_numpy() for table in tables])
        """Track id of each clip."""
        self._mel_NFT: ShardedMel | NDArray[np.float16] = ShardedMel(feature_set, entries)
        if in_memory:
            mel_NFT = np.empty(self._mel_NFT.shape, np.float16)
            start = 0
            for entry in entries:
                mel_NFT[start : start + entry.rows] = feature_set.spectrograms(entry)
                start += entry.rows
            self._mel_NFT = mel_NFT

    def __len__(self) -> int:
        return len(self.labels_N)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], int]:
        """Spectrogram [shape=(n_mels, n_frames)] and label of one clip."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[NDArray[np.float32], int]]:
        """Spectrograms and labels of several clips, each shard read once."""
        rows_B = np.asarray(indices, np.int64)
        if len(rows_B) and not (-len(self) <= rows_B.min() and rows_B.max() < len(self)):
            raise IndexError(f"indices {rows_B.min()} to {rows_B.max()} of {len(self)} clips")
        rows_B = rows_B % len(self)
        z_BFT = self._mel_NFT[rows_B].astype(np.float32)
        return list(zip(z_BFT, self.labels_N[rows_B].tolist(), strict=True))
