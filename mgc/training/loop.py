"""The training loop: epochs, validation, early stopping, the checkpoint; without Ray and MLflow.

A fit draws everything random from (seed, epoch, rank), so a killed fit is resumed exactly, without the state of any
random generator.

Shape suffixes: N validation clips, G genres.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from mgc.core.errors import RunError
from mgc.core.storage import Folder
from mgc.dataset.batches import Feed
from mgc.model import checkpoint
from mgc.model.device import prepare
from mgc.model.networks import whole
from mgc.training.cuda_graphs import CudaGraphs
from mgc.training.distributed import rank_and_world, share_buffers
from mgc.training.epoch import train_epoch, validate
from mgc.training.fit_state import STATE, Epoch, FitState, signature_of
from mgc.training.optim import build_learner
from mgc.training.step import TrainStep

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from mgc.config import TrainConfig
    from mgc.dataset.protocols import LearningSet
    from mgc.training.hardware import FeedName


@dataclass(frozen=True, eq=False)
class Fitted:
    """Result of a fit; the figures are those of the kept model, in evaluation mode."""

    best_epoch: int
    """The epoch that was kept."""
    train_accuracy: float
    """On all training clips."""
    val_accuracy: float
    """Of ``val_probabilities_NG``."""
    val_loss: float
    """Of ``val_probabilities_NG``: mean cross-entropy."""
    val_probabilities_NG: NDArray[np.float32]
    """Of the validation clips, in the order of ``data.validation``; computed on the device of the fit."""
    history: tuple[Epoch, ...]
    """Learning curves."""
    checkpoint: Folder
    """Folder of the kept model."""


def fit(
    config: TrainConfig,
    data: LearningSet,
    folder: str | Path | Folder,
    *,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
    device: torch.device | str = "cpu",
    feed: FeedName = "memory",
    graphs: bool = False,
    deterministic: bool = False,
) -> Fitted:
    """Train a model and write its checkpoint.

    Under ``torch.distributed`` every rank calls this with the same arguments; each takes its share of every batch, and
    rank 0 writes. A fit that was interrupted in ``folder`` is resumed. Its state file stays beside the checkpoint until
    ``fit_state.discard``, so that whoever uses the checkpoint can be interrupted too.

    Parameters
    ----------
    config
        Network, augmentations, optimiser, epochs and seed.
    data
        Training and validation clips.
    folder
        For the state file and the checkpoint, by path or URI; is made if it is not there.
    on_epoch
        Called on every rank after each epoch; what it raises ends the fit. A resumed fit first calls it with its former
        epochs (recognisable by their times), as the interruption may have come before they were handled.
    device
        The CPU or a GPU.
    feed
        Where clips live during the fit, as ``hardware.feed_for`` decides.
    graphs
        On one GPU: record the training step as a CUDA graph.
    deterministic
        On a GPU: the same figures each time, bit for bit, in more time.

    Returns
    -------
    Fitted
        Figures, validation predictions and checkpoint of the kept model; on every rank.

    Raises
    ------
    RunError
        The loss is no longer finite, or the device's memory is too small.
    InputError
        The folder holds the state of another fit, or a damaged one.
    """
    device = torch.device(device)
    prepare(device, deterministic=deterministic)
    with _enough_memory(config, on_device=feed == "device"):
        resident = feed == "device" or (feed == "memory" and device.type == "cpu")
        clips = Feed(data.clips, device, resident=resident)
        recorder = CudaGraphs(clips.device) if graphs and device.type == "cuda" else None
        return _fit(config, data, Folder.at(folder), on_epoch, clips, recorder)


def _fit(
    config: TrainConfig,
    data: LearningSet,
    folder: Folder,
    on_epoch: Callable[[Epoch], None],
    feed: Feed,
    graphs: CudaGraphs | None,
) -> Fitted:
    """Resume or start, train until the last epoch or until patience ends, and write the checkpoint."""
    rank, _ = rank_and_world()
    signature, learner = signature_of(config, data), build_learner(config, data, feed.device)
    state = FitState(learner.model, learner.optimizer, learner.averaged)
    state.resume(folder, signature)
    for point in state.history:
        on_epoch(point)

    step = TrainStep(state, feed, config, graphs)
    for epoch in range(len(state.history) + 1, config.epochs + 1):
        if config.patience and _stale(state.history) >= config.patience:
            break
        start = time.monotonic()
        torch.manual_seed(int(np.random.SeedSequence([config.seed, epoch, rank]).generate_state(1)[0]))
        train_loss, train_accuracy, lr = train_epoch(step, data, epoch)
        share_buffers(state.evaluated_model)
        val = validate(state.evaluated_model, feed, data.validation)
        seconds = time.monotonic() - start
        point = Epoch(epoch, train_loss, train_accuracy, val.loss, val.accuracy, lr, seconds, time.time())
        state.history.append(point)
        if _kept(config, state.history) is point:
            state.keep()
        if rank == 0:
            state.write(folder, signature)
        on_epoch(point)

    kept = _kept(config, state.history)
    state.model.load_state_dict(state.kept)
    train_accuracy = validate(state.model, feed, data.training).accuracy
    val = validate(state.model, feed, data.validation)
    if rank == 0:
        figures = {
            "epochs": len(state.history),
            "best_epoch": kept.epoch,
            "train_accuracy": train_accuracy,
            "val_accuracy": val.accuracy,
            "val_loss": val.loss,
            "val_clips": len(data.validation),
            "seconds": round(sum(point.seconds for point in state.history), 2),
        }
        card = checkpoint.Card(config, data.genres, data.spec, data.fingerprint, figures)
        checkpoint.write(folder, whole(state.kept, config, data.encoder), card)
    history = tuple(state.history)
    return Fitted(kept.epoch, train_accuracy, val.accuracy, val.loss, val.probabilities_NG, history, folder)


def is_kept(folder: Folder) -> bool:
    """Whether a fit is finished, and what follows it (``run_logging.keep``) too.

    Parameters
    ----------
    folder
        Of the fit.
    """
    return folder.kind(checkpoint.CARD) == "file" and folder.kind(STATE) is None


@contextmanager
def _enough_memory(config: TrainConfig, *, on_device: bool) -> Iterator[None]:
    """Say in one line what to do where the device's memory is not enough."""
    try:
        yield
    except torch.OutOfMemoryError:
        ways = f"{'`feed=memory` or ' if on_device else ''}a `batch_size` below {config.optim.batch_size}"
        where = " with all clips on it" if on_device else ""
        raise RunError(f"out of memory on the device{where}; try {ways}") from None


def _kept(config: TrainConfig, history: list[Epoch]) -> Epoch:
    """The epoch to keep: the last, or the best on validation, of equals the one of the lowest loss."""
    if config.keep == "last":
        return history[-1]
    return max(history, key=lambda point: (point.val_accuracy, -point.val_loss))


def _stale(history: list[Epoch]) -> int:
    """Epochs since the validation accuracy last improved."""
    accuracies = [point.val_accuracy for point in history]
    return len(history) - 1 - accuracies.index(max(accuracies)) if history else 0
