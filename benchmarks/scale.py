"""What grows with the collection, and with the cluster.

    python benchmarks/scale.py [--planned 8000 106574 1000000] [--nodes ROOT --clips 384 --rounds 2 [--wait 0.04]]

**Planned clips**: `mgc preprocess` on so many clips, decoding left out. Each size is a process of its own, on a CSV
file whose clips are not there; a task gives a constant for each of its clips in place of decoding it. All else is as
always: plan, schedule, commit, manifest; then the same command again, which finds nothing to do. For each stage:
seconds, and the most memory that the driver had (RSS, sampled 50 times a second). Targets: linear time, at most 1 ms
and 200 bytes a clip. FMA-large has 106,574 clips.

**Nodes**: real clips (ROOT is whatever `mgc preprocess` takes) on a head of one CPU, then on two nodes of one CPU each,
a raylet each, then on one again, so that a drift of the machine shows. Target: 1.9 times as fast. With `--wait` a clip
takes so many seconds of waiting in place of being decoded: what scheduling costs, on a machine that others use, too.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

from mgc.features import preprocess, shard_tasks
from mgc.features.plan import Plan

SPLITS = ["training"] * 8 + ["validation", "test"]


def write_csv(clips: int, file: Path) -> None:
    """A collection of so many clips, eight genres, eight clips an artist, none of them there but the first."""
    file.with_name("0000").mkdir()
    file.with_name("0000").joinpath("0000000.mp3").touch()
    with file.open("w") as out:
        out.write("path,genre,split,artist,title,duration\n")
        for number in range(clips):
            path, artist = f"{number // 1000:04d}/{number:07d}.mp3", number // 8
            title = f"A title of usual length {number}"
            out.write(f"{path},genre {number % 8},{SPLITS[artist % 10]},Artist {artist},{title},30.0\n")


class Watch:
    """The memory of this process while it goes from stage to stage."""

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}
        self.stage, self.peak = "", self.memory()
        self.over = threading.Event()
        threading.Thread(target=self.sample, daemon=True).start()

    def memory(self) -> float:
        """MB of it."""
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6

    def sample(self) -> None:
        """Keep the most, again and again."""
        while not self.over.wait(0.02):
            self.peak = max(self.peak, self.memory())

    @contextlib.contextmanager
    def on(self, stage: str) -> Iterator[None]:
        """Time a stage; one within another counts for both."""
        self.peak, begin = self.memory(), time.monotonic()
        yield
        self.stages[stage] = {
            "seconds": time.monotonic() - begin + self.stages.get(stage, {}).get("seconds", 0),
            "peak": max(self.peak, self.memory(), self.stages.get(stage, {}).get("peak", 0)),
        }

    def wrap(self, owner: object, name: str, stage: str) -> None:
        """Time a function of a module, or a method of a class, as a stage."""
        function = getattr(owner, name)

        def timed(*arguments: object, **options: object) -> object:
            with self.on(stage):
                return function(*arguments, **options)

        setattr(owner, name, timed)


def constant(block: object, *, job: object, wait: float = 0.0) -> object:
    """The task, but for decoding."""
    import time

    from mgc.features import shard_tasks, shards

    blank = {"source_sha1": "0" * 40, "seconds": 30.0, "promised_seconds": 30.0, "damaged": False, "padded": False}
    blank |= {"mean_db": 0.0, "std_db": 1.0, "logmel": b""}
    time.sleep(wait * len(block))
    shards.each_clip = lambda clips, *rest: ({**clip, **blank} for clip in clips)
    return shard_tasks.write_shard(block, job=job)


def driver(folder: str) -> None:
    """In a fresh process: preprocess, and print seconds and memory of each stage as JSON."""
    watch = Watch()
    at_start = watch.memory()
    for name in ("read_tracks", "with_sizes", "settle", "connect", "write_shards", "dataset_card"):
        watch.wrap(preprocess, name, name)
    watch.wrap(preprocess.shards, "is_written", "is_written")
    watch.wrap(Plan, "begin", "plan.begin")
    constant.__module__ = "__main__"  # pickled by value: in a worker nothing is replaced but its decoding
    shard_tasks.write_shard = constant
    preprocess.preview = lambda *given: b"there are no spectrograms"
    begin = time.monotonic()
    result = preprocess.preprocess(f"{folder}/tracks.csv", f"{folder}/features", max_quarantined=1)
    watch.over.set()
    whole = {"seconds": time.monotonic() - begin, "peak": max(stage["peak"] for stage in watch.stages.values())}
    whole["peak"] = max(whole["peak"], peak_of_this_process())
    print(json.dumps({"shards": result.shards, "start": at_start, "stages": watch.stages, "whole": whole}))


def peak_of_this_process() -> float:
    """MB that this process has had at most."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def again(folder: str) -> None:
    """In a fresh process: the same command, with nothing to do."""
    from mgc import cli

    begin = time.monotonic()
    flags = ["--root", f"{folder}/tracks.csv", "--out", f"{folder}/features", "--max-quarantined", "1"]
    code = cli.run(["preprocess", *flags])
    assert code == 0
    assert "ray" not in sys.modules
    print(json.dumps({"seconds": time.monotonic() - begin, "peak": peak_of_this_process()}))


