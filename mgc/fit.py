"""The training loop: one device, or one of several under ``torch.distributed``; no Ray, no MLflow.

A fit draws everything random from (seed, epoch, rank), so a resumed fit goes on exactly where a killed one stopped
without any generator's state. The state of a running fit is one file, replaced after each epoch; when the fit is done
it becomes the checkpoint of the best validation epoch.

Shape suffixes: N clips in memory, B clips in a batch, F mel bands, T frames, G genres.
"""

from __future__ import annotations

import ctypes
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from mgc import checkpoint
from mgc.config import TrainConfig
from mgc.errors import InputError, RunError
from mgc.features import LearningSet, Split
from mgc.files import replacing
from mgc.model import GenreCNN, predict_logits
from mgc.synced_norm import SyncedBatchNorm

STATE = "state.safetensors"


@dataclass(frozen=True)
class Epoch:
    """One point of the learning curves."""

    epoch: int
    """From 1."""
    train_loss: float
    """Mean over the epoch, in training mode."""
    train_accuracy: float
    """Share right during the epoch, in training mode: with dropout, while the weights move."""
    val_loss: float
    val_accuracy: float
    """Share of the validation clips right after the epoch."""
    lr: float
    """Learning rate of the last step."""
    seconds: float
    ended: float
    """When it ended, in Unix seconds."""

    def metrics(self) -> dict[str, float]:
        """The figures by name, without epoch and time."""
        return {name: value for name, value in asdict(self).items() if name not in ("epoch", "ended")}


@dataclass(frozen=True)
class Fitted:
    """What a fit came to; the figures are those of the kept model, of the best validation epoch."""

    best_epoch: int
    train_accuracy: float
    """Of the kept model on all training clips, in evaluation mode."""
    val_accuracy: float
    seconds: float
    """Time in epochs, over all attempts."""
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
    stays beside the checkpoint until ``discard_state``, so that whoever uses the checkpoint can be interrupted too.

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
    rank, world = _rank_and_world()
    _keep_freed_memory()
    torch.manual_seed(config.seed)
    model = GenreCNN(config.model, len(data.genres), data.spec.shape)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    SyncedBatchNorm.convert(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optim.lr, weight_decay=config.optim.weight_decay)
    progress = _Progress.resume(folder, config, data, model, optimizer) or _Progress.begin(model)
    for point in progress.history:
        on_epoch(point)

    learner = DistributedDataParallel(model) if world > 1 else model
    mel_NFT, labels_N = _tensors(data.training, device)
    held_out = _tensors(_share(data.validation, rank, world), device)
    for epoch in range(len(progress.history) + 1, config.epochs + 1):
        start = time.monotonic()
        _seed(config.seed, epoch, rank)
        train_loss, train_accuracy, lr = _train_epoch(learner, optimizer, mel_NFT, labels_N, config, epoch)
        _same_buffers(model)
        val_loss, val_accuracy = _evaluate(model, *held_out)
        seconds = time.monotonic() - start
        point = Epoch(epoch, train_loss, train_accuracy, val_loss, val_accuracy, lr, seconds, time.time())
        progress.add(point, model)
        if rank == 0:
            progress.write(folder, config, data, model, optimizer)
        on_epoch(point)

    best = progress.best
    model.load_state_dict(progress.best_weights)
    _, train_accuracy = _evaluate(model, *_tensors(_share(data.training, rank, world), device))
    figures = {"best_epoch": best.epoch, "train_accuracy": train_accuracy}
    figures |= {"val_accuracy": best.val_accuracy, "val_loss": best.val_loss}
    if rank == 0:
        card = checkpoint.Card(config, data.genres, data.spec, data.fingerprint, figures)
        checkpoint.write(folder, progress.best_weights, card)
    seconds = sum(point.seconds for point in progress.history)
    return Fitted(best.epoch, train_accuracy, best.val_accuracy, seconds, tuple(progress.history), folder)


def discard_state(folder: Path) -> None:
    """Forget how the fit of a folder came about; its checkpoint stays."""
    (folder / STATE).unlink(missing_ok=True)


def is_kept(folder: Path) -> bool:
    """Whether a fit of this folder is done and all that was to be done with it too."""
    return (folder / checkpoint.CARD).exists() and not (folder / STATE).exists()


