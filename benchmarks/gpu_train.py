"""Training on one GPU: against the floor that is counted first, and against the seed's way, in one run.

    python benchmarks/gpu_train.py [--clips 6400] [--epochs 20] [--presets plain_cnn regularized …]
    python benchmarks/gpu_train.py --count      # the floor's operations and bytes alone; needs no GPU
    python benchmarks/gpu_train.py --dry-run    # all of it in small on the CPU: no figure of it means anything

Needs torch, numpy and this checkout. Clips are made up, float16, 128 × 1288, with an eighth more for validation. An
epoch is a pass over the training clips and the validation after it; writing the fit's state is not counted. Each way is
warmed up by an epoch and then timed by CUDA events; tables hold medians of the rounds.

- **floor**: operations over the matmul rate, or bytes over the copy rate, whichever takes longer; both rates are
  measured in this run. «layers»: each layer as PyTorch has it reads and writes what it must once. «fused»: only what no
  fusion could keep from memory: clips, pooled maps, their gradients, weights (and maps that a norm takes twice).
- **the seed's way**: the preset's network in plain torch, float32, a DataLoader over one float32 `.npy` a clip.
- **mgc**: `mgc.training.epoch`, the epochs of `mgc train`, in float32 (TF32 convolutions) and bfloat16, launched kernel
  by kernel (eager) or recorded (graph), with clips on the device or in memory.
"""

from __future__ import annotations

import argparse
import gc
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, median, stdev
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mgc.config import PRESETS, ModelConfig, TrainConfig
from mgc.core.errors import RunError
from mgc.dataset.batches import Feed
from mgc.dataset.clips import Clips
from mgc.dataset.protocols import LearningSet
from mgc.model.cnn import GenreCNN
from mgc.model.device import prepare
from mgc.training.cuda_graphs import CudaGraphs
from mgc.training.epoch import train_epoch, validate
from mgc.training.optim import build_learner
from mgc.training.step import TrainStep

GENRES, SHAPE = 8, (128, 1288)
REGULARIZED = PRESETS["regularized"]
CASES = {**PRESETS, "regularized_crops": replace(REGULARIZED, model=replace(REGULARIZED.model, window=128))}
SWITCHES = ("recorded step", "clips on the device", "channels_last", "fused AdamW", "cuDNN picks by the clock", "TF32")


@dataclass
class Scale:
    """How much is done: as asked for on a GPU, next to nothing in a dry run."""

    device: torch.device
    clips: int
    epochs: int
    shape: tuple[int, int] = SHAPE
    rounds: int = 3
    seed_clips: int = 640
    loaders: tuple[int, ...] = (0, 8)
    gigabytes: float = 1.0
    side: int = 8192
    seeds: int = 5
    quality_clips: int = 800
    quality_epochs: int = 12
    trials: tuple[int, ...] = (1, 2, 4, 8)
    trial_clips: int = 1600
    trial_epochs: int = 3
    compiles: bool = True

    @classmethod
    def dry(cls) -> Scale:
        """Every line but CUDA's, in seconds."""
        small = {"shape": (32, 64), "rounds": 1, "seed_clips": 16, "loaders": (0, 1), "gigabytes": 0.001, "side": 64}
        few = {"seeds": 2, "quality_clips": 32, "quality_epochs": 1, "trials": (1, 2), "trial_clips": 16}
        return cls(torch.device("cpu"), 24, 2, **small, **few, trial_epochs=1, compiles=False)


# The floor


@dataclass(frozen=True)
class Count:
    """What training takes: floating-point operations, and bytes by layers and fused."""

    flops: float
    layers: float
    fused: float

    def seconds(self, flops_rate: float, bandwidth: float, *, fused: bool = False) -> float:
        """The time below which it cannot be done at these rates."""
        return max(self.flops / flops_rate, (self.fused if fused else self.layers) / bandwidth)


