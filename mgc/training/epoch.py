"""One pass over clips: an epoch of training, or judging each clip once; on one device, or one of several.

A pass over the training clips draws everything random from (seed, epoch), and dropout's masks from torch's generator.
Nothing is waited for before it ends.

Shape suffixes: N clips in an epoch, B clips in a batch, F mel bands, T frames, G genres.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mgc.config import TrainConfig
from mgc.core.errors import RunError
from mgc.dataset import augment
from mgc.dataset.batches import JUDGED_ON_GPU, Feed, batches, order
from mgc.dataset.protocols import LearningSet
from mgc.model.cnn import AT_ONCE, GenreCNN
from mgc.model.synced_batchnorm import SyncedBatchNorm
from mgc.training.distributed import rank_and_world, summed
from mgc.training.step import Learner, Plan, Step


def begin(config: TrainConfig, data: LearningSet, device: torch.device) -> Learner:
    """A model with its first weights, and what moves them."""
    torch.manual_seed(config.seed)
    model = GenreCNN(config.model, len(data.genres), data.spec.shape)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    SyncedBatchNorm.convert(model)
    optimizer = _adam(model, config, device)
    averaged = None
    if config.optim.ema_epochs:
        decay = math.exp(-1 / (config.optim.ema_epochs * _steps(config, len(data.training))))
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    return Learner(model, optimizer, averaged)


def train_epoch(step: Step, data: LearningSet, epoch: int) -> tuple[float, float, float]:
    """One pass over the training clips: (mean loss, accuracy, last learning rate) over all ranks."""
    config, feed = step.config, step.feed
    plan = step.ahead if step.ahead and step.ahead.epoch == epoch else _plan(config, data, epoch)
    step.begin(plan)
    parts = batches(plan.rows_N, config.optim.batch_size)
    wanted = slice(None) if step.mixing else step.mine
    given = [None] * len(parts) if feed.mel_NFT is not None else feed.read(part[wanted] for part in parts)
    for part, mel_BFT in zip(parts, given, strict=True):
        step(len(part), mel_BFT)
    if epoch < config.epochs:  # a tenth of a second for 6,400 clips, while a GPU does the steps it was given
        step.ahead = _plan(config, data, epoch + 1)
    loss, right = (summed(step.sums) / len(plan.rows_N)).tolist()
    if not math.isfinite(loss):  # on all ranks alike, so that none waits for another
        raise RunError(f"loss is {loss} in epoch {epoch}; try a lower --lr than {config.optim.lr:g}")
    return loss, right, plan.rates[-1]


def evaluate(model: nn.Module, feed: Feed, rows_N: NDArray[np.int64]) -> tuple[float, float]:
    """Mean cross-entropy and accuracy, each clip counted once, by one of the ranks."""
    rank, world = rank_and_world()
    mine = rows_N[rank::world]
    parts = batches(mine, JUDGED_ON_GPU if feed.device.type == "cuda" else AT_ONCE)
    labels_N = feed.labels_N[torch.from_numpy(mine).to(feed.device)]
    sums = torch.zeros(2, dtype=torch.float64, device=feed.device)  # loss, right
    training = model.training
    model.eval()
    with torch.inference_mode():
        labels = labels_N.split([len(part) for part in parts])
        for labels_B, mel_BFT in zip(labels, feed.read(parts), strict=True):
            sums += _judged(model(mel_BFT.float().unsqueeze(1)).float(), labels_B)
    model.train(training)
    loss, right = (summed(sums) / len(rows_N)).tolist()
    return loss, right


def _plan(config: TrainConfig, data: LearningSet, epoch: int) -> Plan:
    """An epoch's order, draws and learning rates."""
    rows_N = order(data.clips, data.training, config.seed, epoch)
    steps = _steps(config, len(rows_N))
    rates = [_learning_rate(config, (epoch - 1) * steps + step, steps) for step in range(steps)]
    return Plan(epoch, rows_N, augment.draw(config, data.spec.shape, len(rows_N), epoch), rates)


def _judged(logits_BG: Tensor, labels_B: Tensor) -> Tensor:
    """Loss of a batch, and how many are right."""
    loss = functional.cross_entropy(logits_BG, labels_B, reduction="sum")
    return torch.stack([loss.double(), (logits_BG.argmax(1) == labels_B).sum().double()])


def _adam(model: nn.Module, config: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """AdamW; on a GPU one kernel for all weights, with its learning rate there, so that a step can be recorded."""
    decay = config.optim.weight_decay
    if device.type != "cuda":
        return torch.optim.AdamW(model.parameters(), lr=config.optim.lr, weight_decay=decay)
    rate = torch.tensor(config.optim.lr, device=device)
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay, fused=True, capturable=True)


def _steps(config: TrainConfig, clips: int) -> int:
    """Steps of an epoch."""
    return math.ceil(clips / config.optim.batch_size)


def _learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """The learning rate of a step, counted over all epochs of ``steps``: up from zero, then as scheduled."""
    warmup, total = config.optim.warmup_epochs * steps, config.epochs * steps
    if step < warmup:
        return config.optim.lr * (step + 1) / (warmup + 1)
    if config.optim.schedule == "cosine":
        return config.optim.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
    return config.optim.lr
