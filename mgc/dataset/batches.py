"""How clips come to the device: they live there, or batches are sent from memory, or read from their shards and sent.

All three give the same batches: an epoch's order goes through the shards in groups, in each of which clips are
shuffled. A set of up to ``clips.GROUP`` shards is one group, which is an ordinary shuffle.

Shape suffixes: N clips, B clips in a batch, F mel bands, T frames.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mgc.config import TrainConfig
from mgc.dataset.clips import GROUP, Clips, ShardedMel

AHEAD = 2
"""Batches that are read and sent before they are wanted."""
PIECE = 256
"""Clips, 84 MB, that are moved to a device at a time where all of them go there."""
SHARE_OF_DEVICE = 0.8
"""Of a GPU's free memory: the most that clips and a step may take together."""
STEP_MAPS = 16
"""What a step takes for each clip, in the values of its first feature map, float32: 5 to 11 were seen on the CPU."""
JUDGED_ON_GPU = 64
"""Clips that are evaluated at a time on a GPU: their first feature map, 0.7 GB, keeps it busy for far longer than
launching a kernel takes, so more would take memory and save nothing."""


class Feed:
    """Spectrograms and labels of clips for one device.

    Parameters
    ----------
    resident
        All clips live on the device. By default they do but for those in shards.
    """

    def __init__(self, clips: Clips, device: torch.device | str, *, resident: bool | None = None) -> None:
        self.device = torch.device(device)
        if self.device.type == "cuda":  # by number: to the thread that sends batches, «cuda» is the first GPU
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.labels_N = torch.from_numpy(clips.labels_N.copy()).to(self.device)
        self.shape = clips.mel_NFT.shape
        resident = not isinstance(clips.mel_NFT, ShardedMel) if resident is None else resident
        self._host = clips.mel_NFT if isinstance(clips.mel_NFT, ShardedMel) else _as_tensor(clips.mel_NFT)
        self.mel_NFT = self._moved() if resident else None
        """The spectrograms, where they live on the device."""
        self._copies = None if resident or self.device.type != "cuda" else torch.cuda.Stream(self.device)

    def read(self, batches: Iterable[NDArray[np.int64]]) -> Iterator[Tensor]:
        """The spectrograms of one batch of rows after the other [shape=(B, F, T), dtype=float16]."""
        if self.mel_NFT is not None:
            parts = list(batches)
            rows = torch.from_numpy(np.concatenate(parts)) if parts else torch.empty(0, dtype=torch.int64)
            for rows_B in rows.to(self.device).split([len(part) for part in parts]):  # sent once, not batch by batch
                yield self.mel_NFT[rows_B]
            return
        with ThreadPoolExecutor(1) as reader:
            waiting: deque[Future[Callable[[], Tensor]]] = deque()
            for rows_here in batches:
                waiting.append(reader.submit(self._send, rows_here))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()()
            while waiting:
                yield waiting.popleft().result()()

    def _send(self, rows: NDArray[np.int64]) -> Callable[[], Tensor]:
        """Read a batch and, to a GPU, begin to send it beside the work there; what is returned has it arrive."""
        copies = self._copies
        if copies is None:
            mel_BFT = self._read(rows)
            return lambda: mel_BFT
        with torch.cuda.stream(copies):
            pinned_BFT = torch.empty((len(rows), *self.shape[1:]), dtype=torch.float16, pin_memory=True)
            sent_BFT = self._read(rows, pinned_BFT).to(self.device, non_blocking=True)
            sent = copies.record_event()

        def arrive() -> Tensor:
            now = torch.cuda.current_stream(self.device)
            now.wait_event(sent)
            sent_BFT.record_stream(now)
            return sent_BFT

        return arrive

    def _read(self, rows: NDArray[np.int64], out: Tensor | None = None) -> Tensor:
        """Some rows from memory or their shards, on the host."""
        if isinstance(self._host, Tensor):
            return torch.index_select(self._host, 0, torch.from_numpy(rows), out=out)
        mel_BFT = torch.from_numpy(self._host[rows])
        return mel_BFT if out is None else out.copy_(mel_BFT)

    def _moved(self) -> Tensor:
        """All clips on the device, moved there piece by piece."""
        if isinstance(self._host, Tensor) and self.device.type == "cpu":
            return self._host
        there_NFT = torch.empty(self.shape, dtype=torch.float16, device=self.device)
        for start in range(0, self.shape[0], PIECE):
            rows = np.arange(start, min(start + PIECE, self.shape[0]))
            there_NFT[start : start + PIECE] = self._read(rows).to(self.device)
        return there_NFT


def _as_tensor(mel_NFT: NDArray[np.float16]) -> Tensor:
    with warnings.catch_warnings():
        # arrays from Ray's object store are read-only; nothing here writes to them
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(mel_NFT)


def fits_device(shape: tuple[int, ...], config: TrainConfig, free: int) -> bool:
    """Whether clips [shape=(N, F, T)] can live on a GPU with so many bytes free, beside what a fit's step takes."""
    clips, bands, frames = shape
    first_map = 4 * config.model.channels[0] * bands
    learning = STEP_MAPS * config.optim.batch_size * first_map * (config.model.window or frames)
    judging = 4 * JUDGED_ON_GPU * first_map * frames  # nothing is kept for a backward pass
    return 2 * clips * bands * frames + max(learning, judging) <= SHARE_OF_DEVICE * free


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
