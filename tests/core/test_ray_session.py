"""Ray is started only where it can be, and on this machine alone: nothing of it can be reached from another."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.wav_sets import tracks as wav_tracks

from mgc.core import ray_session
from mgc.core.disk import LOCK
from mgc.core.errors import InputError
from mgc.features.preprocess import preprocess
from mgc.sweep.tune import tune
from mgc.training.train import train


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_folder_too_long_for_rays_sockets_is_named_before_anything_starts(tmp_path, monkeypatch, features, name):
    monkeypatch.setenv("TMPDIR", "/tmp")
    monkeypatch.setenv(name, f"/tmp/{'x' * 100}")
    clips = tmp_path / "clips"
    rows = wav_tracks(clips, {"training": 1, "test": 1}, seconds=1).to_pylist()
    lines = [f"{row['path']},{row['genre']},{row['split']}" for row in rows]
    (clips / "clips.csv").write_text("\n".join(["path,genre,split", *lines]))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    line = f"^{name}=/tmp/x+: is .* bytes too long .*; set RAY_TMPDIR to a short folder"
    for start in (
        ray_session.check_sockets,
        lambda: preprocess(clips / "clips.csv", "set", min_seconds=0),
        lambda: train(features, workers=2),
        lambda: tune(features),
    ):
        with pytest.raises(InputError, match=line):
            start()
    assert [path for path in Path().rglob("*") if path.is_file() and path.name != LOCK] == []


def test_where_ray_is_joined_the_folder_is_its_own_matter(monkeypatch):
    monkeypatch.setenv("TMPDIR", f"/tmp/{'x' * 100}")
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    ray_session.check_sockets()


def test_rays_own_limit_is_ours(monkeypatch):
    """The longest folder that is let through is the longest that Ray takes."""
    from ray._private.utils import validate_socket_filepath

    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(ray_session.os, "getpid", lambda: 12345)
    for length in range(20, 60):
        folder = "/" + "x" * length
        monkeypatch.setenv("TMPDIR", folder)
        socket = f"{folder}/ray/session_2026-11-25_15-39-19_123456_12345/sockets/plasma_store"
        try:
            ray_session.check_sockets()
        except InputError:
            with pytest.raises(OSError, match="AF_UNIX"):
                validate_socket_filepath(socket)
        else:
            validate_socket_filepath(socket)


PROGRAM = """
import os
from pathlib import Path
from mgc.core import ray_session

ray_session.connect()
import ray
ray.get(ray.remote(lambda: 1).remote())

parents = {}
for process in Path("/proc").glob("[0-9]*"):
    try:
        parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        pass
ours = {os.getpid()}
while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
    ours |= more
sockets = set()
for pid in ours:
    for handle in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            sockets.add(os.readlink(handle).removeprefix("socket:[").rstrip("]"))
        except OSError:
            pass
for family in ("tcp", "tcp6"):
    for line in Path("/proc/net", family).read_text().splitlines()[1:]:
        _, local, _, state, *_, = words = line.split()
        if state == "0A" and words[9] in sockets:
            print(local.partition(":")[0])
ray_session.disconnect()
"""
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ray_that_is_started_here_listens_on_loopback_alone():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    listening = done.stdout.split()
    assert len(listening) > 3
    assert set(listening) <= LOOPBACK
