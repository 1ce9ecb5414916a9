"""One step of training, from the clips of a batch to moved weights: launched piece by piece, or recorded and replayed.

On a GPU a network this small can take less time than launching its some 150 kernels one by one. A step is therefore
recorded as a CUDA graph once it has been seen to work, and then launched as one. That needs all that differs from step
to step to be on the device already: order, draws and learning rates of an epoch go there once, and a step finds its
place in them by a counter that lives there too. Nothing comes back before the epoch is over.

Shape suffixes: N clips in an epoch, S steps in it, B clips in a batch, F mel bands, T frames, W frames of a window,
G genres.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from mgc.config import TrainConfig
from mgc.core.errors import RunError, first_line
from mgc.dataset import augment
from mgc.dataset.batches import Feed
from mgc.training.distributed import rank_and_world

WARM_UP = 3
"""Steps of each size before it is recorded: libraries choose their kernels, Adam makes its moments."""


@dataclass
class Learner:
    """A network, and what moves it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    averaged: AveragedModel | None
    """The moving average of the weights, where there is one."""

    @property
    def judged(self) -> nn.Module:
        """What is validated and kept: the model, or its moving average."""
        return self.averaged.module if self.averaged else self.model


@dataclass(frozen=True)
class Plan:
    """What an epoch is to do."""

    epoch: int
    rows_N: NDArray[np.int64]
    """Its order."""
    draws: augment.Draws
    rates: list[float]
    """The learning rate of each step."""


class Graphs:
    """Records what a function has the GPU do. All recordings share their memory, so one is replayed at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._aside = torch.cuda.Stream(device)

    def warm_up(self, body: Callable[[], None]) -> None:
        """Do it once, on a stream that is not the default one, which cannot be recorded."""
        now = torch.cuda.current_stream(self._device)
        self._aside.wait_stream(now)
        with torch.cuda.stream(self._aside):
            body()
        now.wait_stream(self._aside)

    def record(self, body: Callable[[], None]) -> Callable[[], None]:
        """What does it again; the recording itself does nothing.

        Raises
        ------
        RunError
            Something in it cannot be recorded.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: the thread that sends batches goes on meanwhile
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                body()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RunError(f"a step cannot be recorded ({first_line(error)}); leave out --graphs") from error
        return graph.replay


class Step:
    """A fit's training step.

    Parameters
    ----------
    graphs
        What records steps; None launches each piece by piece. Not where ranks share a batch.
    """

    def __init__(self, learner: Learner, feed: Feed, config: TrainConfig, graphs: Graphs | None = None) -> None:
        self.learner, self.feed, self.config = learner, feed, config
        rank, self._world = rank_and_world()
        self.mine = slice(rank, None, self._world)
        """Which clips of a batch are this rank's."""
        self.mixing = config.augment.mixup_alpha > 0
        self._module = DistributedDataParallel(learner.model) if self._world > 1 else learner.model
        self._graphs = graphs if self._world == 1 else None
        self._seen: Counter[int] = Counter()
        self._held: dict[int, Tensor] = {}
        self._replays: dict[int, Callable[[], None]] = {}
        # on a GPU the learning rate is a tensor, which a recorded step can change
        on_gpu = [each["lr"] for each in learner.optimizer.param_groups if isinstance(each["lr"], Tensor)]
        self._rate: Tensor | None = on_gpu[0] if on_gpu else None
        for group in learner.optimizer.param_groups if on_gpu else []:
            group["lr"] = self._rate
        self._average_begins = learner.averaged is not None and int(learner.averaged.n_averaged) == 0
        self._rows_N: Tensor | None = None
        self.ahead: Plan | None = None
        """The next epoch's plan, made while the device was busy with the last one."""

    def begin(self, plan: Plan) -> None:
        """Bring an epoch's plan to the device."""
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
            How many they are, over all ranks.
        mel_BFT
            Their spectrograms where they do not live on the device; this rank's alone, but all where clips are mixed.
        """
        if self._rate is None:
            for group in self.learner.optimizer.param_groups:
                group["lr"] = self._rates[self._done]
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
        """Loss, and how many were right, over this rank's clips of the epoch so far [shape=(2,), on the device]."""
        return self._sums.clone()

    def _recorded(self, graphs: Graphs, size: int, mel_BFT: Tensor | None) -> None:
        """Do the step as it was recorded; the first ones of each size are done one by one, and then recorded."""
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
        """The step itself. It asks the device nothing, and reads nothing that differs from step to step on the host."""
        config, optim, learner = self.config, self.config.optim, self.learner
        assert self._rows_N is not None
        places_B = self._place + torch.arange(size, device=self._place.device)
        own_B = places_B[self.mine]
        if mel_BFT is None:
            assert self.feed.mel_NFT is not None
            mel_BFT = self.feed.mel_NFT[self._rows_N[places_B if self.mixing else own_B]]
        if self._rate is not None:
            self._rate.copy_(self._rates_S[self._count].squeeze())
        mel_BFW, shares_B = augment.training_batch(mel_BFT, config, self._draws, places_B, self.mine)
        target_B = self.feed.labels_N[self._rows_N[own_B]]
        with torch.autocast(mel_BFW.device.type, torch.bfloat16, enabled=optim.precision == "bfloat16"):
            logits_BG = self._module(mel_BFW.unsqueeze(1)).float()
        loss_B = _cross_entropy(logits_BG, target_B, optim.label_smoothing)
        if self.mixing:
            partner_B = self.feed.labels_N[self._rows_N[self._draws.partners_N[own_B]]]
            loss_B = torch.lerp(_cross_entropy(logits_BG, partner_B, optim.label_smoothing), loss_B, shares_B)
        local = loss_B.sum()
        learner.optimizer.zero_grad(set_to_none=True)
        # DDP means over ranks; with this factor the sum is the mean over the whole batch, however it is shared
        (local * (self._world / size)).backward()
        if optim.clip_norm:
            nn.utils.clip_grad_norm_(learner.model.parameters(), optim.clip_norm)
        learner.optimizer.step()
        if learner.averaged:
            _average(learner.averaged, learner.model, begins=self._average_begins)
        self._sums += torch.stack([local.detach(), (logits_BG.detach().argmax(1) == target_B).sum()])
        self._place += size
        self._count += 1


def _cross_entropy(logits_BG: Tensor, target_B: Tensor, smoothing: float) -> Tensor:
    return functional.cross_entropy(logits_BG, target_B, label_smoothing=smoothing, reduction="none")


@torch.no_grad()
def _average(averaged: AveragedModel, model: nn.Module, *, begins: bool) -> None:
    """Move the average, as ``update_parameters`` does, which sends its count to the device in each step."""
    now = [each.detach() for each in (*model.parameters(), *model.buffers())]
    average = [each.detach() for each in (*averaged.module.parameters(), *averaged.module.buffers())]
    if begins:
        for old, new in zip(average, now, strict=True):
            old.copy_(new)
        return
    move = averaged.multi_avg_fn
    assert move is not None
    for floats in (True, False):
        pairs = [pair for pair in zip(average, now, strict=True) if pair[0].is_floating_point() == floats]
        if pairs:
            move([old for old, _ in pairs], [new for _, new in pairs], averaged.n_averaged)
