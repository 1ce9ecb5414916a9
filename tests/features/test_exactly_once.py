"""Exactly once: whatever is killed, and however often, the same command again ends in the bytes of an undisturbed run.

Run as a program this file is the driver of these tests: it has everything imported, and forks a process for each run,
whose writing may be armed so that it kills itself there with SIGKILL. All other kills come from outside.
"""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from helpers.processes import free_ports, processes_of

from mgc.collection.tracks import read_tracks
from mgc.core.errors import InputError
from mgc.core.storage import Folder
from mgc.dataset import clips as clips_of
from mgc.features import shards
from mgc.features.feature_set import FeatureSet
from mgc.features.layout import CARD, CROISSANT, MANIFEST, PLAN, QUARANTINE, SHEET
from mgc.features.plan import Plan, Recipe, with_sizes

RATE = 22_050
FLAGS = ["--clips-per-shard", "3", "--min-seconds", "1", "--max-quarantined", "0.5"]
WHEN = ("before", "half", "written", "after")
"""Moments of a file's writing: nothing is there; half of its bytes; all under a temporary name; all and renamed."""
PAUSE = 0.1
"""Seconds that a clip takes longer in these tests: kills must find somebody at work."""
PATIENCE = 90.0
"""Seconds that anything may take on a busy machine."""
BAD = {
    "absent.wav": "missing",
    "empty.mp3": "empty",
    "text.mp3": "not_audio",
    "short.wav": "too_short",
    "nan.wav": "not_finite",
}


# The driver (this file as a program)


def serve():
    """Fork a process for each line of standard input, a run; answer with its id, and with its code when it ends."""
    import ray.data  # noqa: F401

    from mgc import cli  # noqa: F401
    from mgc.features import preprocess  # noqa: F401
    from mgc.tracking import runs as tracking  # noqa: F401

    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                code = drive(**json.loads(line))
            finally:
                os._exit(code)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def drive(arguments, diary, run, weapons, arsenal, log, pause, environment):
    """One run of ``mgc preprocess`` in this process."""
    from mgc import cli
    from mgc.features import shard_tasks

    for target in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), target)
    for name, value in environment.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    shard_tasks.write_shard = watched(diary, run, weapons, arsenal, pause)
    arm(weapons, arsenal)
    return cli.run(["preprocess", *arguments])


def watched(diary, run, weapons, arsenal, pause):
    """The task: it keeps a diary, takes its time, and is armed."""

    def task(block, *, job):
        from mgc.features import shard_tasks, shards  # the worker's, which nobody has changed

        extract = getattr(shards.extract, "plain", shards.extract)

        def slow(clip, file, recipe):
            note(diary, run, "decodes", clip["path"])
            time.sleep(pause)
            return extract(clip, file, recipe)

        slow.plain = extract
        shards.extract = slow
        arm(weapons, arsenal)
        file = block["shard"][0].as_py()
        note(diary, run, "begins", file)
        result = shard_tasks.write_shard(block, job=job)
        note(diary, run, "ends", file)
        return result

    return task


def note(diary, run, what, name):
    line = {"run": run, "what": what, "name": name, "pid": os.getpid(), "born": born(os.getpid())}
    with open(diary, "ab", buffering=0) as file:
        file.write(json.dumps(line).encode() + b"\n")


