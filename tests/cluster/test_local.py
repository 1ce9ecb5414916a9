"""cluster/local.sh: a head and a worker on this machine, and an end for them and nobody else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "cluster" / "local.sh"


@pytest.fixture
def folder():
    """A folder that is not there yet, of a short name: Ray makes sockets below it."""
    path = Path(tempfile.mkdtemp(prefix="mgc-", dir="/tmp"))
    path.rmdir()
    yield path
    shutil.rmtree(path, ignore_errors=True)


def run(folder, *words, **more):
    """Run the script or another command, with this Python's programs first on the PATH."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "MGC_CLUSTER": str(folder), **more}
    return subprocess.run(
        [str(word) for word in words], env=environment, capture_output=True, text=True, timeout=150, check=False
    )


def processes(folder):
    """Process ids of the cluster, which all have its folder in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"MGC_LOCAL_CLUSTER={folder}\0".encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_a_head_and_a_worker_run_a_job_and_end_without_ending_others(folder):
    bystander = subprocess.Popen(["sleep", "300"])
    try:
        started = run(folder, SCRIPT, "start", 1, STORE="200000000")
        assert started.returncode == 0, started.stderr
        lines = started.stdout.splitlines()
        exports = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        assert exports["RAY_AUTH_MODE"] == "token"
        assert run(folder, SCRIPT, "env").stdout.splitlines() == lines
        assert len((folder / "pids").read_text().split()) == 2

        code = "import ray; ray.init(); print(len(ray.nodes()), 'nodes', int(ray.cluster_resources()['CPU']), 'CPUs')"
        job = run(folder, "ray", "job", "submit", "--", "python", "-c", code, **exports)
        assert "2 nodes 2 CPUs" in job.stdout, job.stdout + job.stderr
        assert run(folder, "ray", "list", "nodes", **exports | {"RAY_AUTH_TOKEN": "0" * 64}).returncode != 0

        assert run(folder, SCRIPT, "start", 1).returncode == 2  # one cluster a folder
        assert len(processes(folder)) > 2

        with (folder / "pids").open("a") as pids:  # as if a process id had been used again
            pids.write(f"{bystander.pid}\n")
        stopped = run(folder, SCRIPT, "stop")
        assert stopped.returncode == 0, stopped.stderr
        assert not folder.exists()
        assert processes(folder) == []
        assert bystander.poll() is None
    finally:
        run(folder, SCRIPT, "stop")
        bystander.kill()
        bystander.wait()


def test_a_node_that_does_not_start_leaves_nothing_behind(folder, tmp_path):
    (tmp_path / "ray").write_text("#!/bin/sh\necho no ray today\nexit 1\n")
    (tmp_path / "ray").chmod(0o755)
    python = Path(sys.executable).parent
    done = run(folder, SCRIPT, "start", 1, PATH=f"{tmp_path}:{python}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert "no ray today" in done.stderr
    assert not folder.exists()
    assert processes(folder) == []


@pytest.mark.parametrize("words", [(), ("restart",), ("start", "many")])
def test_wrong_use_says_how(folder, words):
    done = run(folder, SCRIPT, *words)
    assert done.returncode == 2
    assert "cluster/local.sh start 2" in done.stderr
    assert not folder.exists()


def test_to_stop_where_nothing_runs_is_fine_and_removes_nothing(folder, tmp_path):
    assert run(folder, SCRIPT, "stop").returncode == 0
    (tmp_path / "pids").write_text("1\n")
    assert run(tmp_path, SCRIPT, "stop").returncode == 0
    assert (tmp_path / "pids").exists()