def _train_epoch(
    learner: nn.Module,
    optimizer: torch.optim.Optimizer,
    mel_NFT: Tensor,
    labels_N: Tensor,
    config: TrainConfig,
    epoch: int,
) -> tuple[float, float, float]:
    """One pass over the training clips: (mean loss, accuracy, last learning rate) over all ranks."""
    rank, world = _rank_and_world()
    learner.train()
    order_N = np.random.default_rng([config.seed, epoch]).permutation(len(labels_N))
    steps = math.ceil(len(order_N) / config.optim.batch_size)
    sums = torch.zeros(2, dtype=torch.float64)  # loss, right
    lr = config.optim.lr
    for step, batch in enumerate(_batches(order_N, config.optim.batch_size)):
        lr = _learning_rate(config, (epoch - 1) * steps + step, config.epochs * steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        mine = batch[rank::world]
        index_B = torch.from_numpy(mine).to(mel_NFT.device)  # empty for some rank, it may be, in the last batch
        target_B = labels_N[index_B]
        logits_BG = learner(mel_NFT[index_B].float().unsqueeze(1))
        loss_B = functional.cross_entropy(
            logits_BG, target_B, label_smoothing=config.optim.label_smoothing, reduction="none"
        )
        local = loss_B.sum()
        if not math.isfinite(local.item()):
            raise RunError(f"loss is {local.item()} in epoch {epoch}, step {step + 1}; try a lower --lr than {lr:g}")
        optimizer.zero_grad(set_to_none=True)
        # DDP means over ranks; with this factor the sum is the mean over the whole batch, however it is shared
        (local * (world / len(batch))).backward()
        optimizer.step()
        right = (logits_BG.argmax(1) == target_B).sum().item()
        sums += torch.tensor([local.item(), right], dtype=torch.float64)
    loss, right = (_sum_over_ranks(sums) / len(order_N)).tolist()
    return loss, right, lr


def _evaluate(model: nn.Module, mel_NFT: Tensor, labels_N: Tensor) -> tuple[float, float]:
    """Mean cross-entropy and accuracy over all ranks' shares, each clip counted once."""
    sums = torch.zeros(3, dtype=torch.float64)  # loss, right, clips
    if len(labels_N):
        logits_NG, labels_N = predict_logits(model, mel_NFT), labels_N.cpu()
        loss = functional.cross_entropy(logits_NG, labels_N, reduction="sum").item()
        right = (logits_NG.argmax(1) == labels_N).sum().item()
        sums += torch.tensor([loss, right, len(labels_N)], dtype=torch.float64)
    loss, right, clips = _sum_over_ranks(sums).tolist()
    return loss / clips, right / clips


@dataclass
class _Progress:
    """How far a fit has come, in memory and in its state file."""

    history: list[Epoch]
    best_weights: dict[str, Tensor]

    @property
    def best(self) -> Epoch:
        """The epoch of the highest validation accuracy; of equals the one with the lowest validation loss."""
        return max(self.history, key=lambda point: (point.val_accuracy, -point.val_loss))

    @classmethod
    def begin(cls, model: nn.Module) -> _Progress:
        return cls([], _copy(model))

    def add(self, point: Epoch, model: nn.Module) -> None:
        self.history.append(point)
        if self.best is point:
            self.best_weights = _copy(model)

    def write(
        self, folder: Path, config: TrainConfig, data: LearningSet, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        """Replace the state file: last weights, best weights, the optimiser's moments, the curves."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"last.{name}": tensor for name, tensor in model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best_weights.items()}
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optim.{index}.{name}": tensor for name, tensor in moments.items()}
        metadata = {
            "signature": _signature(config, data),
            "history": json.dumps([asdict(point) for point in self.history]),
        }
        with replacing(folder / STATE) as temporary:
            save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata
            )

    @classmethod
    def resume(
        cls, folder: Path, config: TrainConfig, data: LearningSet, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> _Progress | None:
        """Load the state of an interrupted fit into model and optimiser; None where there is none."""
        file = folder / STATE
        if not file.exists():
            return None
        parts: dict[str, dict[str, Tensor]] = {"last": {}, "best": {}, "optim": {}}
        try:
            with safe_open(file, "pt") as state:
                metadata = state.metadata()
                for key in state.keys():  # noqa: SIM118 (not a mapping)
                    part, _, name = key.partition(".")
                    parts[part][name] = state.get_tensor(key)
        except SafetensorError as error:
            raise InputError(f"{file}: damaged ({error}); delete it to begin anew") from None
        if metadata["signature"] != _signature(config, data):
            raise InputError(f"{file}: belongs to another configuration or feature set; choose another folder")
        model.load_state_dict(parts["last"])
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in parts["optim"].items():
            index, _, name = key.partition(".")
            moments.setdefault(int(index), {})[name] = tensor
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
        return cls([Epoch(**point) for point in json.loads(metadata["history"])], parts["best"])


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed: a step's activations, hundreds of MB, are else mapped and zeroed anew each time.

    With channels_last this makes a step of 32 clips on two cores 2.6 times as fast (docs/log.md).
    """
    m_mmap_max, m_trim_threshold = -4, -1
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)


def _signature(config: TrainConfig, data: LearningSet) -> str:
    """What a state must agree in to be gone on with."""
    return json.dumps({"config": config.to_dict(), "fingerprint": data.fingerprint}, sort_keys=True)


def _learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    if config.optim.schedule == "cosine":
        return config.optim.lr * 0.5 * (1 + math.cos(math.pi * step / steps))
    return config.optim.lr


def _batches(order_N: Any, size: int) -> Iterator[Any]:
    for start in range(0, len(order_N), size):
        yield order_N[start : start + size]


def _tensors(split: Split, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Features (float16, shared with the arrays where the device is the CPU) and labels."""
    with warnings.catch_warnings():
        # arrays from Ray's object store are read-only; nothing here writes to them
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(split.mel_NFT).to(device), torch.from_numpy(split.labels_N).to(device)


def _share(split: Split, rank: int, world: int) -> Split:
    """Take this rank's clips: every world-th, so that the shares of all ranks are the whole, each clip once."""
    if world == 1:
        return split
    return Split(
        split.mel_NFT[rank::world],
        split.labels_N[rank::world],
        split.track_ids_N[rank::world],
        split.paths[rank::world],
    )


def _seed(seed: int, epoch: int, rank: int) -> None:
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0]))


def _rank_and_world() -> tuple[int, int]:
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _sum_over_ranks(values: Tensor) -> Tensor:
    if _rank_and_world()[1] > 1:
        values = values.cuda() if distributed.get_backend() == "nccl" else values
        distributed.all_reduce(values)
    return values.cpu()


def _same_buffers(model: nn.Module) -> None:
    """Give every rank rank 0's running BatchNorm statistics, which validation uses."""
    if _rank_and_world()[1] > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
