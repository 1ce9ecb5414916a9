"""`mgc preprocess` against bare processes with the same loop, against the field's serial way, and from a cold start.

    python benchmarks/preprocess.py ROOT [--clips 800] [--rounds 3] [--processes 2] [--librosa 48] [--cold 2]

ROOT is whatever `mgc preprocess` takes; `--clips 120 --rounds 1 --librosa 8 --cold 1` takes about a minute. Each round
times three ways on the same clips, one after the other, all warm:

- **job**: `mgc.features.preprocess.preprocess` with Ray up, into a fresh folder; its rate is over its time in Ray Data;
- **bare**: as many processes, the shards of the job's plan dealt to them in turn, call `mgc.features.shards.write`;
- **librosa**: `librosa.load` + `melspectrogram` + `power_to_db` + z-score, one process, one .npy a clip, of some clips.

Then whole commands from a cold process, split by what they wait for. Ratios are medians of the rounds' ratios.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from statistics import median

from mgc.core import ray_session
from mgc.core.storage import Folder
from mgc.features import preprocess, shard_tasks, shards
from mgc.features.layout import read_manifest
from mgc.features.plan import Plan, ShardPlan
from mgc.features.recipe import Recipe

PARTS = ("imports", "tracks, plan, MLflow", "ray.init", "ray.data to the first task", "work", "end")


def bare(deal: tuple[ShardPlan, ...], root: Folder, out: Folder, recipe: Recipe) -> tuple[float, float, list[str]]:
    """One process's share; when it began and ended, and the hashes of what it wrote."""
    begin = time.monotonic()
    records = [shards.write(shard, root, out, recipe=recipe, clip_timeout=60.0) for shard in deal]
    return begin, time.monotonic(), [record.entry.sha256 for record in records]


def librosa_way(paths: list[str], out: str) -> float:
    """Clips per second of the serial way, the first clip not counted: it warms up."""
    import librosa
    import numpy as np

    for number, path in enumerate([paths[0], *paths]):
        if number == 1:
            begin = time.monotonic()
        samples, rate = librosa.load(path, sr=22050, duration=29.9)
        samples = librosa.util.fix_length(samples, size=round(29.9 * rate))
        db = librosa.power_to_db(librosa.feature.melspectrogram(y=samples, sr=rate, hop_length=512, n_mels=128))
        np.save(f"{out}/{Path(path).stem}.npy", ((db - db.mean()) / db.std()).astype(np.float16))
    return len(paths) / (time.monotonic() - begin)


def cold(begin: float, arguments: list[str], notes: Path) -> None:
    """In a fresh process: run the command and note when each of its parts ended."""
    connect, write_shards, write_shard = preprocess.connect, preprocess.write_shards, shard_tasks.write_shard
    marks = [begin, time.monotonic()]

    def timed_connect() -> None:
        marks.append(time.monotonic())
        connect()
        marks.append(time.monotonic())

    def timed_shards(*given: object) -> object:
        result = write_shards(*given)
        marks.append(time.monotonic())
        return result

    def timed_task(block: object, *, job: object) -> object:  # pickled by value
        (notes / f"task-{time.monotonic()}").touch()
        return write_shard(block, job=job)

    from mgc import cli

    preprocess.connect, preprocess.write_shards, shard_tasks.write_shard = timed_connect, timed_shards, timed_task
    code = cli.run(["preprocess", *arguments])
    first = min(float(note.name.removeprefix("task-")) for note in notes.glob("task-*"))
    (notes / "marks.json").write_text(json.dumps(sorted([*marks, first])))
    sys.exit(code)


def time_cold(arguments: list[str], notes: Path) -> list[float]:
    """Seconds of each part of a whole command, as ``PARTS`` names them."""
    notes.mkdir()
    begin = time.monotonic()
    command = [sys.executable, __file__, "--cold-child", str(begin), str(notes), *arguments]
    subprocess.run(command, check=True, capture_output=True)
    marks = [*json.loads((notes / "marks.json").read_text()), time.monotonic()]
    return [after - before for before, after in pairwise(marks)]