def born(pid):
    """When a process began, which tells it from a later one of the same id; None if there is none, or a dead one."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])


def arm(weapons, arsenal):
    """Let this process kill itself at moments of its writing, each once; a weapon is a file's name and one of WHEN."""
    if hasattr(os.replace, "armed"):
        return
    write_bytes, replace = Path.write_bytes, os.replace

    def loaded(name, when):
        return [name, when] in weapons and not (Path(arsenal) / f"{name}-{when}").exists()

    def fire(name, when):
        if loaded(name, when):
            (Path(arsenal) / f"{name}-{when}").write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)

    def writing(path, data):
        name = re.sub(r"^\.(.+)\.[0-9a-f]{32}\.tmp$", r"\1", path.name)
        fire(name, "before")
        if loaded(name, "half"):
            write_bytes(path, memoryview(data)[: len(memoryview(data)) // 2])
            fire(name, "half")
        count = write_bytes(path, data)
        fire(name, "written")
        return count

    def renaming(source, target):
        replace(source, target)
        fire(Path(target).name, "after")

    renaming.armed = True
    Path.write_bytes, os.replace = writing, renaming


# The driver as the tests see it


class Driver:
    """The program above, and what it and its tasks have noted."""

    def __init__(self, folder, environment):
        self.folder, self.diary = folder, folder / "diary"
        self.diary.touch()
        self.runs = 0
        paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]  # where helpers are
        environment = environment | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        with (folder / "driver.log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, bufsize=0,
                env=environment, cwd=folder, start_new_session=True,
            )  # fmt: skip

    def start(self, root, out, *, weapons=(), pause=PAUSE, environment=None):
        self.runs += 1
        (self.folder / "arsenal").mkdir(exist_ok=True)
        log = self.folder / f"run{self.runs}.log"
        request = {
            "arguments": ["--root", str(root), "--out", str(out), *FLAGS],
            "diary": str(self.diary),
            "run": self.runs,
            "weapons": list(weapons),
            "arsenal": str(self.folder / "arsenal"),
            "log": str(log),
            "pause": pause,
            "environment": environment or {},
        }
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        return DriverRun(self, self.runs, int(self._line()), log)

    def notes(self):
        lines = self.diary.read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def spent(self, name, when):
        return (self.folder / "arsenal" / f"{name}-{when}").exists()

    def end(self):
        self.process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _line(self):
        line = self.process.stdout.readline()
        assert line, (self.folder / "driver.log").read_text()
        return line


class DriverRun:
    """One run: a process that the driver has forked."""

    def __init__(self, driver, number, pid, log):
        self.driver, self.number, self.pid, self.log = driver, number, pid, log
        self.code = None
        self.began = time.monotonic()

    def over(self):
        if self.code is None and select.select([self.driver.process.stdout], [], [], 0)[0]:
            self.code = int(self.driver._line())
        return self.code is not None

    def wait(self, seconds=2 * PATIENCE):
        assert wait_until(self.over, seconds), f"still running after {seconds} s: {self.said()}"
        return self.code

    def said(self):
        return self.log.read_text()

    def complaints(self):
        return [line for line in self.said().splitlines() if line.startswith("mgc: ")]

    def notes(self, what):
        return [each for each in self.driver.notes() if each["run"] == self.number and each["what"] == what]

    def at_work(self):
        """The workers that have begun a shard and not ended it, as far as they live."""
        begun = {(each["pid"], each["born"]): each for each in self.notes("begins")}
        ended = {(each["pid"], each["born"], each["name"]) for each in self.notes("ends")}
        return [e for key, e in begun.items() if (*key, e["name"]) not in ended and born(e["pid"]) == e["born"]]

    def decoding(self):
        """The forked children that decode, the youngest first."""
        found = {(each["pid"], each["born"]): each for each in self.notes("decodes")}
        return [each for each in reversed(found.values()) if born(each["pid"]) == each["born"]]

    def strike(self, victim, after):
        """SIGKILL the driver, a worker at work or a decoding child so many seconds after the first shard has begun.

        False if the run is over before there is one.
        """
        wait_until(lambda: self.notes("begins") or self.over())
        time.sleep(after)

        def struck():
            if self.over():
                return "nobody"
            if victim == "driver":
                return slay(self.pid, born(self.pid)) and victim
            found = self.at_work() if victim == "worker" else self.decoding()
            return any(slay(each["pid"], each["born"]) for each in found) and victim

        who = wait_until(struck)
        assert who, f"no {victim} at work: {self.said()}"
        return who == victim


def slay(pid, birth):
    """SIGKILL a process and see it dead; False if it was dead before."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if birth is None or born(pid) != birth:
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        return bool(poll.poll(PATIENCE * 1000))
    finally:
        os.close(handle)


def wait_until(condition, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def tree(pid):
    """A process and all below it, with their births."""
    parents = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with suppress(OSError):
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                parents[int(process.name)] = int(fields[1])
    found = [pid]
    for parent in found:
        found += [child for child, above in parents.items() if above == parent]
    return [(each, birth) for each in found if (birth := born(each))]


# What is there for all tests


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """24 clips of 1.5 s, WAV and MP3, five of them broken; an artist a clip."""
    folder = tmp_path_factory.mktemp("kills") / "clips"
    folder.mkdir()
    generator = np.random.default_rng(0)
    names = [f"{i}.{('wav', 'mp3')[i % 2]}" for i in range(19)]
    for name in names:
        soundfile.write(folder / name, generator.uniform(-0.5, 0.5, 3 * RATE // 2), RATE)
    soundfile.write(folder / "short.wav", np.zeros(RATE // 2), RATE)
    soundfile.write(folder / "nan.wav", np.full(2 * RATE, np.nan), RATE, subtype="FLOAT")
    (folder / "empty.mp3").touch()
    (folder / "text.mp3").write_text("no music " * 1000)
    generator.shuffle(names := names + list(BAD))
    splits = ["training"] * 16 + ["validation"] * 4 + ["test"] * 4
    lines = [f"{name},{'ab'[i % 2]},{splits[i]},artist {i}" for i, name in enumerate(names)]
    (folder / "clips.csv").write_text("\n".join(["path,genre,split,artist", *lines]))
    return folder / "clips.csv"


@pytest.fixture(scope="module")
def cluster():
    """A Ray head with token authentication and two CPUs on free ports: its folder and the environment to reach it."""
    folder = Path(tempfile.mkdtemp(prefix="mgc-", dir="/tmp"))  # short: Ray makes sockets below it
    (port,) = free_ports(1)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_health_check_initial_delay_ms": "500",  # a dead node is noticed in seconds
        "RAY_health_check_period_ms": "500",
        "MGC_TEST_HEAD": str(folder),
    }
    words = ["--head", "--port", port, "--include-dashboard", "false", "--temp-dir", folder]
    try:
        with ray_node(words, "127.0.0.1", environment, folder / "head.log"):
            store = f"sqlite:///{folder}/mlflow.db"
            yield folder, environment | {"RAY_ADDRESS": f"127.0.0.1:{port}", "MLFLOW_TRACKING_URI": store}
    finally:
        for pid in processes_of(folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def ray_node(words, address, environment, log):
    """A raylet of two CPUs on loopback; killed in the end, by process id (no «ray stop»: others have Rays, too)."""
    sizes = ["--num-cpus", 2, "--object-store-memory", 100_000_000]
    command = [Path(sys.executable).with_name("ray"), "start", "--block", "--disable-usage-stats", *words, *sizes]
    with log.open("w") as file:
        process = subprocess.Popen(
            [str(word) for word in [*command, "--node-ip-address", address]],
            env=environment, stdout=file, stderr=file, start_new_session=True, cwd=log.parent,
        )  # fmt: skip
    try:
        up = wait_until(lambda: process.poll() is not None or "Ray runtime started" in log.read_text())
        assert up, log.read_text()
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        for pid, birth in tree(process.pid):
            slay(pid, birth)
        process.wait()


@pytest.fixture(scope="module")
def driver(cluster):
    folder, environment = cluster
    driver = Driver(folder, environment)
    yield driver
    driver.end()


def command(collection, out, environment, cwd, *words):
    """The command itself, as a process of its own."""
    line = [sys.executable, "-m", "mgc.cli", "preprocess", "--root", str(collection), "--out", str(out), *FLAGS, *words]
    return subprocess.Popen(line, env=environment, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def undisturbed(collection, driver):
    """The files of an undisturbed run, by name: what all others have to end in."""
    out = collection.parents[1] / "undisturbed"
    run = driver.start(collection, out, pause=0)
    assert run.wait() == 0, run.said()
    assert run.complaints() == []
    return contents(out)


def contents(folder):
    found = {}
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError, IsADirectoryError):  # an orphan of a killed run has just renamed it
            found[str(file.relative_to(folder))] = file.read_bytes()
    return found


def finished_shards(out):
    """The shards that are there, by name, with what changes when one is written again."""
    files = [file for file in (out / "shards").glob("*.parquet") if not file.name.startswith(".")]
    return {f"shards/{file.name}": (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def check_between(out, undisturbed):
    """What a kill may leave: whole files and hidden ones. Without a manifest readers refuse it."""
    found = contents(out) if out.exists() else {}
    hidden = {name for name in found if Path(name).name.startswith(".")}
    assert all(name == ".lock" or re.fullmatch(r"(shards/)?\.[^/]+\.[0-9a-f]{32}\.tmp", name) for name in hidden)
    visible = {name: data for name, data in found.items() if name not in hidden}
    assert visible.items() <= undisturbed.items(), [n for n, data in visible.items() if undisturbed.get(n) != data]
    if MANIFEST in visible:
        assert visible == undisturbed
        clips_of.load(FeatureSet.open(out), "training")
    elif out.exists():
        with pytest.raises(InputError, match="unfinished"):
            FeatureSet.open(out)


def test_every_clip_of_the_undisturbed_set_is_one_row_or_one_quarantine_row(undisturbed, collection):
    set_ = collection.parents[1] / "undisturbed"
    rows = pq.read_table(set_ / "shards", columns=["path"])["path"].to_pylist()
    quarantine = {row["path"]: row["reason"] for row in pq.read_table(set_ / QUARANTINE).to_pylist()}
    clips = [line.split(",")[0] for line in collection.read_text().splitlines()[1:]]
    assert quarantine == BAD
    assert sorted([*rows, *quarantine]) == sorted(clips)
    assert len([name for name in undisturbed if name.startswith("shards/")]) == 10
    assert undisturbed.keys() >= {MANIFEST, PLAN, QUARANTINE, CARD, CROISSANT, SHEET}


# Kills


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_twenty_kills_at_random_moments_cost_no_clip_and_no_byte(driver, collection, undisturbed, tmp_path):
    chance = random.Random(20)
    outside = deque(["child", "driver", "worker", "driver", "child", "driver", "worker", "driver", "child", "worker"])
    early = [[PLAN, when] for when in chance.sample(WHEN, 2)]
    middle = deque(chance.sample(WHEN, 3))  # of shards
    late = deque([name, chance.choice(WHEN)] for name in chance.sample((QUARANTINE, SHEET, CROISSANT, CARD), 2))
    late += [[MANIFEST, when] for when in [*chance.sample(WHEN[:3], 2), "after"]]
    moments = len(outside) + len(early) + len(middle) + len(late)
    assert moments == 20
    order = [entry["file"] for entry in json.loads(undisturbed[MANIFEST])["shards"]]
    kills, sets = [], [tmp_path / "set0"]

    def run(weapons, victims=()):
        """Start the command, strike, and look at what is left; return the weapons that have fired."""
        out = sets[-1]
        before = finished_shards(out)
        it = driver.start(collection, out, weapons=weapons)
        struck = []
        for victim in victims:
            if not it.strike(victim, chance.uniform(0, 3 * PAUSE)):
                break  # it was over first: the next run takes this moment
            struck.append(outside.popleft())
        code = it.wait()
        fired = [weapon for weapon in weapons if driver.spent(*weapon)]
        kills.extend([*struck, *(Path(name).stem.partition("-")[0] for name, _ in fired)])
        in_driver = [name for name, _ in fired if "-of-" not in name]
        assert code == (-signal.SIGKILL if in_driver or "driver" in struck else 0), it.said()
        check_between(out, undisturbed)
        assert {name: stat for name, stat in finished_shards(out).items() if name in before} == before
        assert not before.keys() & {each["name"] for each in it.notes("begins")}  # nor decoded again
        if code == 0:
            sets.append(tmp_path / f"set{len(sets)}")
        return fired

    for weapon in early:
        run([weapon])
    while outside or middle:
        victims = list(outside)[: outside.index("driver") + 1 if "driver" in outside else None]
        missing = [file for file in order if not (sets[-1] / file).exists()]
        weapons = [[Path(chance.choice(missing[:2])).name, middle[0]]] if middle and missing else []
        fired = run([*weapons, *list(late)[:1]], victims)
        if weapons and weapons[0] in fired:
            middle.popleft()
        if late and late[0] in fired:
            late.popleft()
    while late:
        if run([late[0]]):
            late.popleft()
    assert len(kills) == moments, kills
    assert kills.count("driver") == 4
    for out in sets:
        if out.exists():
            last = driver.start(collection, out)
            assert last.wait() == 0, last.said()
            assert contents(out) == undisturbed
    again = driver.start(collection, sets[0])
    assert again.wait() == 0
    assert "nothing to do" in again.said()
    assert contents(sets[0]) == undisturbed
    workers = [each for each in driver.notes() if each["what"] == "begins"]
    assert wait_until(lambda: all(born(each["pid"]) != each["born"] for each in workers))  # no orphan is left


@pytest.mark.parametrize("clip", [0, 1, 2])
def test_a_decoding_child_killed_from_outside_costs_no_clip(clip, collection, undisturbed, tmp_path, monkeypatch):
    """Whichever clip it was at: the first of a child, or a later one."""
    tracks = read_tracks(collection)
    recipe = Recipe(min_seconds=1.0, clips_per_shard=3)
    shard = next(s for s in Plan.of(with_sizes(tracks.table, tracks.audio_root), recipe).shards if len(s.clips) == 3)
    extract = shards.extract

    def struck(row, file, recipe):
        if row["path"] == shard.clips["path"][clip].as_py() and not (tmp_path / "struck").exists():
            (tmp_path / "struck").touch()
            os.kill(os.getpid(), signal.SIGKILL)  # what an administrator or the kernel short of memory would do
        return extract(row, file, recipe)

    monkeypatch.setattr(shards, "extract", struck)
    out = Folder.at(tmp_path / "set")
    out.make("shards")
    shards.write(shard, tracks.audio_root, out, recipe=recipe, clip_timeout=60.0)
    assert (tmp_path / "struck").exists()
    assert contents(out.path) == {shard.file: undisturbed[shard.file]}


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_node_killed_in_the_middle_of_a_run_costs_no_clip_and_no_second_run(
    cluster, driver, collection, undisturbed, tmp_path
):
    folder, environment = cluster
    words = ["--address", environment["RAY_ADDRESS"]]
    plain = {key: value for key, value in environment.items() if key != "RAY_ADDRESS"}
    with ray_node(words, "127.0.0.2", plain, folder / "node.log") as node:
        run = driver.start(collection, tmp_path / "set", pause=10 * PAUSE)  # the new node's workers start meanwhile

        def working():
            below = set(tree(node.pid))
            return [each for each in run.at_work() if (each["pid"], each["born"]) in below]

        assert wait_until(lambda: working() or run.over()), run.said()
        time.sleep(random.Random(2).uniform(0, PAUSE))
        lost = working()
        for pid, birth in tree(node.pid):
            slay(pid, birth)
        assert lost, run.said()
        assert not run.over(), run.said()
        assert run.wait() == 0, run.said()
        assert all(born(each["pid"]) != each["born"] for each in lost)
    assert contents(tmp_path / "set") == undisturbed
    begun = [each["name"] for each in run.notes("begins")]
    assert any(begun.count(each["name"]) > 1 for each in lost)  # done anew, by another node


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_killed_driver_takes_its_own_ray_with_it_and_the_next_run_finishes(
    cluster, driver, collection, undisturbed, tmp_path
):
    room = Path(tempfile.mkdtemp(prefix="mgc-", dir="/tmp"))
    environment = {name: None for name in cluster[1] if name.startswith("RAY_")} | {"RAY_TMPDIR": str(room)}
    own = []
    try:
        run = driver.start(collection, tmp_path / "set", environment=environment)
        assert wait_until(lambda: finished_shards(tmp_path / "set") or run.over())
        own = tree(run.pid)
        # A GCS, a raylet, workers; Ray's two agents, which write nothing, look for a dead GCS for a minute.
        rest = []
        for pid, birth in own:
            with suppress(FileNotFoundError):  # it has ended meanwhile
                if b"Agent" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                    rest.append((pid, birth))
        assert len(rest) > 4
        assert run.strike("driver", 0.0)
        assert run.wait() == -signal.SIGKILL
        assert wait_until(lambda: not any(born(pid) == birth for pid, birth in rest)), rest
        check_between(tmp_path / "set", undisturbed)
        kept = finished_shards(tmp_path / "set")
        assert kept
        assert len(kept) < 10
        again = driver.start(collection, tmp_path / "set", pause=0)  # on the cluster, which is up
        assert again.wait() == 0, again.said()
        assert contents(tmp_path / "set") == undisturbed
        assert finished_shards(tmp_path / "set").items() >= kept.items()
    finally:
        for pid, birth in own:
            slay(pid, birth)
        for pid in processes_of(room):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(room, ignore_errors=True)


@pytest.mark.timeout(280)
def test_a_driver_killed_while_mlflow_makes_its_database_does_not_spoil_it(cluster, collection, undisturbed, tmp_path):
    out = tmp_path / "set"
    for name, data in undisturbed.items():  # all but the manifest, so that no run needs Ray
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        if name != MANIFEST:
            (out / name).write_bytes(data)
    environment = {key: value for key, value in cluster[1].items() if key != "MLFLOW_TRACKING_URI"}
    with command(collection, out, environment, tmp_path) as process:
        store = tmp_path / "mlflow_runs"

        def half_made():  # at 800 kB it is whole
            with suppress(FileNotFoundError):
                return sum(file.stat().st_size for file in store.iterdir() if file.is_file()) > 300_000
            return False

        assert wait_until(lambda: half_made() or process.poll() is not None)
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    check_between(out, undisturbed)
    with command(collection, out, environment, tmp_path) as process:
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert contents(out) == undisturbed


def test_what_a_lost_worker_left_behind_goes_with_the_next_run_even_from_a_finished_set(
    driver, collection, undisturbed, tmp_path
):
    """A worker that its cluster has given up may outlive the run that did its work again."""
    for name, data in undisturbed.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(data)
    shard = next(name for name in undisturbed if name.startswith("shards/"))
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom mgc.core.storage import Folder\n"
        "Path.write_bytes = lambda path, data: (path.open('wb').write(data), os.kill(os.getpid(), signal.SIGKILL))\n"
        f"Folder({str(tmp_path / 'set')!r}).write({shard!r}, b'half')\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=PATIENCE).returncode == -signal.SIGKILL
    assert len(contents(tmp_path / "set")) == len(undisturbed) + 1
    run = driver.start(collection, tmp_path / "set")
    assert run.wait() == 0
    assert contents(tmp_path / "set") == undisturbed


# Two at once


@pytest.mark.timeout(280)
def test_of_two_runs_at_once_the_second_is_refused_and_the_first_finishes(
    cluster, driver, collection, undisturbed, tmp_path
):
    folder, environment = cluster
    first = driver.start(collection, tmp_path / "set", pause=10 * PAUSE)
    assert wait_until(lambda: first.notes("begins") or first.over())
    with command(collection, tmp_path / "set", environment, folder) as second:
        _, said = second.communicate(timeout=PATIENCE)
    refused_in_time = not first.over()
    assert (first.wait(), second.returncode) == (0, 2), said
    assert refused_in_time  # or else it was not refused for the first's sake
    assert len(said.splitlines()) == 1
    assert f"process {first.pid} on" in said
    assert "is writing it" in said
    assert contents(tmp_path / "set") == undisturbed


# The disk


def mount(*words):
    return subprocess.run(["mount", *map(str, words)], capture_output=True, text=True, check=False)


@pytest.mark.timeout(280)
def test_a_full_disk_and_one_that_becomes_read_only_stop_the_run_clearly_and_it_goes_on_with_room(
    driver, collection, undisturbed, tmp_path
):
    disk, out = tmp_path / "disk", tmp_path / "disk" / "set"
    disk.mkdir()
    total = sum(map(len, undisturbed.values()))
    made = mount("-t", "tmpfs", "-o", f"size={total // 2}", "tmpfs", disk)
    if made.returncode != 0:
        pytest.skip(f"mount is not permitted here: {made.stderr.strip()}")
    try:
        run = driver.start(collection, out, pause=0)  # which fills the disk
        assert run.wait() == 1, run.said()
        (line,) = run.complaints()
        assert "No space left on device" in line
        assert "run it again" in line
        check_between(out, undisturbed)
        kept = finished_shards(out)
        assert kept

        with suppress(OSError), (disk / "somebody else's").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
        run = driver.start(collection, out)  # finds it full to the last byte
        assert run.wait() == 1, run.said()
        (line,) = run.complaints()
        assert "No space left on device" in line
        assert "unexpected" not in line
        check_between(out, undisturbed)
        assert finished_shards(out) == kept

        (disk / "somebody else's").unlink()
        assert mount("-o", f"remount,size={2 * total}", disk).returncode == 0
        run = driver.start(collection, out)
        assert wait_until(lambda: finished_shards(out).keys() - kept.keys() or run.over())
        assert mount("--bind", out, out).returncode == 0  # the tmpfs itself cannot while the lock is open to be written
        assert mount("-o", "remount,bind,ro", out).returncode == 0
        assert run.wait() == 1, run.said()
        (line,) = run.complaints()
        assert "Read-only file system" in line
        assert "unexpected" not in line
        assert subprocess.run(["umount", out], check=False).returncode == 0
        check_between(out, undisturbed)
        kept = finished_shards(out) | kept
        assert finished_shards(out) == kept
        assert len(kept) < 10

        run = driver.start(collection, out)
        assert run.wait() == 0, run.said()
        assert contents(out) == undisturbed
        assert finished_shards(out).items() >= kept.items()
    finally:
        for folder in (out, disk):
            if os.path.ismount(folder):
                subprocess.run(["umount", "--lazy", folder], check=False)


if __name__ == "__main__":
    serve()
