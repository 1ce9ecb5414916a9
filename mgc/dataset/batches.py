"""The order of an epoch, its batches, and how they come to the device: from there, from memory, or from shards.

All three give the same batches: an epoch's order goes through the shards in groups, in each of which clips are
shuffled. A set of up to ``clips.GROUP`` shards is one group, which is an ordinary shuffle.

Shape suffixes: N clips, B clips in a batch, F mel bands, T frames, K windows, D values of a vector.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mgc.dataset.clips import GROUP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from mgc.dataset.clips import Clips

AHEAD = 2
"""Batches that are read and sent before they are due."""
PIECE = 256
"""Clips, 84 MB, that are moved to a device at a time where all of them go there."""


class Feed:
    """Spectrograms and labels of clips for one device.

    Parameters
    ----------
    clips
        In memory or in their shards.
    device
        Where batches are wanted.
    resident
        Move all clips to the device now (on the CPU, in memory they are there); else batch by batch, read and sent by
        a thread ahead of the training step.
    """

    def __init__(self, clips: Clips, device: torch.device | str, *, resident: bool) -> None:
        self.device = torch.device(device)
        if self.device.type == "cuda":  # by number: to the thread that sends batches, «cuda» is the first GPU
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.labels_N = torch.from_numpy(clips.labels_N.copy()).to(self.device)
        self.taught_NKD = (
            None if clips.taught_NKD is None else torch.from_numpy(clips.taught_NKD.copy()).to(self.device)
        )
        """What a teacher says of the clips, if there is one."""
        self.shape = clips.mel_NFT.shape
        self._host = _as_tensor(clips.mel_NFT) if isinstance(clips.mel_NFT, np.ndarray) else clips.mel_NFT
        self.mel_NFT = self._moved() if resident else None
        """The spectrograms, where they live on the device."""
        self._copies = None if resident or self.device.type != "cuda" else torch.cuda.Stream(self.device)

    def read(self, batches: Iterable[NDArray[np.int64]]) -> Iterator[Tensor]:
        """Yield the spectrograms of batches.

        Parameters
        ----------
        batches
            Rows of each batch [shape=(B,), dtype=int64].

        Yields
        ------
        torch.Tensor [shape=(B, F, T), dtype=float16]
            On the device.

        Raises
        ------
        InputError
            A shard is gone or not what the manifest says.
        """
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
        """Read a batch and start to send it to a GPU on a stream of its own; the function returned waits for it."""
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


def order(clips: Clips, rows: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """Shuffle rows for an epoch: shards in random groups, the clips of a group shuffled.

    Parameters
    ----------
    clips
        Say which shard each clip is in.
    rows
        Those of the epoch [shape=(N,), dtype=int64].
    seed, epoch
        Decide the order.

    Returns
    -------
    np.ndarray [shape=(N,), dtype=int64]
        The rows in their new order.
    """
    random = np.random.default_rng([seed, epoch])
    shards = random.permutation(np.unique(clips.shards_N[rows]))
    groups = [shards[start : start + GROUP] for start in range(0, len(shards), GROUP)]
    return np.concatenate([random.permutation(rows[np.isin(clips.shards_N[rows], group)]) for group in groups])


def batches(rows: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Cut rows into as few batches of at most ``size`` as there can be, whose sizes differ by one at most.

    A short batch left over at the end would make a step as long as the others along the gradient of a few clips: with
    one clip an epoch that costs several points of accuracy (docs/log.md).

    Parameters
    ----------
    rows
        Rows [shape=(N,)].
    size
        The most rows of a batch.
    """
    return np.array_split(rows, math.ceil(len(rows) / size)) if len(rows) else []
