"""The training loop: one device, or one of several under ``torch.distributed``; no Ray, no MLflow.

A fit draws everything random from (seed, epoch, rank), so a resumed fit goes on exactly where a killed one stopped
without any generator's state. When it is done its state becomes a checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mgc.config import TrainConfig
from mgc.core.errors import RunError
from mgc.dataset.batches import Feed, fits_device
from mgc.dataset.clips import ShardedMel
from mgc.dataset.protocols import LearningSet
from mgc.model import checkpoint
from mgc.model.device import free_memory, prepare
from mgc.training.distributed import rank_and_world, share_buffers
from mgc.training.epoch import begin, evaluate, train_epoch
from mgc.training.fit_state import STATE, Epoch, FitState, signature_of
from mgc.training.step import Graphs, Step


@dataclass(frozen=True)
class Fitted:
    """What a fit came to; the figures are those of the kept model."""

    best_epoch: int
    """The epoch that was kept."""
    train_accuracy: float
    """On all training clips, in evaluation mode."""
    val_accuracy: float
    history: tuple[Epoch, ...]
    checkpoint: Path


def fit(
    config: TrainConfig,
    data: LearningSet,
    folder: Path,
    *,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
    device: torch.device | str = "cpu",
    resident: bool | None = None,
    graphs: bool = False,
    deterministic: bool = False,
) -> Fitted:
    """Train a model and write its checkpoint into ``folder``.

    Under ``torch.distributed`` every rank calls this with the same arguments; each takes its share of every batch, and
    rank 0 writes. A folder in which a fit of the same configuration and data was interrupted is gone on with. The state
    stays beside the checkpoint until ``fit_state.discard``, so that whoever uses the checkpoint can be interrupted too.

    Parameters
    ----------
    on_epoch
        Called on every rank after each epoch; what it raises ends the fit. A resumed fit begins with its former epochs
        (told by their times), because the interruption may have come before they were heard of.
    resident
        All clips live on the device; by default where they fit, beside what a step takes.
    graphs
        On one GPU: record a step and launch it as one.
    deterministic
        On a GPU: the same figures each time, bit for bit, in more time.

    Raises
    ------
    RunError
        The loss is no longer finite, or the device's memory is too small.
    InputError
        The folder holds the state of another fit.
    """
    device = torch.device(device)
    prepare(device, deterministic=deterministic)
    if resident is None:
        resident = _fits(config, data, device)
    with _enough_memory(config, resident=resident and device.type != "cpu"):
        return _fit(config, data, folder, on_epoch, Feed(data.clips, device, resident=resident), graphs)


def _fit(
    config: TrainConfig,
    data: LearningSet,
    folder: Path,
    on_epoch: Callable[[Epoch], None],
    feed: Feed,
    graphs: bool,
) -> Fitted:
    """What ``fit`` says, once it is clear where the clips are."""
    rank, _ = rank_and_world()
    signature, learner = signature_of(config, data), begin(config, data, feed.device)
    state = FitState(learner.model, learner.optimizer, learner.averaged)
    state.resume(folder, signature)
    for point in state.history:
        on_epoch(point)

    step = Step(state, feed, config, Graphs(feed.device) if graphs and feed.device.type == "cuda" else None)
    for epoch in range(len(state.history) + 1, config.epochs + 1):
        if config.patience and _stale(state.history) >= config.patience:
            break
        start = time.monotonic()
        torch.manual_seed(int(np.random.SeedSequence([config.seed, epoch, rank]).generate_state(1)[0]))
        train_loss, train_accuracy, lr = train_epoch(step, data, epoch)
        share_buffers(state.judged)
        val_loss, val_accuracy = evaluate(state.judged, feed, data.validation)
        seconds = time.monotonic() - start
        point = Epoch(epoch, train_loss, train_accuracy, val_loss, val_accuracy, lr, seconds, time.time())
        state.history.append(point)
        if _kept(config, state.history) is point:
            state.keep()
        if rank == 0:
            state.write(folder, signature)
        on_epoch(point)

    kept = _kept(config, state.history)
    state.model.load_state_dict(state.kept)
    _, train_accuracy = evaluate(state.model, feed, data.training)
    if rank == 0:
        figures = {
            "epochs": len(state.history),
            "best_epoch": kept.epoch,
            "train_accuracy": train_accuracy,
            "val_accuracy": kept.val_accuracy,
            "val_loss": kept.val_loss,
            "val_clips": len(data.validation),
            "seconds": round(sum(point.seconds for point in state.history), 2),
        }
        card = checkpoint.Card(config, data.genres, data.spec, data.fingerprint, figures)
        checkpoint.write(folder, state.kept, card)
    return Fitted(kept.epoch, train_accuracy, kept.val_accuracy, tuple(state.history), folder)


def is_kept(folder: Path) -> bool:
    """Whether a fit of this folder is done and all that was to be done with it too."""
    return (folder / checkpoint.CARD).exists() and not (folder / STATE).exists()


def _fits(config: TrainConfig, data: LearningSet, device: torch.device) -> bool:
    """Whether all clips are to live on the device: on the CPU those in memory do, on a GPU what has room there."""
    if device.type == "cpu":
        return not isinstance(data.clips.mel_NFT, ShardedMel)
    return fits_device(data.clips.mel_NFT.shape, config, free_memory(device))


@contextmanager
def _enough_memory(config: TrainConfig, *, resident: bool) -> Iterator[None]:
    """Say in one line what to do where the device's memory is not enough."""
    try:
        yield
    except torch.OutOfMemoryError:
        ways = f"{'--feed memory or ' if resident else ''}a --batch-size below {config.optim.batch_size}"
        where = " with all clips on it" if resident else ""
        raise RunError(f"out of memory on the device{where}; try {ways}") from None


def _kept(config: TrainConfig, history: list[Epoch]) -> Epoch:
    """The epoch to keep: the last, or the best on validation, of equals the one of the lowest loss."""
    if config.keep == "last":
        return history[-1]
    return max(history, key=lambda point: (point.val_accuracy, -point.val_loss))


def _stale(history: list[Epoch]) -> int:
    """Epochs since the validation accuracy was last bettered."""
    accuracies = [point.val_accuracy for point in history]
    return len(history) - 1 - accuracies.index(max(accuracies)) if history else 0
