"""Memory of `mgc preprocess`: of a worker beyond Ray's own, and of the driver as the collection grows.

    python benchmarks/preprocess_memory.py ROOT [--clips 256] [--planned 8000 106574]

ROOT is whatever `mgc preprocess` takes. A worker is a Ray process that runs our tasks, with the child that decodes for
it: their RSS counts shared pages twice, their PSS by their share, their USS (private pages) not at all. They are held
against Ray's own: the same kind of process after a trivial `map_batches` with pyarrow. The driver is measured on tables
of tracks whose files are not there, with decoding replaced by a constant (106,574 clips are FMA-large), and with it the
time that a whole `mgc preprocess` with nothing left to do takes.
"""

import argparse
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

from mgc.core import ray_session
from mgc.features import preprocess, shard_tasks

KINDS = ("Rss", "Pss", "Uss")


def memory(pid: int) -> dict[str, float]:
    """MB of one process, by kind; nothing of one that is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return dict.fromkeys(KINDS, 0.0)
    pages = {name: int(rest.split()[0]) / 1024 for name, _, rest in (line.partition(":") for line in lines)}
    return {"Rss": pages["Rss"], "Pss": pages["Pss"], "Uss": pages["Private_Clean"] + pages["Private_Dirty"]}


def workers() -> dict[int, list[int]]:
    """Ray's worker processes below this one, each with its children."""
    parents, names = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            pid, parents[int(entry.name)] = (
                int(entry.name),
                int((entry / "stat").read_text().rpartition(")")[2].split()[1]),
            )
            names[pid] = (entry / "cmdline").read_text()
        except OSError:
            continue

    def ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and ours(parents[pid]))

    found = [pid for pid, name in names.items() if name.startswith("ray::") and ours(pid)]
    return {pid: [child for child in found if parents[child] == pid] for pid in found if parents[pid] not in found}


def sample(seconds: float, until: threading.Event) -> list[tuple[int, str, dict[str, float]]]:
    """The memory of each worker, of its child if it has one, and of both together, again and again."""
    samples = []
    while not until.wait(seconds):
        for pid, children in workers().items():
            own, theirs = memory(pid), [memory(child) for child in children]
            below = {kind: sum(one[kind] for one in theirs) for kind in KINDS}
            samples += [(pid, "worker", own), (pid, "both", {kind: own[kind] + below[kind] for kind in KINDS})]
            if children:
                samples.append((pid, "child", below))
    return samples


def measure_workers(root: str, clips: int, scratch: str) -> None:
    """Print the memory of Ray's own workers, and of ours while the job runs."""
    import pyarrow as pa

    ray_session.connect()
    import ray.data

    cpus = int(ray.cluster_resources()["CPU"])

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    tables = [pa.table({"x": [float(number)] * 1000}) for number in range(8 * cpus)]
    trivial = ray.data.from_arrow(tables).map_batches(lambda table: table, batch_size=None, batch_format="pyarrow")
    trivial.materialize()
    done = threading.Event()
    threading.Timer(1.0, done.set).start()
    idle = sample(0.2, done)
    base = {kind: median(values[kind] for _, _, values in idle) for kind in KINDS}

    done = threading.Event()
    result: list[tuple[int, str, dict[str, float]]] = []
    thread = threading.Thread(target=lambda: result.extend(sample(0.05, done)))
    thread.start()
    preprocess.preprocess(root, f"{scratch}/features", limit=clips, max_quarantined=1)
    done.set()
    thread.join()
    busy = {pid for pid, what, _ in result if what == "child"}
    print(f"{'MB a worker, of ' + str(len(busy)):<40}" + "".join(f"{kind.upper():>16}" for kind in KINDS))
    print(f"{'Ray idle after a trivial task':<40}" + "".join(f"{base[kind]:16.0f}" for kind in KINDS))
    for what in ("worker", "child", "both"):
        rows = [values for pid, name, values in result if name == what and pid in busy]
        cells = [(median(row[kind] for row in rows), max(row[kind] for row in rows)) for kind in KINDS]
        print(f"{what + ': median, most':<40}" + "".join(f"{middle:9.0f}{most:7.0f}" for middle, most in cells))
    beyond = "".join(
        f"{middle - base[kind]:9.0f}{most - base[kind]:7.0f}" for kind, (middle, most) in zip(KINDS, cells, strict=True)
    )
    print(f"{'both beyond Ray (target: PSS ≤ 150)':<40}{beyond}")


