"""What moves the weights: AdamW, its learning-rate schedule, and an exponential moving average (EMA) of the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mgc.model.networks import to_train
from mgc.model.pretrained import Pretrained
from mgc.model.synced_batchnorm import sync_batchnorm
from mgc.training.distributed import rank_and_world

if TYPE_CHECKING:
    from mgc.config import TrainConfig
    from mgc.dataset.protocols import LearningSet
    from mgc.model.genre_network import GenreNetwork


@dataclass
class Learner:
    """Model, optimiser and optional EMA weights of a fit."""

    model: GenreNetwork
    optimizer: torch.optim.Optimizer
    averaged: AveragedModel | None
    """EMA of the weights, where ``optim.ema_epochs`` asks for one."""

    @property
    def evaluated_model(self) -> GenreNetwork:
        """The model that is validated and kept: that of the EMA weights where there are any."""
        return cast("GenreNetwork", self.averaged.module) if self.averaged else self.model


def build_learner(config: TrainConfig, data: LearningSet, device: torch.device) -> Learner:
    """Build a model with its first weights, drawn by ``config.seed``, and its optimiser.

    Parameters
    ----------
    config
        Network, optimiser and seed.
    data
        Its genres, the shape of its clips and the number of training clips.
    device
        Where the model goes, in PyTorch's ``channels_last`` format.
    """
    torch.manual_seed(config.seed)
    model = to_train(config, len(data.genres), data.spec.shape, data.encoder, data.taught)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if rank_and_world()[1] > 1:
        sync_batchnorm(model)
    optimizer = adamw(model, config, device)
    averaged = None
    if config.optim.ema_epochs:
        decay = math.exp(-1 / (config.optim.ema_epochs * steps_per_epoch(config, len(data.training))))
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    return Learner(model, optimizer, averaged)


def adamw(model: nn.Module, config: TrainConfig, device: torch.device) -> torch.optim.AdamW:
    """Build AdamW; on a GPU fused into one kernel, with its learning rates in tensors, as a CUDA graph needs them.

    Parameters
    ----------
    model
        On ``device`` already.
    config
        Learning rates and weight decay.
    device
        The CPU or a GPU.

    Returns
    -------
    torch.optim.AdamW
        ``share`` of a group of parameters is that of the learning rate that it takes.
    """
    optim = config.optim
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    own = {id(parameter) for parameter in model.encoder.parameters()} if isinstance(model, Pretrained) else set()
    encoder = [parameter for parameter in learnt if id(parameter) in own]
    others = [parameter for parameter in learnt if id(parameter) not in own]
    groups = [{"params": each, "share": share} for each, share in ((others, 1.0), (encoder, optim.encoder_lr)) if each]
    if device.type != "cuda":
        return torch.optim.AdamW(groups, lr=optim.lr, weight_decay=optim.weight_decay)
    groups = [group | {"lr": torch.tensor(optim.lr, device=device)} for group in groups]
    return torch.optim.AdamW(groups, lr=optim.lr, weight_decay=optim.weight_decay, fused=True, capturable=True)


def steps_per_epoch(config: TrainConfig, clips: int) -> int:
    """Return the number of optimiser steps in an epoch.

    Parameters
    ----------
    config
        Its batch size.
    clips
        Number of training clips.
    """
    return math.ceil(clips / config.optim.batch_size)


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Return the learning rate of a step: a linear warm-up from zero, then constant or half a cosine to zero.

    Parameters
    ----------
    config
        Rate, schedule and warm-up.
    step
        Counted from 0 over all epochs.
    steps
        Of an epoch.
    """
    warmup, total = config.optim.warmup_epochs * steps, config.epochs * steps
    if step < warmup:
        return config.optim.lr * (step + 1) / (warmup + 1)
    if config.optim.schedule == "cosine":
        return config.optim.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
    return config.optim.lr


@torch.no_grad()
def update_average(averaged: AveragedModel, model: nn.Module, *, first: bool) -> None:
    """Update EMA weights and buffers, as ``AveragedModel.update_parameters`` does but without copies to the device.

    The caller counts ``averaged.n_averaged``.

    Parameters
    ----------
    averaged
        Is updated in place.
    model
        The model after a step.
    first
        There is no average yet: the weights are copied.
    """
    now = [each.detach() for each in (*model.parameters(), *model.buffers())]
    average = [each.detach() for each in (*averaged.module.parameters(), *averaged.module.buffers())]
    if first:
        for old, new in zip(average, now, strict=True):
            old.copy_(new)
        return
    move = averaged.multi_avg_fn
    assert move is not None
    for floats in (True, False):
        pairs = [pair for pair in zip(average, now, strict=True) if pair[0].is_floating_point() == floats]
        if pairs:
            move([old for old, _ in pairs], [new for _, new in pairs], averaged.n_averaged)
