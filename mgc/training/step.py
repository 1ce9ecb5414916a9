"""One step of training, from the clips of a batch to updated weights: run eagerly, or recorded as a CUDA graph.

On a GPU a network this small can take less time than launching its some 150 kernels one by one. With CUDA graphs a step
is recorded after some eager ones, and then launched as one. All that differs from step to step must therefore be on the
device: order, draws and learning rates of an epoch are sent there once, and a step finds its place in them by a counter
that lives there too. Nothing comes back before the epoch is over.

Shape suffixes: N clips in an epoch, S steps in it, B clips in a batch, F mel bands, T frames, W frames of a window,
G genres, D values of a teacher's vector, X of logits and vector.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from mgc.dataset import augment
from mgc.model.student import distance, said_of
from mgc.training.distributed import rank_and_world
from mgc.training.optim import update_average

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from mgc.config import TrainConfig
    from mgc.dataset.batches import Feed
    from mgc.training.cuda_graphs import CudaGraphs
    from mgc.training.optim import Learner

WARM_UP = 3
"""Eager steps of each size before it is recorded: libraries choose their kernels, Adam makes its moments."""


@dataclass(frozen=True)
class EpochPlan:
    """Order, augmentations and learning rates of an epoch."""

    epoch: int
    """From 1."""
    rows_N: NDArray[np.int64]
    """Clips in the order they are taken."""
    draws: augment.Draws
    """Augmentations, by place in the order."""
    rates: list[float]
    """Learning rate of each step."""


class TrainStep:
    """The training step of a fit: one call learns from one batch.

    Parameters
    ----------
    learner
        Model, optimiser and EMA weights.
    feed
        Clips and labels, for the device of the model.
    config
        Of the fit.
    graphs
        CUDA-graph recorder; None runs eagerly. Ranks that share a batch run eagerly.
    """

    def __init__(self, learner: Learner, feed: Feed, config: TrainConfig, graphs: CudaGraphs | None = None) -> None:
        self.learner, self.feed, self.config = learner, feed, config
        rank, self._world = rank_and_world()
        self.mine = slice(rank, None, self._world)
        """Which clips of a batch are this rank's."""
        self.mixing = config.augment.mixup_alpha > 0
        """Clips are mixed (mixup), for which each rank needs those of the whole batch."""
        self._module = DistributedDataParallel(learner.model) if self._world > 1 else learner.model
        self._graphs = graphs if self._world == 1 else None
        self._seen: Counter[int] = Counter()
        self._held: dict[int, Tensor] = {}
        self._replays: dict[int, Callable[[], None]] = {}
        # on a GPU a learning rate is a tensor, which a recorded step can change
        self._on_device = isinstance(learner.optimizer.param_groups[0]["lr"], Tensor)
        self._average_begins = learner.averaged is not None and int(learner.averaged.n_averaged) == 0
        self._rows_N: Tensor | None = None
        self.ahead: EpochPlan | None = None
        """The next epoch's plan, made while the device was busy with the last one."""

    def start_epoch(self, plan: EpochPlan) -> None:
        """Send an epoch's plan to the device, put the sums to zero and the model into training mode.

        Parameters
        ----------
        plan
            Of the epoch whose batches come next.
        """
        device = self.feed.device
        rows_N, draws, rates_S = torch.from_numpy(plan.rows_N), plan.draws, torch.tensor(plan.rates)
        self._rates = plan.rates
        if self._rows_N is None:
            self._rows_N = rows_N.to(device, copy=True)
            self._draws, self._rates_S = draws.to(device), rates_S.to(device)
            self._place, self._count = (torch.zeros(1, dtype=torch.int64, device=device) for _ in range(2))
            self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        else:  # in the same memory, where a recorded step looks for them
            self._rows_N.copy_(rows_N)
            self._draws.take_over(draws)
            self._rates_S.copy_(rates_S)
        for counter in (self._place, self._count, self._sums):
            counter.zero_()
        self._done = 0
        self._module.train()

    def __call__(self, size: int, mel_BFT: Tensor | None = None) -> None:
        """Learn from the next clips of the epoch.

        Parameters
        ----------
        size
            Number of clips in the batch, over all ranks.
        mel_BFT
            Their spectrograms [shape=(B, F, T), dtype=float16] where they do not live on the device: this rank's alone,
            or with mixup those of the whole batch.
        """
        if not self._on_device:
            for group in self.learner.optimizer.param_groups:
                group["lr"] = self._rates[self._done] * group.get("share", 1.0)
        if self._graphs:
            self._recorded(self._graphs, size, mel_BFT)
        else:
            self._learn(size, mel_BFT)
        self._done += 1
        if self.learner.averaged:
            self.learner.averaged.n_averaged += 1  # on the CPU, where torch has it
            self._average_begins = False

    @property
    def sums(self) -> Tensor:
        """Sum of the losses and number of right clips, of this rank's so far [shape=(2,), float64, on the device]."""
        return self._sums.clone()

    def _recorded(self, graphs: CudaGraphs, size: int, mel_BFT: Tensor | None) -> None:
        """Replay the step; the first ones of each batch size run eagerly, the next is recorded."""
        if mel_BFT is not None:
            if size not in self._held:
                self._held[size] = torch.empty_like(mel_BFT)
            mel_BFT = self._held[size].copy_(mel_BFT)
        if size not in self._replays:
            body = partial(self._learn, size, mel_BFT)
            self._seen[size] += 1
            if self._seen[size] <= WARM_UP:
                return graphs.warm_up(body)
            self._replays[size] = graphs.record(body)
        return self._replays[size]()

    def _learn(self, size: int, mel_BFT: Tensor | None) -> None:
        """The step itself: it never waits for the device, and reads nothing on the host that differs between steps."""
        config, optim, learner = self.config, self.config.optim, self.learner
        assert self._rows_N is not None
        places_B = self._place + torch.arange(size, device=self._place.device)
        own_B = places_B[self.mine]
        if mel_BFT is None:
            assert self.feed.mel_NFT is not None
            mel_BFT = self.feed.mel_NFT[self._rows_N[places_B if self.mixing else own_B]]
        if self._on_device:
            for group in learner.optimizer.param_groups:
                group["lr"].copy_(self._rates_S[self._count].squeeze() * group.get("share", 1.0))
        mel_BFW, shares_B = augment.training_batch(mel_BFT, config, self._draws, places_B, self.mine)
        target_B = self.feed.labels_N[self._rows_N[own_B]]
        with torch.autocast(mel_BFW.device.type, torch.bfloat16, enabled=optim.precision == "bfloat16"):
            output_BX = self._module(mel_BFW.unsqueeze(1)).float()
        logits_BG, guess_BD = output_BX.tensor_split([learner.model.linear.out_features], 1)
        loss_B = _cross_entropy(logits_BG, target_B, optim.label_smoothing)
        if self.mixing:
            partner_B = self.feed.labels_N[self._rows_N[self._draws.partners_N[own_B]]]
            loss_B = torch.lerp(_cross_entropy(logits_BG, partner_B, optim.label_smoothing), loss_B, shares_B)
        if self.feed.taught_NKD is not None:
            loss_B = loss_B + optim.teacher_weight * distance(guess_BD, self._said(own_B, shares_B))
        local = loss_B.sum()
        learner.optimizer.zero_grad(set_to_none=True)
        # DDP means over ranks; with this factor the sum is the mean over the whole batch, however it is shared
        (local * (self._world / size)).backward()
        if optim.clip_norm:
            nn.utils.clip_grad_norm_(learner.model.parameters(), optim.clip_norm)
        learner.optimizer.step()
        if learner.averaged:
            update_average(learner.averaged, learner.model, first=self._average_begins)
        self._sums += torch.stack([local.detach(), (logits_BG.detach().argmax(1) == target_B).sum()])
        self._place += size
        self._count += 1

    def _said(self, own_B: Tensor, shares_B: Tensor) -> Tensor:
        """What the teacher says of this rank's clips [shape=(B, D)]; of mixed ones, mixed."""
        assert self._rows_N is not None
        assert self.feed.taught_NKD is not None
        taught_NKD, frames = self.feed.taught_NKD, self.feed.shape[2]
        last = frames - (self.config.crop or frames)

        def said(places_B: Tensor) -> Tensor:
            return said_of(taught_NKD[self._rows_N[places_B]], self._draws.starts_N[places_B], last)

        said_BD = said(own_B)
        return torch.lerp(said(self._draws.partners_N[own_B]), said_BD, shares_B[:, None]) if self.mixing else said_BD


def _cross_entropy(logits_BG: Tensor, target_B: Tensor, smoothing: float) -> Tensor:
    return functional.cross_entropy(logits_BG, target_B, label_smoothing=smoothing, reduction="none")
