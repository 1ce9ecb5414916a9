"""The training loop: one device, or one of several under ``torch.distributed``; no Ray, no MLflow.

A fit draws everything random from (seed, epoch, rank), so a resumed fit goes on exactly where a killed one stopped
without any generator's state. When it is done its state becomes a checkpoint.

Shape suffixes: N clips in an epoch, B clips in a batch, F mel bands, W frames of a window, G genres.
"""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mgc import augment, checkpoint
from mgc.config import TrainConfig
from mgc.errors import RunError
from mgc.feed import Feed, batches, order
from mgc.fit_state import STATE, Epoch, FitState, signature_of
from mgc.learning import LearningSet
from mgc.model import AT_ONCE, GenreCNN, predict_logits
from mgc.ranks import rank_and_world, share_buffers, summed
from mgc.synced_norm import SyncedBatchNorm


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

    Raises
    ------
    RunError
        The loss is no longer finite.
    InputError
        The folder holds the state of another fit.
    """
    rank, world = rank_and_world()
    _keep_freed_memory()
    signature, feed = signature_of(config, data), Feed(data.clips, device)
    state = _begin(config, data, device)
    state.resume(folder, signature)
    for point in state.history:
        on_epoch(point)

    learner = DistributedDataParallel(state.model) if world > 1 else state.model
    for epoch in range(len(state.history) + 1, config.epochs + 1):
        if config.patience and _stale(state.history) >= config.patience:
            break
        start = time.monotonic()
        torch.manual_seed(int(np.random.SeedSequence([config.seed, epoch, rank]).generate_state(1)[0]))
        train_loss, train_accuracy, lr = _train_epoch(learner, state, feed, data, config, epoch)
        share_buffers(state.judged)
        val_loss, val_accuracy = _evaluate(state.judged, feed, data.validation)
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
    _, train_accuracy = _evaluate(state.model, feed, data.training)
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


def _begin(config: TrainConfig, data: LearningSet, device: torch.device | str) -> FitState:
    """A model with its first weights, and what moves them."""
    torch.manual_seed(config.seed)
    model = GenreCNN(config.model, len(data.genres), data.spec.shape)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    SyncedBatchNorm.convert(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optim.lr, weight_decay=config.optim.weight_decay)
    averaged = None
    if config.optim.ema_epochs:
        decay = math.exp(-1 / (config.optim.ema_epochs * _steps(config, len(data.training))))
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    return FitState(model, optimizer, averaged, [], {})


def _kept(config: TrainConfig, history: list[Epoch]) -> Epoch:
    """The epoch to keep: the last, or the best on validation, of equals the one of the lowest loss."""
    if config.keep == "last":
        return history[-1]
    return max(history, key=lambda point: (point.val_accuracy, -point.val_loss))


def _stale(history: list[Epoch]) -> int:
    """Epochs since the validation accuracy was last bettered."""
    accuracies = [point.val_accuracy for point in history]
    return len(history) - 1 - accuracies.index(max(accuracies)) if history else 0


def _train_epoch(
    learner: nn.Module, state: FitState, feed: Feed, data: LearningSet, config: TrainConfig, epoch: int
) -> tuple[float, float, float]:
    """One pass over the training clips: (mean loss, accuracy, last learning rate) over all ranks."""
    rank, world = rank_and_world()
    mine = slice(rank, None, world)
    learner.train()
    rows_N = order(data.clips, data.training, config.seed, epoch)
    draws = augment.draw(config, data.spec.shape, len(rows_N), epoch)
    places = batches(np.arange(len(rows_N)), config.optim.batch_size)
    wanted = slice(None) if config.augment.mixup_alpha else mine
    sums = torch.zeros(2, dtype=torch.float64, device=feed.device)  # loss, right
    lr = config.optim.lr
    for step, (places_B, mel_BFT) in enumerate(zip(places, feed.read(rows_N[b[wanted]] for b in places), strict=True)):
        lr = _learning_rate(config, (epoch - 1) * len(places) + step, len(places))
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        mel_BFW, shares_B = augment.training_batch(mel_BFT, config, draws, places_B, mine)
        target_B, partner_B = _labels(feed, rows_N, places_B[mine], draws)
        with torch.autocast(feed.device.type, torch.bfloat16, enabled=config.optim.precision == "bfloat16"):
            logits_BG = learner(mel_BFW.unsqueeze(1)).float()
        loss_B = _cross_entropy(logits_BG, target_B, config)
        if config.augment.mixup_alpha:
            loss_B = torch.lerp(_cross_entropy(logits_BG, partner_B, config), loss_B, shares_B.to(feed.device))
        local = loss_B.sum()
        state.optimizer.zero_grad(set_to_none=True)
        # DDP means over ranks; with this factor the sum is the mean over the whole batch, however it is shared
        (local * (world / len(places_B))).backward()
        if config.optim.clip_norm:
            nn.utils.clip_grad_norm_(state.model.parameters(), config.optim.clip_norm)
        state.optimizer.step()
        if state.averaged:
            state.averaged.update_parameters(state.model)
        sums += torch.stack([local.detach(), (logits_BG.detach().argmax(1) == target_B).sum()])
    loss, right = (summed(sums) / len(rows_N)).tolist()
    if not math.isfinite(loss):  # on all ranks alike, so that none waits for another
        raise RunError(f"loss is {loss} in epoch {epoch}; try a lower --lr than {config.optim.lr:g}")
    return loss, right, lr


def _labels(
    feed: Feed, rows_N: NDArray[np.int64], own_B: NDArray[np.int64], draws: augment.Draws
) -> tuple[Tensor, Tensor]:
    """Labels of a share's clips, and of those that are mixed in."""
    partners_B = draws.partners_N[torch.from_numpy(own_B)].numpy()
    own, partners = (torch.from_numpy(rows_N[places]).to(feed.device) for places in (own_B, partners_B))
    return feed.labels_N[own], feed.labels_N[partners]


def _cross_entropy(logits_BG: Tensor, target_B: Tensor, config: TrainConfig) -> Tensor:
    return functional.cross_entropy(logits_BG, target_B, label_smoothing=config.optim.label_smoothing, reduction="none")


def _evaluate(model: nn.Module, feed: Feed, rows_N: NDArray[np.int64]) -> tuple[float, float]:
    """Mean cross-entropy and accuracy, each clip counted once, by one of the ranks."""
    rank, world = rank_and_world()
    sums = torch.zeros(2, dtype=torch.float64)  # loss, right
    parts = batches(rows_N[rank::world], AT_ONCE)
    for rows_B, mel_BFT in zip(parts, feed.read(parts), strict=True):
        labels_B = feed.labels_N[torch.from_numpy(rows_B).to(feed.device)].cpu()
        logits_BG = predict_logits(model, mel_BFT)
        loss = functional.cross_entropy(logits_BG, labels_B, reduction="sum").item()
        sums += torch.tensor([loss, (logits_BG.argmax(1) == labels_B).sum().item()], dtype=torch.float64)
    loss, right = (summed(sums) / len(rows_N)).tolist()
    return loss, right


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


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed: a step's activations, hundreds of MB, are else mapped and zeroed anew each time.

    With channels_last this makes a step of 32 clips on two cores 2.6 times as fast (docs/log.md).
    """
    m_mmap_max, m_trim_threshold = -4, -1
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)
