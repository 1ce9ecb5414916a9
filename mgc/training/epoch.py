"""One pass over clips: an epoch of training, or a validation; on one device, or on one of several.

An epoch draws everything random from (seed, epoch), and dropout's masks from torch's generator. The host waits for the
device at the end only.

Shape suffixes: N clips, B clips in a batch, G genres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from mgc.core.errors import RunError
from mgc.dataset import augment
from mgc.dataset.batches import batches, order
from mgc.model import inference
from mgc.training.distributed import rank_and_world, summed
from mgc.training.optim import learning_rate, steps_per_epoch
from mgc.training.step import EpochPlan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mgc.config import TrainConfig
    from mgc.dataset.batches import Feed
    from mgc.dataset.protocols import LearningSet
    from mgc.model.genre_network import GenreNetwork
    from mgc.training.step import TrainStep


@dataclass(frozen=True, eq=False)
class Validation:
    """A model's predictions of some clips, and their figures; over all ranks, and the same on each."""

    loss: float
    """Mean cross-entropy."""
    accuracy: float
    """Share of clips whose most probable genre is the true one."""
    probabilities_NG: NDArray[np.float32]
    """In the order of the rows asked for."""


def train_epoch(step: TrainStep, data: LearningSet, epoch: int) -> tuple[float, float, float]:
    """Train for one pass over the training clips.

    Parameters
    ----------
    step
        The training step, with model, configuration and clips.
    data
        Which clips are trained on.
    epoch
        From 1.

    Returns
    -------
    loss, accuracy, rate
        Means over the clips of all ranks, in training mode, and the learning rate of the last step.

    Raises
    ------
    RunError
        The loss is no longer finite.
    """
    config, feed = step.config, step.feed
    plan = step.ahead if step.ahead and step.ahead.epoch == epoch else plan_epoch(config, data, epoch)
    step.start_epoch(plan)
    parts = batches(plan.rows_N, config.optim.batch_size)
    wanted = slice(None) if step.mixing else step.mine
    given = [None] * len(parts) if feed.mel_NFT is not None else feed.read(part[wanted] for part in parts)
    for part, mel_BFT in zip(parts, given, strict=True):
        step(len(part), mel_BFT)
    if epoch < config.epochs:  # a tenth of a second for 6,400 clips, while a GPU does the steps it was given
        step.ahead = plan_epoch(config, data, epoch + 1)
    loss, right = (summed(step.sums) / len(plan.rows_N)).tolist()
    if not math.isfinite(loss):  # on all ranks alike, so that none waits for another
        raise RunError(f"loss is {loss} in epoch {epoch}; try a lower `lr` than {config.optim.lr:g}")
    return loss, right, plan.rates[-1]


@torch.inference_mode()
def validate(model: GenreNetwork, feed: Feed, rows_N: NDArray[np.int64]) -> Validation:
    """Predict clips, each by one of the ranks, in evaluation mode.

    Parameters
    ----------
    model
        On the device of ``feed``, the same on each rank.
    feed
        Clips and their labels.
    rows_N
        Which clips.
    """
    rank, world = rank_and_world()
    mine = rows_N[rank::world]
    parts = batches(mine, inference.batch_size(feed.device))
    labels_N = feed.labels_N[torch.from_numpy(mine).to(feed.device)].split([len(part) for part in parts])
    sums = torch.zeros(2, dtype=torch.float64, device=feed.device)  # loss, right
    probabilities_NG = torch.zeros(len(rows_N), model.linear.out_features, device=feed.device)
    done = rank
    for labels_B, logits_BG in zip(labels_N, inference.logits(model, feed.read(parts)), strict=True):
        probabilities_BG = logits_BG.softmax(1)
        loss = functional.cross_entropy(logits_BG, labels_B, reduction="sum").double()
        sums += torch.stack([loss, (probabilities_BG.argmax(1) == labels_B).sum().double()])
        probabilities_NG[done : done + len(labels_B) * world : world] = probabilities_BG
        done += len(labels_B) * world
    loss, right = (summed(sums) / len(rows_N)).tolist()
    return Validation(loss, right, summed(probabilities_NG).numpy())


def plan_epoch(config: TrainConfig, data: LearningSet, epoch: int) -> EpochPlan:
    """Draw an epoch's order and augmentations, and compute its learning rates.

    Parameters
    ----------
    config
        Seed, augmentations, batch size and schedule.
    data
        Which clips are trained on.
    epoch
        From 1.
    """
    rows_N = order(data.clips, data.training, config.seed, epoch)
    steps = steps_per_epoch(config, len(rows_N))
    rates = [learning_rate(config, (epoch - 1) * steps + step, steps) for step in range(steps)]
    return EpochPlan(epoch, rows_N, augment.draw(config, data.clips.mel_NFT.shape[1:], len(rows_N), epoch), rates)
