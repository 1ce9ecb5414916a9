"""Preprocessing on a cluster that grows and shrinks: nobody counts its CPUs once at the start."""

from __future__ import annotations

import subprocess
import sys
import time

import mlflow
import numpy as np
import pytest
import soundfile
from helpers.raylets import Raylets

RATE = 22_050
PATIENCE = 120.0
DRIVER = """
import os, sys, time
from mgc import cli
from mgc.features import shard_tasks

diary = os.environ["DIARY"]

def task(block, *, job):  # pickled by value
    import time
    from pathlib import Path
    import ray
    from mgc.features import shard_tasks
    file, node = Path(block["shard"][0].as_py()).name, ray.get_runtime_context().get_node_id()
    Path(diary, f"{file}@{node}").touch()
    time.sleep(0.3)
    return shard_tasks.write_shard(block, job=job)

shard_tasks.write_shard = task
sys.exit(cli.run(["preprocess", *sys.argv[1:]]))
"""
"""The command, whose tasks note where they are begun, and take their time."""


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("growing") / "music"
    folder.mkdir()
    generator = np.random.default_rng(0)
    lines = ["path,genre,split,artist"]
    for i in range(60):
        soundfile.write(folder / f"{i}.wav", generator.normal(0, 0.1, RATE), RATE)
        lines.append(f"{i}.wav,{'ab'[i % 2]},{'training' if i < 45 else 'test'},artist {i}")
    (folder / "clips.csv").write_text("\n".join(lines))
    return folder / "clips.csv"


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def wait_until(condition, process, log):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_nodes_that_arrive_are_used_and_those_that_leave_are_survived_from_none_to_two_and_back(collection, tmp_path):
    flags = ["--root", collection, "--clips-per-shard", "1", "--min-seconds", "0.5"]
    diary, log, store = tmp_path / "diary", tmp_path / "log", f"sqlite:///{tmp_path}/mlflow.db"
    diary.mkdir()

    def nodes():
        return {note.name.partition("@")[2] for note in diary.iterdir()}

    with Raylets() as cluster, log.open("w") as file:
        cluster.add(0)  # a head with no CPU, and no worker yet
        environment = cluster.environment | {"DIARY": str(diary), "MLFLOW_TRACKING_URI": store}
        command = [sys.executable, "-c", DRIVER, *flags, "--out", tmp_path / "set"]
        driver = subprocess.Popen(list(map(str, command)), env=environment, stdout=file, stderr=file, cwd=tmp_path)
        try:
            wait_until(lambda: (tmp_path / "set" / "shards").exists(), driver, log)
            assert not nodes()
            first = cluster.add(1)
            wait_until(lambda: len(nodes()) == 1, driver, log)
            cluster.add(1)
            wait_until(lambda: len(nodes()) == 2, driver, log)
            cluster.kill(first)
            assert driver.wait(PATIENCE) == 0, log.read_text()
        finally:
            driver.kill()
            driver.wait()
        assert {file.name.partition("@")[0] for file in diary.iterdir()} == {
            file.name for file in (tmp_path / "set" / "shards").iterdir()
        }
    (run,) = mlflow.MlflowClient(store).search_runs(["1"])
    assert run.data.metrics["nodes"] == 2
    assert run.data.metrics["write_seconds"] > 0
    alone = [sys.executable, "-m", "mgc.cli", "preprocess", *flags, "--out", tmp_path / "alone"]
    subprocess.run(list(map(str, alone)), cwd=tmp_path, check=True, capture_output=True)
    assert contents(tmp_path / "set") == contents(tmp_path / "alone")
