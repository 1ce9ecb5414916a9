"""How clips come to the device: all of them at once, or read from their shards as they are wanted.

Both give the same batches: an epoch's order goes through the shards in groups, in each of which clips are shuffled.
A set of up to ``clips.GROUP`` shards is one group, which is an ordinary shuffle.

Shape suffixes: N clips, B clips in a batch, F mel bands, T frames.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mgc.clips import GROUP, Clips, ShardedMel

AHEAD = 2
"""Batches that are read from shards before they are wanted."""


class Feed:
    """Spectrograms and labels of clips for one device."""

    def __init__(self, clips: Clips, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.labels_N = torch.from_numpy(clips.labels_N.copy()).to(device)
        self._mel = clips.mel_NFT if isinstance(clips.mel_NFT, ShardedMel) else self._resident(clips.mel_NFT)

    def read(self, batches: Iterable[NDArray[np.int64]]) -> Iterator[Tensor]:
        """The spectrograms of one batch of rows after the other [shape=(B, F, T), dtype=float16]."""
        mel = self._mel
        if isinstance(mel, Tensor):
            for rows in batches:
                yield mel[torch.from_numpy(rows).to(self.device)]
            return
        with ThreadPoolExecutor(1) as reader:
            waiting: deque[Future[NDArray[np.float16]]] = deque()
            for rows in batches:
                waiting.append(reader.submit(mel.__getitem__, rows))
                if len(waiting) > AHEAD:
                    yield torch.from_numpy(waiting.popleft().result()).to(self.device)
            while waiting:
                yield torch.from_numpy(waiting.popleft().result()).to(self.device)

    def _resident(self, mel_NFT: NDArray[np.float16]) -> Tensor:
        with warnings.catch_warnings():
            # arrays from Ray's object store are read-only; nothing here writes to them
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(mel_NFT).to(self.device)


def order(clips: Clips, rows: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """The rows as an epoch takes them: shards in random groups, the clips of a group shuffled."""
    random = np.random.default_rng([seed, epoch])
    shards = random.permutation(np.unique(clips.shards_N[rows]))
    groups = [shards[start : start + GROUP] for start in range(0, len(shards), GROUP)]
    return np.concatenate([random.permutation(rows[np.isin(clips.shards_N[rows], group)]) for group in groups])


def batches(rows: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Cut rows into as few batches of at most ``size`` as there can be, all as long as each other but for one row.

    What is left over at the end would be a step as long as the others, along the gradient of a few clips: with one clip
    an epoch it costs several points of accuracy (docs/log.md).
    """
    return np.array_split(rows, math.ceil(len(rows) / size)) if len(rows) else []