def child(what: str, folder: str) -> dict:
    """The JSON that a process of its own prints."""
    line = [sys.executable, __file__, "--child", what, folder]
    return json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def planned(sizes: list[int]) -> None:
    """Measure each size and print the tables."""
    wholes, agains = {}, {}
    for clips in sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_csv(clips, Path(folder, "tracks.csv"))
            marks = child("driver", folder)
            agains[clips] = child("again", folder)
        wholes[clips] = marks["whole"]
        print(f"{clips} clips in {marks['shards']} shards; {marks['start']:.0f} MB before anything", flush=True)
        for stage, each in {**marks["stages"], "whole": marks["whole"], "again": agains[clips]}.items():
            share = f"{1e3 * each['seconds'] / clips:9.3f} ms a clip"
            print(f"  {stage:<14}{each['seconds']:9.2f} s{share}, at most {each['peak']:6.0f} MB", flush=True)
    for what, results in (("whole", wholes), ("again", agains)):
        for few, many in pairwise(sizes):
            growth = 1e6 * (results[many]["peak"] - results[few]["peak"]) / (many - few)
            seconds = 1e3 * (results[many]["seconds"] - results[few]["seconds"]) / (many - few)
            print(f"{what}, from {few} to {many}: {growth:.0f} bytes and {seconds:.3f} ms for each clip more")


def nodes(root: str, clips: int, rounds: int, wait: float, scratch: str) -> None:
    """Clips per second on one node, on two, and on one again, and their ratios."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from helpers.raylets import Raylets

    from mgc.core import ray_session

    if wait:
        constant.__module__ = "__main__"
        shard_tasks.write_shard = partial(constant, wait=wait)
    with Raylets() as cluster:
        cluster.add(1)
        os.environ |= cluster.environment

        written, write_shards = [], preprocess.write_shards

        def kept(*arguments: object) -> shard_tasks.Written:
            written.append(write_shards(*arguments))
            return written[-1]

        def rate(name: str, limit: int = clips) -> float:
            options = {"limit": limit, "max_quarantined": 1, "clips_per_shard": 32}
            result = preprocess.preprocess(root, f"{scratch}/{name}", **options)
            shares = [line.strip(" *") for line in written[-1].stats.splitlines() if "per node" in line]
            print(f"{name}: {result.clips_per_second} clips/s; {'; '.join(shares)}", flush=True)
            return result.clips_per_second

        preprocess.write_shards = kept

        ray_session.connect()
        rate("warm", 16)
        for number in range(rounds):
            rates = [rate(f"{number} before")]
            second = cluster.add(1)
            rate(f"{number} warm", 32)
            rates.append(rate(f"{number} two"))
            cluster.kill(second)
            time.sleep(5)  # until Ray has noticed
            rates.append(rate(f"{number} after"))
            ratio = 2 * rates[1] / (rates[0] + rates[2])
            print(f"clips/s on one node, two, one: {rates}: {ratio:.2f} (target ≥ 1.9)", flush=True)
            if wait:
                shares = [rates[0] * wait, rates[1] * wait / 2]
                print(f"of the time that clips wait: {shares[0]:.3f} on one node, {shares[1]:.3f} on two", flush=True)
        ray_session.disconnect()


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planned", type=int, nargs="*", default=[8000, 106_574, 1_000_000])
    parser.add_argument("--nodes", metavar="ROOT")
    parser.add_argument("--clips", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--wait", type=float, default=0.0)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{scratch}/mlflow.db"
        planned(flags.planned)
        if flags.nodes:
            nodes(flags.nodes, flags.clips, flags.rounds, flags.wait, scratch)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        {"driver": driver, "again": again}[sys.argv[2]](sys.argv[3])
    else:
        main()
