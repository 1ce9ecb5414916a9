"""What a sweep costs beyond its trainings: in time against the same trainings in a row, and in memory.

    python benchmarks/tune.py [--trials 16] [--slots 2] [--seconds 30] [--rounds 1] [--clips 1600] [--busy]

Clips are random, of true size (128 × 1288). Each measurement is a process of its own, from its start to its end, Ray
and imports counted.

- **time**: `mgc tune` with as many random trials, none stopped early, none retrained, on slots of one core each,
  against one process that trains as many as a slot gets, one after the other, with `mgc.train` on one thread. Both keep
  every run in MLflow. A training has ten epochs of a tiny network, each of which waits until a tenth of the seconds is
  over: trials of known length, so that what is measured is the sweep and not how two trainings share a machine's caches
  and memory. With `--busy` it is the plain CNN on 64 clips, for as many epochs as take the seconds.
- **memory**: four trials of one epoch at a time on a set of `--clips`. A trial's private memory counts four times; the
  features, in Ray's object store, count once. Peaks, sampled twice a second.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import ray
from preprocess_memory import memory, workers
from train import write_clips

from mgc.config import SweepConfig, TrainConfig
from mgc.sweep import tune
from mgc.training import loop, train

SPACE = "optim.lr: {log_uniform: [0.0009, 0.0011]}\n"
TARGET = 1.15
BATCH = 8


def config(epochs: int, wait: float) -> TrainConfig:
    """What is trained: the plain CNN, or a tiny network that waits."""
    plain = TrainConfig()  # the plain CNN
    model = replace(plain.model, channels=(2, 2, 2, 2), window=32) if wait else plain.model
    return replace(plain, epochs=epochs, model=model, optim=replace(plain.optim, batch_size=BATCH))


def make_wait(seconds: float) -> None:
    """Have every epoch of this process take at least so long."""
    learn = loop.train_epoch

    def slowly(*arguments: object) -> tuple[float, float, float]:
        begin = time.monotonic()
        result = learn(*arguments)
        time.sleep(max(0.0, seconds - (time.monotonic() - begin)))
        return result

    loop.train_epoch = slowly


def in_a_row(scratch: str, trainings: int, epochs: int, wait: float = 0) -> dict[str, float]:
    """Train one after the other; also how long an epoch took."""
    if wait:
        make_wait(wait)
    settings = config(epochs, wait)
    results = [train.train(f"{scratch}/set", settings, gpus=0, run_name=str(n)) for n in range(trainings)]
    return {"epoch": results[-1].seconds / epochs}


def sweep(scratch: str, trials: int, slots: int, epochs: int, wait: float = 0) -> dict[str, float]:
    """Search with as many trials, and sample the memory of their processes."""
    Path("space.yaml").write_text(SPACE)
    if wait:

        def hook() -> None:
            make_wait(wait)

        everywhere = {"worker_process_setup_hook": hook}
        ray.init(address="local", include_dashboard=False, log_to_driver=False, runtime_env=everywhere)
    settings = SweepConfig(trials=trials, concurrent=slots, search="random", asha=False, top=0)
    peaks, over = {"private_mb": 0.0, "pss_mb": 0.0, "processes": 0.0}, threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            now = [memory(pid) for pid in workers() if b"ImplicitFunc" in name(pid)]
            peaks["processes"] = max(peaks["processes"], len(now))
            peaks["private_mb"] = max(peaks["private_mb"], *(each["Uss"] for each in now), 0)
            peaks["pss_mb"] = max(peaks["pss_mb"], sum(each["Pss"] for each in now))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    result = tune.tune(f"{scratch}/set", config(epochs, wait), settings, space=Path("space.yaml"))
    over.set()
    thread.join()
    ray.shutdown()
    assert (result.trials, result.failed, result.pruned) == (trials, 0, 0)
    return peaks


def name(pid: int) -> bytes:
    """The command line of a process, which Ray sets; nothing of one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def measured(scratch: str, what: str, *numbers: float) -> dict[str, float]:
    """Run one function in a process of its own, in an empty folder; how long that took, and what it returns."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        begin = time.monotonic()
        line = [sys.executable, __file__, "--child", json.dumps([what, scratch, *numbers])]
        done = subprocess.run(line, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        seconds = time.monotonic() - begin
    result = {"seconds": seconds, **json.loads(done.stdout.splitlines()[-1])}
    print(what, *numbers, result, file=sys.stderr, flush=True)
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--clips", type=int, default=1600)
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--child")
    flags = parser.parse_args()
    if flags.child:
        what, *arguments = json.loads(flags.child)
        print(json.dumps({"in_a_row": in_a_row, "sweep": sweep}[what](*arguments)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        write_clips(scratch, 64, npy=False)
        epochs, wait = 10, flags.seconds / 10
        if flags.busy:
            epochs, wait = max(1, round(flags.seconds / measured(scratch, "in_a_row", 1, 2)["epoch"])), 0
        each = flags.trials // flags.slots
        for _ in range(flags.rounds):
            row = measured(scratch, "in_a_row", each, epochs, wait)
            tuned = measured(scratch, "sweep", flags.trials, flags.slots, epochs, wait)
            ratio = tuned["seconds"] / row["seconds"]
            print(
                f"{flags.trials} trials on {flags.slots} slots {tuned['seconds']:.0f} s, {each} in a row "
                f"{row['seconds']:.0f} s ({row['epoch'] * epochs:.1f} s in epochs each): {ratio:.2f} (aim {TARGET})"
            )
    if flags.clips:
        with tempfile.TemporaryDirectory() as scratch:
            write_clips(scratch, flags.clips, npy=False)
            used = measured(scratch, "sweep", 4, 4, 1, 0.0 if flags.busy else 0.1)
            features = (flags.clips + flags.clips // 8) * 128 * 1288 * 2 / 1e6
            each, together = used["private_mb"], used["pss_mb"]
            print(f"features {features:.0f} MB; {used['processes']:.0f} trials at once: {each:.0f} MB each of its own,")
            print(f"{together:.0f} MB together with their share of what is shared")


if __name__ == "__main__":
    main()