def time_ways(root: str, clips: int, rounds: int, processes: int, sample: int, scratch: str) -> dict[str, list[float]]:
    """Clips per second of each way in each round."""
    rates: dict[str, list[float]] = {"job": [], "bare": [], "librosa": []}
    audio_root = preprocess.read_tracks(root).audio_root

    def job(name: str, limit: int) -> float:
        result = preprocess.preprocess(root, f"{scratch}/{name}", limit=limit, workers=processes, max_quarantined=1)
        return result.clips_per_second

    def both(deals: list[tuple[ShardPlan, ...]], out: Folder, recipe: Recipe) -> list[tuple[float, float, list[str]]]:
        return list(pool.map(bare, deals, *zip(*[(audio_root, out, recipe)] * processes, strict=True)))

    ray_session.connect()
    job("warm", 4 * processes)
    os.environ["OMP_NUM_THREADS"] = "1"  # as Ray's workers have it
    pool = ProcessPoolExecutor(processes, get_context("spawn"))
    list(pool.map(time.sleep, [1.0] * processes))  # starts them all
    del os.environ["OMP_NUM_THREADS"]
    serial = ProcessPoolExecutor(1, get_context("spawn"))
    for number in range(rounds):
        rates["job"].append(job(f"job{number}", clips))
        plan, out = Plan.read(Folder.at(f"{scratch}/job{number}")), Folder.at(f"{scratch}/bare{number}")
        out.make("shards")
        if number == 0:
            both([plan.shards[-1:]] * processes, out, plan.recipe)
        done = both([plan.shards[start::processes] for start in range(processes)], out, plan.recipe)
        rates["bare"].append(len(plan.clips) / (max(end for _, end, _ in done) - min(begin for begin, _, _ in done)))
        manifest = read_manifest(Folder.at(f"{scratch}/job{number}"))
        assert {s.sha256 for s in manifest.shards} == {sha for *_, shas in done for sha in shas}, "other bytes"
        paths = [str(audio_root.path / path) for path in plan.clips["path"].to_pylist()[:sample]]
        rates["librosa"].append(serial.submit(librosa_way, paths, scratch).result())
        print(f"round {number + 1}: " + ", ".join(f"{way} {rates[way][-1]:.2f}" for way in rates), flush=True)
    ray_session.disconnect()
    return rates


def main() -> None:
    """Time all ways in turn and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    for name, default in (("clips", 800), ("rounds", 3), ("processes", 2), ("librosa", 48), ("cold", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    flags = parser.parse_args()
    print(f"{flags.clips} clips, {flags.processes} processes, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.2f}")
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{scratch}/mlflow.db"
        if flags.rounds:
            rates = time_ways(flags.root, flags.clips, flags.rounds, flags.processes, flags.librosa, scratch)
            for way, values in rates.items():
                print(f"{way:<8} {median(values):7.2f} clips/s (median of {flags.rounds} rounds)")
            for way, target in (("bare", 0.95), ("librosa", 3.0)):
                ratios = [a / b for a, b in zip(rates["job"], rates[way], strict=True)]
                print(
                    f"job / {way:<8} {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}; target ≥ {target})"
                )
        colds = []
        for number in range(flags.cold):
            arguments = ["--root", flags.root, "--out", f"{scratch}/cold{number}", "--limit", str(flags.clips)]
            colds.append(time_cold([*arguments, "--max-quarantined", "1"], Path(scratch, f"notes{number}")))
        if colds:
            print(f"a whole command, cold: {median(map(sum, colds)):.1f} s (median of {flags.cold})")
            for part, seconds in zip(PARTS, zip(*colds, strict=True), strict=True):
                print(f"  {part:<27} {median(seconds):6.1f} s   {' '.join(f'{value:.1f}' for value in seconds)}")
            first = median(sum(parts[: PARTS.index("work")]) for parts in colds)
            print(f"  start to first clip         {first:6.1f} s   target ≤ 6")
        print(f"load {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--cold-child"]:
        cold(float(sys.argv[2]), sys.argv[4:], Path(sys.argv[3]))
    main()
