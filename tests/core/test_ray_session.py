"""Ray on this machine alone: nothing of it can be reached from another."""

import subprocess
import sys

import pytest

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