def count(config: TrainConfig, clips: int, shape: tuple[int, int], width: int) -> Count:
    """Count an epoch's training, without validation; ``width`` bytes a value of the maps."""
    model, (bands, frames) = config.model, (shape[0], config.model.window or shape[1])
    parameters = sum(each.numel() for each in GenreCNN(model, GENRES, shape).parameters())
    values = bands * frames
    flops, fused, layers = 0.0, 2.0 * values, (2.0 + width) * values
    layers += (7 + 2 * (config.augment.mixup_alpha > 0)) * width * values if model.input_norm else 0
    before = 1
    for index, filters in enumerate(model.channels):
        whole, pooled, given = filters * values, filters * (bands // 2) * (frames // 2), before * values
        passes = 3 if index or model.input_norm else 2  # forward, by the weights, and by what was given if it is wanted
        flops += passes * 2 * 9 * before * whole
        # convolution: given, map | by weights: given, gradient | by what was given: gradient, its own
        layers += width * (2 * given + 2 * whole + (passes - 2) * (whole + given))
        layers += 8 * width * whole if model.norm else 0  # two readings and a writing | twice map and gradient, its own
        layers += (width + 8) * pooled + width * whole  # pooling: map, maxima and where they were
        layers += (width + 8) * pooled + 2 * width * whole  # its gradient: zeros, then the values
        layers += (5 + 2) * width * pooled  # ReLU and dropout, forward | backward
        layers += (2 + 1 + 2) * pooled if model.dropout else 0  # masks of a byte
        fused += (5 * width + 2) * pooled  # written, read twice, gradient written and read; two bytes for where
        fused += 3 * width * whole if model.norm else 0  # statistics come before what they normalise
        bands, frames, before, values = bands // 2, frames // 2, filters, (bands // 2) * (frames // 2)
    flops += 3 * 2 * (parameters if model.head == "flatten" else 0)
    steps = math.ceil(clips / config.optim.batch_size)
    weights = 4.0 * parameters * 8 * steps  # gradient, weight, two moments: each read and written
    return Count(flops * clips, layers * clips + weights, fused * clips + weights)


def say_counts(presets: list[str], clips: int, shape: tuple[int, int]) -> None:
    """The table of what is counted."""
    print(f"\nan epoch of {clips} clips of {shape[0]} × {shape[1]}, training alone")
    heads = f"{'GB, layers: float32':>21}{'bfloat16':>10}{'GB, fused: float32':>20}{'bfloat16':>10}"
    print(f"{'preset':<18}{'TFLOP':>9}{heads}")
    for preset in presets:
        four, two = (count(CASES[preset], clips, shape, width) for width in (4, 2))
        columns = (
            f"{four.layers / 1e9:>21.1f}{two.layers / 1e9:>10.1f}{four.fused / 1e9:>20.1f}{two.fused / 1e9:>10.1f}"
        )
        print(f"{preset:<18}{four.flops / 1e12:>9.2f}{columns}")


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """How long it takes, by the device's own clock."""
    if device.type != "cuda":
        begun = time.monotonic()
        work()
        return time.monotonic() - begun
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    work()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3


def measured_rates(scale: Scale) -> tuple[float, dict[str, float]]:
    """Bytes a second of a copy, and operations a second of a matmul in TF32 and bfloat16."""
    device, side = scale.device, scale.side
    one = torch.empty(int(scale.gigabytes * 1e9), dtype=torch.uint8, device=device)
    other = torch.empty_like(one)
    work: dict[str, tuple[Callable[[], object], float]] = {"copy": (lambda: other.copy_(one), 2.0 * len(one))}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        left, right = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
        work[name] = (lambda left=left, right=right: left @ right, 2.0 * side**3)
    torch.backends.cuda.matmul.allow_tf32 = True  # of the convolutions' precision
    rates = {}
    for name, (each, amount) in work.items():
        for _ in range(3):
            each()
        rates[name] = amount / median(seconds_of(each, device) for _ in range(10))
    torch.backends.cuda.matmul.allow_tf32 = False
    return rates.pop("copy"), rates


# Made-up clips


def made_up(clips: int, shape: tuple[int, int], *, noise: float = 1.0, genres: int = GENRES) -> LearningSet:
    """Noise with stripes that tell the genre, and an eighth more for validation (as much again if it is little)."""
    random, total = np.random.default_rng(0), clips + max(clips // 8, min(clips, 400))
    labels_N = np.arange(total) % genres
    block = noise * random.standard_normal((min(total, 128), *shape), np.float32)
    bands, frames = np.indices(shape, dtype=np.float32)
    stripes = [np.sin((bands * (label % 4) + frames * (label // 4)) / 3) for label in range(genres)]
    mel_NFT = np.empty((total, *shape), np.float16)
    for row in range(total):  # shifted, so that no clip is another's copy
        shifted = np.roll(block[row % len(block)], row // len(block) * 7, axis=1)
        mel_NFT[row] = shifted + 0.2 * stripes[labels_N[row]]
    one, names = np.zeros(total, np.int64), np.array([str(row) for row in range(total)])
    known = Clips(mel_NFT, labels_N.astype(np.int64), np.arange(total), names, names, one, tuple(names))
    rows = np.arange(total)
    spec = SimpleNamespace(shape=shape)  # mgc's own would ask for scipy
    return LearningSet(known, rows[:clips], rows[clips:], tuple(map(str, range(genres))), spec, "", "")


# mgc's way


@dataclass(frozen=True)
class Way:
    """How to train."""

    precision: str = "bfloat16"
    graph: bool = True
    resident: bool = True
    without: str = ""
    compiled: bool = False

    def __str__(self) -> str:
        names = [self.precision, "graph" if self.graph else "eager", "device" if self.resident else "memory"]
        return ", ".join(names + (["torch.compile"] if self.compiled else []))

    @classmethod
    def short_of(cls, precision: str, switch: str) -> Way:
        """All that helps but one thing."""
        graph = switch not in ("recorded step", "fused AdamW")  # another AdamW cannot be recorded here
        return cls(precision, graph, switch != "clips on the device", switch)

    def config(self, preset: str, epochs: int) -> TrainConfig:
        """The preset by this precision."""
        config = replace(CASES[preset], epochs=epochs)
        return replace(config, optim=replace(config.optim, precision=self.precision))


def ready(way: Way, config: TrainConfig, data: LearningSet, feed: Feed) -> Callable[[int], tuple[float, float]]:
    """What does an epoch, validation and all, this way: its training loss and validation accuracy."""
    device = feed.device
    prepare(device)
    torch.backends.cudnn.allow_tf32 = way.without != "TF32"
    torch.backends.cudnn.benchmark = way.without != "cuDNN picks by the clock"
    learner = build_learner(config, data, device)
    if way.without == "channels_last":
        learner.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    if way.without == "fused AdamW":
        decay = config.optim.weight_decay
        learner.optimizer = torch.optim.AdamW(learner.model.parameters(), lr=config.optim.lr, weight_decay=decay)
    graphs = CudaGraphs(device) if way.graph and device.type == "cuda" else None
    step = TrainStep(learner, feed, config, graphs)
    if way.compiled:
        step._module = torch.compile(learner.model)

    def epoch(number: int) -> tuple[float, float]:
        torch.manual_seed(1000 * config.seed + number)
        loss, _, _ = train_epoch(step, data, number)
        return loss, validate(learner.evaluated_model, feed, data.validation).accuracy

    return epoch


def timed(ways: dict[str, Way], preset: str, data: LearningSet, scale: Scale, rounds: int) -> dict[str, list[float]]:
    """Seconds of each way's epochs after its first, in turn of where clips are; a way that fails is left out, aloud."""
    seconds: dict[str, list[float]] = {}
    for resident in (True, False):
        feed = Feed(data.clips, scale.device, resident=resident)
        for name, way in ways.items():
            if way.resident != resident:
                continue
            try:
                epoch = ready(way, way.config(preset, rounds + 1), data, feed)
                first = seconds_of(lambda: epoch(1), scale.device)  # noqa: B023 (called at once)
                taken = [seconds_of(lambda n=n: epoch(n), scale.device) for n in range(2, rounds + 2)]  # noqa: B023
                seconds[name] = [first, *taken]
            except (RuntimeError, RunError) as error:
                print(f"  {preset}, {name}: failed: {str(error).splitlines()[0]}")
            epoch = None  # type: ignore[assignment]
            clear()
        del feed
        clear()
    return seconds


def clear() -> None:
    """Give back what the last way took."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# The seed's way


class NpyClips(Dataset):  # type: ignore[type-arg]
    """One float32 `.npy` file a clip."""

    def __init__(self, folder: Path, clips: int) -> None:
        self.folder, self.clips = folder, clips

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(np.load(self.folder / f"{index}.npy")).unsqueeze(0), index % GENRES


class AvgMax(nn.Module):
    """Mean and maximum of each channel."""

    def forward(self, maps: Tensor) -> Tensor:
        """Of maps [shape=(B, C, F, T)]."""
        return torch.cat([maps.flatten(2).mean(2), maps.flatten(2).amax(2)], 1)


def plain(config: ModelConfig, shape: tuple[int, int]) -> nn.Sequential:
    """A preset's network as one writes it down; whole clips, no augmentation."""
    layers: list[nn.Module] = []
    if config.input_norm:
        layers += [nn.Flatten(1, 2), nn.BatchNorm1d(shape[0]), nn.Unflatten(1, (1, shape[0]))]
    for before, filters in zip((1, *config.channels), config.channels, strict=False):
        layers += [nn.Conv2d(before, filters, 3, padding=1), *([nn.BatchNorm2d(filters)] if config.norm else [])]
        layers += [nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(config.dropout)]
    heads = {"flatten": nn.Flatten(), "avgmax": AvgMax(), "bands": nn.Sequential(nn.Flatten(1, 2), AvgMax())}
    linear = nn.Linear(GenreCNN(replace(config, window=0), GENRES, shape).linear.in_features, GENRES)
    return nn.Sequential(*layers, heads[config.head], nn.Dropout(config.head_dropout), linear)


def seed_epochs(preset: str, folder: Path, workers: int, scale: Scale) -> float:
    """Seconds a training clip of the seed's epoch and the validation after it, the second of two."""
    config, device = CASES[preset], scale.device
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = False, True  # as torch comes
    model = plain(config.model, scale.shape).to(device)
    adam = torch.optim.Adam(model.parameters(), config.optim.lr)
    data = NpyClips(folder, scale.seed_clips), NpyClips(folder, max(1, scale.seed_clips // 8))

    def epoch() -> None:
        for clips, learns in zip(data, (True, False), strict=True):
            model.train(learns)
            for mel_B1FT, label_B in DataLoader(clips, 32, shuffle=learns, num_workers=workers):
                with torch.set_grad_enabled(learns):
                    logits_BG = model(mel_B1FT.to(device))
                    loss = functional.cross_entropy(logits_BG, label_B.to(device))
                if learns:
                    adam.zero_grad()
                    loss.backward()
                    adam.step()
                loss.item()

    return [seconds_of(epoch, device) for _ in range(2)][1] / scale.seed_clips


# Tables


def race(preset: str, data: LearningSet, folder: Path, scale: Scale, bandwidth: float, rates: dict[str, float]) -> None:
    """All ways to an epoch of one preset, beside the floor and the seed's way; the best one over all epochs."""
    options = [(p, g, r) for p in ("float32", "bfloat16") for g in (False, True) for r in (False, True)]
    ways = {str(Way(*each)): Way(*each) for each in options}
    seconds = {name: median(each[1:]) for name, each in timed(ways, preset, data, scale, scale.rounds).items()}
    clips = len(data.training)
    seed = {n: clips * seed_epochs(preset, folder, n, scale) for n in scale.loaders}
    best_seed = min(seed.values())
    print(f"\n{preset}: an epoch of {clips} clips and {len(data.validation)} to validate on")
    print(f"{'':<28}{'s':>8}{'clips/s':>10}{'of floor, layers':>18}{'of floor, fused':>17}{'× seed':>8}")
    for workers, each in seed.items():
        name = f"seed's way, {workers} loaders"
        scaled = f"  scaled from {scale.seed_clips}"
        print(f"{name:<28}{each:>8.3f}{clips / each:>10.0f}{'':>35}{best_seed / each:>8.1f}{scaled}")
    for name, each in sorted(seconds.items(), key=lambda pair: -pair[1]):
        counted = count(CASES[preset], clips, scale.shape, 4 if ways[name].precision == "float32" else 2)
        rate = rates[ways[name].precision]
        layers, fused = (counted.seconds(rate, bandwidth, fused=fused) / each for fused in (False, True))
        print(f"{name:<28}{each:>8.3f}{clips / each:>10.0f}{layers:>18.2f}{fused:>17.2f}{best_seed / each:>8.1f}")
    if seconds:
        best = min(seconds, key=lambda name: seconds[name])
        (whole,) = timed({best: ways[best]}, preset, data, scale, scale.epochs - 1).values()
        print(f"{scale.epochs} epochs, {best}, the first and its recording counted: {sum(whole):.2f} s")


def switches(preset: str, data: LearningSet, scale: Scale) -> None:
    """What each thing is worth: all of them but one."""
    for precision in ("float32", "bfloat16"):
        ways = {"all": Way(precision)}
        ways |= {f"  without {each}": Way.short_of(precision, each) for each in SWITCHES}
        if precision == "bfloat16":
            del ways["  without TF32"]
        if scale.compiles and precision == "bfloat16":
            ways |= {f"  with torch.compile, {n}": Way(graph=n == "graph", compiled=True) for n in ("eager", "graph")}
        taken = {name: median(each[1:]) for name, each in timed(ways, preset, data, scale, scale.rounds).items()}
        print(f"\n{preset}, {precision}: seconds an epoch, times «all»")
        for name in ways:
            if name in taken:
                print(f"{name:<40}{taken[name]:>8.3f}{taken[name] / taken.get('all', math.nan):>7.2f}")


def quality(scale: Scale) -> None:
    """Whether bfloat16 ends where float32 does: final validation accuracies over seeds, on a set that can be learnt."""
    shape = (64, 128) if scale.shape == SHAPE else scale.shape
    data = made_up(scale.quality_clips, shape, noise=2.5)
    feed, last = Feed(data.clips, scale.device, resident=True), scale.quality_epochs
    print(
        f"\nvalidation accuracy after {last} epochs of «regularized», {scale.seeds} seeds, {len(data.validation)} clips"
    )
    for precision in ("float32", "bfloat16"):
        accuracies = []
        for seed in range(scale.seeds):
            way = Way(precision)
            epoch = ready(way, replace(way.config("regularized", last), seed=seed), data, feed)
            accuracies.append([epoch(number) for number in range(1, last + 1)][-1][1])
        told = " ".join(f"{each:.3f}" for each in accuracies)
        print(f"{precision:<10}{mean(accuracies):.4f} ± {stdev(accuracies):.4f}   {told}")
        clear()


def trials(scale: Scale, dry: bool) -> None:
    """Several trainings on the device at once, each in a process of its own."""
    print(
        f"\n«regularized», bfloat16, {scale.trial_clips} clips, {scale.trial_epochs} epochs: trials at once, a minute"
    )
    command = [sys.executable, __file__, "--trial", *(["--dry-run"] if dry else [])]
    for together in scale.trials:
        processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(together)
        ]
        said = [each.stdout.readline() for each in processes]  # type: ignore[union-attr]
        begun = time.monotonic()
        for each in processes:
            each.communicate("go\n")
        if any(each.returncode for each in processes) or any(each != "ready\n" for each in said):
            print(f"{together:>4}  failed")
            continue
        print(f"{together:>4}{60 * together / (time.monotonic() - begun):>10.1f}")


def trial(scale: Scale) -> None:
    """One of several trainings: warmed up, it waits for the word."""
    data = made_up(scale.trial_clips, scale.shape)
    feed = Feed(data.clips, scale.device, resident=True)
    epoch = ready(Way(), Way().config("regularized", scale.trial_epochs + 1), data, feed)
    epoch(1)
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(2, scale.trial_epochs + 2):
        epoch(number)


def written(folder: Path, data: LearningSet, clips: int) -> Iterator[Path]:
    """The seed's files."""
    for row in range(min(clips, len(data.clips))):
        np.save(folder / f"{row}.npy", data.clips.mel_NFT[row].astype(np.float32))
        yield folder / f"{row}.npy"


def main() -> None:
    """Count, measure what is asked for, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=6400)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--presets", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--count", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--trial", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.count:
        return say_counts(flags.presets, flags.clips, SHAPE)
    if not (flags.dry_run or torch.cuda.is_available()):
        sys.exit("no GPU here: --count and --dry-run need none")
    scale = Scale.dry() if flags.dry_run else Scale(torch.device("cuda"), flags.clips, flags.epochs)
    if scale.device.type == "cpu":
        torch.set_num_threads(1)
        for name, config in CASES.items():
            CASES[name] = replace(config, model=replace(config.model, window=min(32, config.model.window)))
    if flags.trial:
        return trial(scale)
    begun, name = time.monotonic(), "CPU, a DRY RUN: its figures mean nothing"
    if scale.device.type == "cuda":
        name = torch.cuda.get_device_name()
    print(f"{name}; torch {torch.__version__}; {datetime.now(UTC):%Y-%m-%d}")
    say_counts(flags.presets, scale.clips, scale.shape)
    bandwidth, rates = measured_rates(scale)
    told = ", ".join(f"{name} matmul {rate / 1e12:.1f} TFLOP/s" for name, rate in rates.items())
    print(f"measured: copy {bandwidth / 1e9:.0f} GB/s, {told}")
    data = made_up(scale.clips, scale.shape)
    with tempfile.TemporaryDirectory() as folder:
        list(written(Path(folder), data, scale.seed_clips))
        for preset in flags.presets:
            race(preset, data, Path(folder), scale, bandwidth, rates)
    for preset in flags.presets:
        if not preset.startswith("regularized"):
            switches(preset, data, scale)
    quality(scale)
    trials(scale, flags.dry_run)
    print(f"\n{time.monotonic() - begun:.0f} s in all")
    return None


if __name__ == "__main__":
    main()
