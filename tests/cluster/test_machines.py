"""Every command on machines that share nothing but a bucket and an MLflow server, whatever dies.

The cluster is as KubeRay lays it out: a head without CPUs, and worker nodes of one CPU, each with a disk of its own (a
mount namespace). Each command, too, begins on an empty disk.
"""

from __future__ import annotations

import json
import signal

import mlflow
import numpy as np
import pytest
import soundfile
from helpers.feature_sets import make_features
from helpers.machines import machines_or_skip, wait_until
from helpers.object_store import contents

from mgc.core.storage import Folder
from mgc.features.preprocess import preprocess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SET = "s3://music/features"
FIT = ["--features", SET, "--preset", "plain_cnn", "--batch-size", "8", "--seed", "3", "--json"]
CLIPS = 40


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    machines = machines_or_skip()
    try:
        folder = tmp_path_factory.mktemp("features") / "set"
        make_features(folder)
        machines.store.upload(folder, "features")
        yield machines
    finally:
        machines.end()


@pytest.fixture
def client(machines):
    return mlflow.MlflowClient(machines.mlflow)


@pytest.fixture
def two(machines):
    """The machines, with two worker nodes."""
    machines.have_workers(2)
    return machines


def answer(done):
    code, out, err = done
    assert code == 0, err
    return json.loads(out.splitlines()[-1])


def finish(machines, process):
    process.wait(300)
    return answer((process.returncode, machines.said(process, "out"), machines.said(process)))


def epochs_of(client, run_id):
    return [point.step for point in client.get_metric_history(run_id, "epoch/val_accuracy")]


def runs_where(client, where):
    experiment = client.get_experiment_by_name("mgc")
    return client.search_runs([experiment.experiment_id], where) if experiment else []


def runs_named(client, name):
    return runs_where(client, f"tags.`mlflow.runName` = '{name}'")