def driver(clips: int, folder: str) -> None:
    """In a fresh process: preprocess so many absent files; print the process's memory as JSON."""
    genres = [f"genre {number}" for number in range(8)]
    splits = ["training"] * 8 + ["validation", "test"]
    rows = (
        f"{number // 1000:03d}/{number:06d}.mp3,{genres[number % 8]},{splits[number // 8 % 10]},"
        f"Artist {number // 8},A title of usual length {number},30.0\n"
        for number in range(clips)
    )
    Path(folder, "tracks.csv").write_text("path,genre,split,artist,title,duration\n" + "".join(rows))

    def constant_task(block: object, *, job: object) -> object:  # pickled by value; in the worker nothing is replaced
        from mgc.features import shard_tasks, shards

        blank = {"source_sha1": "0" * 40, "seconds": 30.0, "promised_seconds": 30.0, "damaged": False, "padded": False}
        blank |= {"mean_db": 0.0, "std_db": 1.0, "logmel": b""}
        assert hasattr(shards, "each_clip")
        shards.each_clip = lambda clips, *rest: ({**clip, **blank} for clip in clips)
        return shard_tasks.write_shard(block, job=job)

    shard_tasks.write_shard = constant_task
    preprocess.preview = lambda *given: b"there are no spectrograms"
    marks = {"clips": clips, "start": memory(os.getpid())["Rss"]}
    connect = preprocess.connect

    def watched_connect() -> None:
        marks["planned"] = memory(os.getpid())["Rss"]
        connect()

    preprocess.connect = watched_connect
    result = preprocess.preprocess(f"{folder}/tracks.csv", f"{folder}/features", max_quarantined=1)
    marks |= {"end": memory(os.getpid())["Rss"], "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    print(json.dumps(marks | {"shards": result.shards, "rate": result.clips_per_second}))


def measure_driver(planned: list[int], scratch: str) -> None:
    """Print the driver's memory, and the time of a command with nothing to do, by planned clips."""
    columns = {"planned": 10, "shards": 8, "MB at start": 13, "at ray.init": 13, "end": 7, "peak": 7, "clips/s": 9}
    print("".join(f"{name:>{width}}" for name, width in columns.items()) + f"{'nothing to do':>15}")
    peaks = []
    for clips in planned:
        folder = f"{scratch}/{clips}"
        Path(folder).mkdir()
        child = [sys.executable, __file__, "--driver-child", str(clips), folder]
        marks = json.loads(subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        peaks.append(marks["peak"])
        command = [
            sys.executable,
            "-m",
            "mgc.preprocess",
            "--root",
            f"{folder}/tracks.csv",
            "--out",
            f"{folder}/features",
        ]
        seconds = []
        for _ in range(3):
            begin = time.monotonic()
            subprocess.run([*command, "--max-quarantined", "1"], check=True, capture_output=True)
            seconds.append(time.monotonic() - begin)
        print(
            f"{clips:10d}{marks['shards']:8d}{marks['start']:13.0f}{marks['planned']:13.0f}{marks['end']:7.0f}"
            f"{marks['peak']:7.0f}{marks['rate']:9.0f}{median(seconds):13.1f} s",
            flush=True,
        )
    if len(planned) > 1:
        print(f"growth: {1e3 * (peaks[-1] - peaks[0]) / (planned[-1] - planned[0]):.2f} kB a clip")


def main() -> None:
    """Measure both and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--planned", type=int, nargs="*", default=[8000, 106_574])
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{scratch}/mlflow.db"
        measure_driver(flags.planned, scratch)
        if flags.clips:
            measure_workers(flags.root, flags.clips, scratch)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--driver-child"]:
        driver(int(sys.argv[2]), sys.argv[3])
    else:
        main()
