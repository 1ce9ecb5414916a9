"""One epoch by `mgc.fit` on the CPU against the seed's way, and what each trick gives on one step of 32 clips.

    python benchmarks/train.py [--clips 320] [--rounds 3] [--epoch-only | --table-only] [--preset plain_cnn regularized]

Clips are random, of true size (128 × 1288), with an eighth more for validation, in a temporary directory; each
measurement is a process of its own, in turn, in rounds. The tables hold medians of the rounds; ratios are to `plain` or
to the best of the seed's ways, higher is faster; MB is the process's peak, without DataLoader's workers. Imports are
not counted, files lie in the page cache, and the networks are first seen to have the same logits and gradients.

- **the seed's way**: the same network in plain torch, a Dataset over one float32 `.npy` file a clip, a DataLoader with
  0, 1 or 2 workers; one epoch of training and the validation after it;
- **mgc.fit**: the same from a feature set: reading it into memory, the epoch, and writing the fit's state too. Crops,
  augmentation and what else a plain loop has not are off; a preset that has them is measured as it is as well.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from mgc.config import PRESETS, AugmentConfig, ModelConfig, TrainConfig
from mgc.core.storage import Folder
from mgc.dataset.protocols import learning_set
from mgc.features import shards
from mgc.features.feature_set import FeatureSet
from mgc.features.layout import FORMAT, MANIFEST, SCHEMA, SHARDS, Manifest, parquet_bytes
from mgc.features.recipe import Recipe
from mgc.model import device
from mgc.model.cnn import Dropout, GenreCNN
from mgc.training import loop

THREADS, BATCH, STEPS, GENRES = 2, 32, 3, 8
OURS = ("freed memory kept", "channels_last", "ReLU after pooling", "mgc.model.cnn.Dropout")
TRICKS = (*OURS, "fused AdamW", "bf16 autocast", "torch.compile")  # bf16 gives other numbers


class _AvgMax(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([maps.flatten(2).mean(2), maps.flatten(2).amax(2)], 1)


def plain(config: ModelConfig, switches: list[str]) -> nn.Sequential:
    """A preset's network as one writes it down: ReLU before the pooling, torch's dropout, unless switched."""
    dropout = nn.Dropout2d if config.spatial_dropout else Dropout if OURS[3] in switches else nn.Dropout
    layers: list[nn.Module] = []
    if config.input_norm:
        layers += [nn.Flatten(1, 2), nn.BatchNorm1d(128), nn.Unflatten(1, (1, 128))]
    for before, filters in zip((1, *config.channels), config.channels, strict=False):
        layers.append(nn.Conv2d(before, filters, 3, padding=1, bias=not config.norm))
        layers += [nn.BatchNorm2d(filters)] if config.norm else []
        layers += [nn.MaxPool2d(2), nn.ReLU()] if OURS[2] in switches else [nn.ReLU(), nn.MaxPool2d(2)]
        layers.append(dropout(config.dropout))
    heads = {"flatten": nn.Flatten(), "avgmax": _AvgMax(), "bands": nn.Sequential(nn.Flatten(1, 2), _AvgMax())}
    linear = nn.Linear(GenreCNN(config, GENRES).linear.in_features, GENRES)
    return nn.Sequential(*layers, heads[config.head], nn.Dropout(config.head_dropout), linear)


class NpyClips(Dataset):
    """One `.npy` file a clip, in a folder a genre."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.glob("*/*.npy"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(np.load(self.files[index])).unsqueeze(0), int(self.files[index].parent.name)


def comparable(preset: str) -> TrainConfig:
    """One epoch of the preset, without what a plain loop has not."""
    config = replace(PRESETS[preset], epochs=1)
    optim = replace(config.optim, batch_size=BATCH, warmup_epochs=0, clip_norm=0, ema_epochs=0, precision="float32")
    return replace(config, model=replace(config.model, window=0), augment=AugmentConfig(), optim=optim)


def seed_epoch(scratch: str, preset: str, workers: int) -> dict[str, float]:
    """The seed's epoch and its validation."""
    begin, config, reading = time.monotonic(), comparable(preset), 0.0
    model, smoothing = plain(config.model, []), config.optim.label_smoothing
    optimizer = torch.optim.AdamW(model.parameters(), config.optim.lr, weight_decay=config.optim.weight_decay)
    for split, learns in (("training", True), ("validation", False)):
        model.train(learns)
        loader = DataLoader(NpyClips(Path(scratch, "npy", split)), BATCH, shuffle=learns, num_workers=workers)
        batches, loss_sum, right = iter(loader), 0.0, 0
        for _ in range(len(loader)):
            asked = time.monotonic()
            mel_B1FT, label_B = next(batches)
            reading += time.monotonic() - asked
            with torch.set_grad_enabled(learns):
                logits_BG = model(mel_B1FT)
                loss = functional.cross_entropy(logits_BG, label_B, label_smoothing=smoothing if learns else 0.0)
            if learns:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            loss_sum += loss.item() * len(label_B)
            right += int((logits_BG.argmax(1) == label_B).sum())
    return {"seconds": time.monotonic() - begin, "reading": reading}


def our_epoch(scratch: str, preset: str, as_is: bool) -> dict[str, float]:
    """The same by `mgc.fit`, until its state is written; what comes once a fit, after the last epoch, is left out."""
    begin = time.monotonic()
    config = replace(PRESETS[preset], epochs=1) if as_is else comparable(preset)
    data = learning_set(FeatureSet.open(f"{scratch}/set"), config)
    ends = [time.monotonic()]
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        loop.fit(config, data, Path(folder), on_epoch=lambda _: ends.append(time.monotonic()))
    return {"seconds": ends[1] - begin, "reading": ends[0] - begin}


def one_step(preset: str, switches: list[str], threads: int) -> dict[str, float]:
    """Median seconds of a training step after the first, which is told by itself."""
    torch.set_num_threads(threads)
    if OURS[0] in switches:
        device.keep_freed_memory()
    config = comparable(preset)
    model = GenreCNN(config.model, GENRES) if "GenreCNN" in switches else plain(config.model, switches)
    model = model.to(memory_format=torch.channels_last) if OURS[1] in switches else model
    learner = torch.compile(model) if "torch.compile" in switches else model
    optimizer = torch.optim.AdamW(model.parameters(), fused="fused AdamW" in switches)
    mel_B1FT, label_B, times = torch.randn(BATCH, 1, 128, 1288), torch.randint(0, GENRES, (BATCH,)), []
    for _ in range(1 + STEPS):
        start = time.monotonic()
        with torch.autocast("cpu", torch.bfloat16, enabled="bf16 autocast" in switches):
            logits_BG = learner(mel_B1FT).float()
        optimizer.zero_grad()
        functional.cross_entropy(logits_BG, label_B, label_smoothing=config.optim.label_smoothing).backward()
        optimizer.step()
        times.append(time.monotonic() - start)
    return {"seconds": median(times[1:]), "first": times[0]}


def check(preset: str) -> None:
    """See that the networks give the same logits and gradients with the same weights, dropout off."""
    config, results = comparable(preset).model, []
    weights = list(GenreCNN(config, GENRES).state_dict().values())
    mel_B1FT, label_B = torch.randn(4, 1, 128, 1288), torch.arange(4)
    for model in (GenreCNN(config, GENRES), plain(config, []), plain(config, list(OURS))):
        model.eval().load_state_dict(dict(zip(model.state_dict(), weights, strict=True)))
        logits_BG = model(mel_B1FT)
        functional.cross_entropy(logits_BG, label_B).backward()
        results.append([logits_BG, *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(results[1:], results[:1] * 2, rtol=1e-3, atol=1e-5)


def write_clips(scratch: str, clips: int, *, npy: bool = True) -> None:
    """Random clips as a feature set, by the product's own writers, and the same as `.npy` files."""
    random, recipe, folder = np.random.default_rng(0), Recipe(), Folder.at(f"{scratch}/set")
    folder.make(SHARDS)
    names, entries = tuple(f"genre {label}" for label in range(GENRES)), []
    schema = SCHEMA.with_metadata({shards.FINGERPRINT_KEY: b"f" * 64, shards.QUARANTINE_KEY: b"[]"})
    for split, tracks in (("training", range(clips)), ("validation", range(clips, clips + clips // 8))):
        for first in tracks[:: recipe.clips_per_shard]:
            rows = []
            for track in tracks[first - tracks[0] :][: recipe.clips_per_shard]:
                label, mel_FT = track % GENRES, random.standard_normal(recipe.spec.shape, np.float32).astype("<f2")
                rows.append({"track_id": track, "label": label, "genre": names[label], "logmel": mel_FT.tobytes()})
                rows[-1]["split"] = split
                if npy:
                    file = Path(scratch, "npy", split, str(label), f"{track}.npy")
                    file.parent.mkdir(parents=True, exist_ok=True)
                    np.save(file, mel_FT.astype(np.float32))
            file = f"{SHARDS}/{split}-{first:05d}-of-{clips:05d}.parquet"
            folder.write(file, parquet_bytes(pa.Table.from_pylist(rows, schema=schema)))
            entries.append(shards.read_record(folder, file).entry)
    manifest = Manifest(FORMAT, "f" * 64, asdict(recipe), names, {}, {}, (), tuple(entries))
    folder.write(MANIFEST, manifest.to_json().encode())


def measured(*work: object) -> dict[str, float]:
    """What a function of this module returns in a process of its own, told on stderr; ``{}`` if it fails."""
    done = subprocess.run([sys.executable, __file__, "--child", json.dumps(work)], capture_output=True, text=True)
    result = {} if done.returncode else json.loads(done.stdout.splitlines()[-1])
    print(*work, result or f"failed: {done.stderr[-600:]}", file=sys.stderr, flush=True)
    return result


def race(title: str, ways: dict[str, tuple[object, ...]], among: int, rounds: int) -> None:
    """Measure each way in turn, round after round, and print the ratios to the best of the first ``among`` ways."""
    runs = [{"way": name, "round": n, **measured(*work)} for n in range(rounds) for name, work in ways.items()]
    frame = pd.DataFrame(runs).set_index(["way", "round"])
    seconds = frame.pop("seconds").unstack("round").loc[list(ways)]
    ratios = seconds.loc[seconds.median(axis=1)[:among].idxmin()] / seconds
    columns = {"ratio": ratios.median(axis=1), "low": ratios.min(axis=1), "high": ratios.max(axis=1)}
    table = pd.DataFrame(columns | {"seconds": seconds.median(axis=1)}).join(frame.groupby("way").median())
    print(f"\n{title}\n{table.rename_axis(None).to_string(float_format='{:.2f}'.format)}", flush=True)


def epoch_ways(scratch: str, preset: str) -> dict[str, tuple[object, ...]]:
    """The ways to an epoch."""
    ways = {f"the seed's way, workers: {n}": ("seed_epoch", scratch, preset, n) for n in (0, 1, 2)}
    ways["mgc.fit"] = ("our_epoch", scratch, preset, False)
    if replace(PRESETS[preset], epochs=1) != comparable(preset):
        ways["mgc.fit, preset as it is: another computation"] = ("our_epoch", scratch, preset, True)
    return ways


def step_ways(preset: str) -> dict[str, tuple[object, ...]]:
    """The variants of a step: each trick alone, all up to it, and the product."""
    switches = {"plain": [], **{f"  {trick}, alone": [trick] for trick in TRICKS}}
    switches |= {f"+ {TRICKS[count - 1]}": TRICKS[:count] for count in range(2, len(TRICKS) + 1)}
    switches["as in mgc.fit"] = ["GenreCNN", *OURS]
    ways = {name: ("one_step", preset, each, THREADS) for name, each in switches.items()}
    return ways | {f"{name}, 1 thread": ("one_step", preset, switches[name], 1) for name in ("plain", "as in mgc.fit")}


def main() -> None:
    """Measure what is asked for and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--preset", nargs="+", default=["plain_cnn", "regularized"], choices=list(PRESETS))
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--epoch-only", action="store_true")
    only.add_argument("--table-only", action="store_true")
    flags = parser.parse_args()
    print(f"torch {torch.__version__}, {THREADS} threads of {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.2f}")
    with tempfile.TemporaryDirectory() as scratch:
        os.environ |= {"TORCHINDUCTOR_CACHE_DIR": f"{scratch}/inductor", "OMP_NUM_THREADS": str(THREADS)}
        write_clips(scratch, flags.clips)
        for preset in flags.preset:
            check(preset)
            if not flags.table_only:
                race(f"{preset}: an epoch of {flags.clips} clips", epoch_ways(scratch, preset), 3, flags.rounds)
            if not flags.epoch_only:
                race(f"{preset}: a step; «+» adds to the tricks above it", step_ways(preset), 1, flags.rounds)
    print(f"\nload {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        name, *arguments = json.loads(sys.argv[2])
        result = globals()[name](*arguments)
        peak = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
        print(json.dumps(result | {"MB": int(peak) / 1024}))
    else:
        main()