def test_a_model_trained_on_two_machines_is_evaluated_and_used_from_a_third(two, client, collection, tmp_path):
    trained = answer(two.run("train", *FIT, "--epochs", "3", "--workers", "2"))
    assert trained["checkpoint"] == f"s3://music/state/checkpoints/{trained['run_id']}"
    left = {path.partition("/")[2] for path in two.store.contents("state/checkpoints") if trained["run_id"] in path}
    assert left == {"README.md", "calibration.json", "model.json", "model.safetensors"}
    assert epochs_of(client, trained["run_id"]) == [1, 2, 3]
    assert client.get_run(trained["run_id"]).data.metrics["nodes"] == 2

    scores = answer(two.run("evaluate", "--run", trained["run_id"], "--features", SET, "--json"))
    assert (scores["n"], scores["split"]) == (13, "test")
    soundfile.write(tmp_path / "clip.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 24_000), 16_000)
    found = answer(two.run("predict", "--model", trained["checkpoint"], tmp_path / "clip.wav", "--json"))
    assert found["clips"][0]["genre"] in ("Blues", "Folk", "Jazz", "Rock")
    library = ["label", "s3://music/clips", "--model", trained["checkpoint"], "--out", "s3://music/labels", "--json"]
    assert answer(two.run(*library))["labelled"] == len(
        [path for path in collection.parent.iterdir() if path.suffix == ".wav"]
    )
    assert answer(two.run(*library))["labelled"] == 0


def test_a_training_waits_for_a_node_and_survives_its_driver_and_a_node_and_no_epoch_is_trained_twice(machines, client):
    """The driver is killed, and the command given again on another disk; then a node is killed, and another joins."""
    machines.have_only(1)
    command = ["train", *FIT, "--epochs", "12", "--workers", "2", "--run-name", "killed"]
    first = machines.start(*command)
    wait_until(lambda: "2 workers × 1 CPU wait; the cluster has 1 CPU" in machines.said(first))
    assert not runs_named(client, "killed")  # nothing has begun
    machines.have_workers(2)
    wait_until(lambda: "epochs," in machines.said(first) or first.poll() is not None)
    machines.kill(first)
    second = machines.start(*command)
    wait_until(lambda: "goes on with the interrupted run" in machines.said(second) or second.poll() is not None)
    (run,) = runs_named(client, "killed")
    before = len(epochs_of(client, run.info.run_id))
    wait_until(lambda: len(epochs_of(client, run.info.run_id)) > before or second.poll() is not None)
    machines.kill(machines.workers[0])
    machines.have_workers(2)
    trained = finish(machines, second)
    assert trained["run_id"] == run.info.run_id
    assert epochs_of(client, run.info.run_id) == list(range(1, 13))
    assert [each.info.status for each in runs_named(client, "killed")] == ["FINISHED"]
    assert trained["train_accuracy"] > 0.9


def test_a_sweep_on_one_cpu_survives_its_driver_and_takes_up_a_node_and_loses_one(machines, client):
    machines.have_only(1)
    command = ["tune", *FIT, "--epochs", "6", "--trials", "3", "--search", "random", "--no-asha", "--top", "0"]
    command += ["--name", "R&B sweep"]
    first = machines.start(*command)
    wait_until(lambda: any(name.endswith("state.safetensors") for name in machines.store.contents("state/sweeps")))
    machines.kill(first)
    second = machines.start(*command)
    machines.have_workers(2)
    wait_until(lambda: "search:" in machines.said(second) or second.poll() is not None)
    machines.kill(machines.workers[0])
    result = finish(machines, second)
    assert (result["trials"], result["failed"], result["pruned"]) == (3, 0, 0)
    trials = runs_where(client, "tags.`mgc.step` = 'trial'")
    assert len(trials) == 3
    assert {run.info.status for run in trials} == {"FINISHED"}
    for run in trials:
        assert epochs_of(client, run.info.run_id) == list(range(1, 7))
    assert result["config_file"] == "s3://music/state/sweeps/R%26B%20sweep/best_config.json"


SLOW = """
import sys
from mgc import cli
from mgc.features import shard_tasks

def task(block, *, job):  # pickled by value
    import time
    from mgc.features import shard_tasks
    time.sleep(0.7)
    return shard_tasks.write_shard(block, job=job)

shard_tasks.write_shard = task
cli.main(sys.argv[1:])
"""
"""The command, with tasks that take their time."""


@pytest.fixture(scope="module")
def collection(machines, tmp_path_factory):
    """Clips as a CSV file, on the disk and, the same, in the bucket."""
    folder, lines = tmp_path_factory.mktemp("collection"), ["path,genre,split,artist"]
    for i in range(CLIPS):
        data = np.random.default_rng(i).uniform(-0.5, 0.5, 24_000)
        soundfile.write(folder / f"{i}.wav", data, 16_000)
        lines.append(f"{i}.wav,{('Folk', 'Rock')[i % 2]},{('training', 'validation', 'test')[i % 3]},artist {i}")
    (folder / "clips.csv").write_text("\n".join(lines))
    machines.store.upload(folder, "clips")
    return folder / "clips.csv"


def test_preprocessing_goes_from_no_node_to_two_and_back_and_loses_its_driver_and_the_set_is_the_same_byte_for_byte(
    machines, collection, client, tmp_path, ray_session
):
    machines.have_only(0)
    command = ["preprocess", "--root", "s3://music/clips/clips.csv", "--out", "s3://music/made", "--json"]
    command += ["--clips-per-shard", "1", "--min-seconds", "1"]
    shards = lambda: [name for name in machines.store.contents("made") if name.startswith("shards/")]  # noqa: E731
    first = machines.start(*command, code=SLOW)
    wait_until(lambda: "1 task × 1 CPU wait; the cluster has 0 CPU" in machines.said(first))
    machines.have_workers(1)
    wait_until(shards)
    first.send_signal(signal.SIGTERM)  # as Kubernetes ends a pod; SIGKILL is tried in features/test_exactly_once.py
    assert first.wait(60) == 143, machines.said(first)
    assert machines.said(first).splitlines()[-1] == "interrupted (SIGTERM)"
    second = machines.start(*command, code=SLOW)
    before = len(shards())
    wait_until(lambda: len(shards()) > before)
    machines.have_workers(2)
    began = len(shards())
    wait_until(lambda: len(shards()) >= began + 6 or second.poll() is not None)
    machines.kill(machines.workers[0])
    made = finish(machines, second)
    assert made["written"] + made["skipped"] == CLIPS
    assert client.get_run(made["run_id"]).data.metrics["nodes"] == 2  # the one that came in the middle had work
    preprocess(collection, tmp_path / "set", clips_per_shard=1, min_seconds=1.0)
    assert contents(tmp_path / "set").items() <= machines.store.contents("made").items()


# Waiting, and asking


def test_a_training_that_is_interrupted_or_loses_its_nodes_goes_on_with_those_there_are(two, client):
    command = ["train", *FIT, "--epochs", "8", "--workers", "2", "--run-name", "lost"]
    training = two.start(*command)
    wait_until(lambda: "epochs," in two.said(training) or training.poll() is not None)
    training.send_signal(signal.SIGINT)
    assert training.wait(60) == 130
    assert two.said(training).splitlines()[-1] == "interrupted (SIGINT)"
    (run,) = runs_named(client, "lost")
    assert run.info.status == "KILLED"

    training = two.start(*command, "--wait", "0.6")
    wait_until(lambda: f"run {run.info.run_id}" in two.said(training) or training.poll() is not None)
    for node in two.workers:
        two.kill(node)
    assert training.wait(180) == 2
    said = two.said(training)
    assert "2 workers × 1 CPU wait; the cluster has 0 CPU" in said
    assert said.splitlines()[-1].startswith("mgc: --wait 0.6: 2 workers × 1 CPU did not come in this time; the cluster")
    assert [run.info.status for run in runs_named(client, "lost")] == ["KILLED"]

    two.have_workers(1)
    trained = answer(two.run(*command, "--min-workers", "1"))
    assert trained["run_id"] == run.info.run_id
    assert epochs_of(client, run.info.run_id) == list(range(1, 9))


def test_a_storage_that_nodes_do_not_see_is_refused_before_any_work(two, client):
    for command in (["train", "--workers", "2", "--run-name", "unseen"], ["tune", "--name", "unseen", "--trials", "1"]):
        code, _, err = two.run(*command, *FIT, "--storage", two.disk / "here")
        assert code == 2
        assert f"--storage {two.disk}/here: node 127.0.0." in err
        assert "does not see it; give a bucket (s3://bucket/folder) or a folder that all nodes mount" in err
    assert not runs_named(client, "unseen")


def test_a_sweep_wants_an_mlflow_server_that_nodes_reach(two):
    words = ["tune", *FIT, "--name", "unlogged", "--trials", "1"]
    code, _, err = two.run(*words, MLFLOW_TRACKING_URI=f"sqlite:///{two.disk}/mlflow.db")
    assert code == 2
    assert "cannot reach it (its disk has no such file); start «mlflow server»" in err
    assert Folder.at(two.store.uri("state/sweeps/unlogged")).kind("sweep.json") is None
