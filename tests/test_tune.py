import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest

from mgc import store, tracking, tune
from mgc.config import ModelConfig, OptimConfig, TrainConfig, read_config
from mgc.errors import InputError
from mgc.evaluate import evaluate

BASE = TrainConfig(model=ModelConfig(channels=(4, 8)), optim=OptimConfig(batch_size=8), epochs=4)


@pytest.fixture(scope="module")
def swept(features, ray_session):
    return tune.tune(features.folder.path, BASE, trials=4, concurrent=2, name="first")


@pytest.fixture(scope="module")
def parent(swept):
    return tracking.Run.find(store.existing_store(Path.cwd()), swept["parent_run_id"])


def children_of(parent):
    client = mlflow.MlflowClient(parent.uri)
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id
    return client.search_runs([experiment], f"tags.`{tracking.PARENT_TAG}` = '{parent.id}'")


def test_a_sweep_answers_with_the_contracts_keys(swept):
    assert {"parent_run_id", "trials", "failed", "best_run_id", "best_config", "val_accuracy"} <= set(swept)
    assert (swept["trials"], swept["failed"]) == (4, 0)
    assert 0 < swept["val_accuracy"] <= 1  # how good the best is, is luck: which trials are pruned depends on timing
    json.dumps(swept)


def test_each_trial_is_one_closed_child_run_that_differs_in_what_is_searched(swept, parent):
    children = children_of(parent)
    assert len(children) == 4
    assert not any("mgc.error" in child.data.tags for child in children)
    assert all(child.inputs.dataset_inputs for child in children)
    assert {child.info.status for child in children} == {"FINISHED"}
    assert len({child.data.params["optim.lr"] for child in children}) == 4
    assert {child.data.params["model.channels"] for child in children} == {"[4, 8]"}
    pruned = [child for child in children if child.data.tags.get("mgc.pruned") == "true"]
    assert len(pruned) == swept["pruned"]
    client = mlflow.MlflowClient(parent.uri)
    for child in children:
        steps = [metric.step for metric in client.get_metric_history(child.info.run_id, "val_accuracy")]
        assert steps == list(range(1, len(steps) + 1))
        assert (len(steps) < BASE.epochs) if child in pruned else (len(steps) == BASE.epochs)
        assert len(child.outputs.model_outputs if child.outputs else []) == (0 if child in pruned else 1)


def test_the_best_is_the_best_of_the_finished_and_can_be_evaluated(swept, parent, features):
    finished = [child for child in children_of(parent) if "best_val_accuracy" in child.data.metrics]
    best = max(child.data.metrics["best_val_accuracy"] for child in finished)
    assert swept["val_accuracy"] == best
    assert evaluate(swept["best_run_id"], features.folder.path)["n"] == 13


def test_the_best_configuration_is_a_file_that_config_reads(swept):
    config = read_config(Path(swept["config_file"]), TrainConfig())
    assert config.to_dict() == swept["best_config"]
    assert config.model.channels == BASE.model.channels


def test_a_sweeps_name_is_taken_once_and_an_unknown_one_is_not_resumed(swept, features):
    with pytest.raises(InputError, match="--resume first"):
        tune.tune(features.folder.path, BASE, name="first")
    with pytest.raises(InputError, match=r"--resume nothing: no such sweep; there are: first"):
        tune.tune(features.folder.path, BASE, resume="nothing")


def test_a_finished_sweep_resumed_runs_no_trial_again(swept, parent, features):
    kept = [child for child in children_of(parent) if "mgc.pruned" not in child.data.tags]
    again = tune.tune(features.folder.path, BASE, resume="first")
    assert again["best_run_id"] == swept["best_run_id"]
    assert again["parent_run_id"] == swept["parent_run_id"]
    now = {child.info.run_id: child for child in children_of(parent)}
    assert len(now) == 4
    for child in kept:
        assert now[child.info.run_id].info.end_time == child.info.end_time
        assert len(now[child.info.run_id].outputs.model_outputs) == 1


def test_a_trial_that_fails_is_recorded_and_the_sweep_goes_on(features, ray_session, tmp_path):
    # five poolings of 33 frames: no network, so the trial raises
    space = tmp_path / "space.yaml"
    space.write_text("model.channels: [[4, 8], [2, 2, 2, 2, 2, 2]]\nmodel.norm: [false, true]")
    base = replace(BASE, epochs=1)
    result = tune.tune(features.folder.path, base, concurrent=2, space=space, search="grid", name="failing")
    assert (result["trials"], result["failed"]) == (4, 2)
    assert result["best_config"]["model"]["channels"] == [4, 8]


def test_a_space_that_cannot_be_is_refused_before_anything_starts(features, tmp_path, working_directory):
    space = tmp_path / "space.yaml"
    space.write_text("model.dropout: {uniform: [0, 1.5]}")
    with pytest.raises(InputError, match=r"space.yaml: model.dropout=1.5 must be in \[0, 1\)"):
        tune.tune(features.folder.path, BASE, space=space, name="impossible")
    with pytest.raises(InputError, match=r"--search grid: «model\.dropout»"):
        tune.tune(features.folder.path, BASE, search="grid", name="impossible")
    assert not (working_directory / "mlflow_runs" / "sweeps" / "impossible").exists()


SWEEP = """
import sys
from dataclasses import replace
from mgc import tune
from mgc.config import ModelConfig, OptimConfig, TrainConfig
from pathlib import Path
base = TrainConfig(model=ModelConfig(channels=(4, 8)), optim=OptimConfig(batch_size=2), epochs=12)
space = Path("rate.yaml")
space.write_text("optim.lr: {log_uniform: [0.001, 0.01]}")
resume = sys.argv[2] if sys.argv[3] == "resume" else None
name = None if resume else sys.argv[2]
print(tune.tune(sys.argv[1], base, trials=3, concurrent=2, space=space, name=name, resume=resume)["parent_run_id"])
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("moment", ["before_tunes_first_snapshot", "in_an_epoch", "interrupt"])
def test_a_sweep_killed_at_any_moment_goes_on_where_it_was(features, working_directory, moment):
    """Each trial once, each metric step once, one parent run, whatever the moment."""
    line = [sys.executable, "-c", SWEEP, str(features.folder.path), moment]
    folder = working_directory / "mlflow_runs" / "sweeps" / moment
    driver = subprocess.Popen([*line, "start"], start_new_session=True, stderr=subprocess.PIPE, text=True)
    wanted = {
        "before_tunes_first_snapshot": lambda: (folder / tune.SWEEP).exists(),
        "in_an_epoch": lambda: list(folder.glob("trials/*/state.safetensors")),
        "interrupt": lambda: list(folder.glob("trials/*/state.safetensors")),
    }[moment]
    deadline = time.monotonic() + 120
    while not wanted():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if moment == "interrupt":
        os.kill(driver.pid, signal.SIGINT)
        driver.communicate(timeout=120)
        assert driver.returncode != 0
    else:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    before = {note.parent.name: note.read_text() for note in folder.glob("trials/*/run_id")}
    done = subprocess.run([*line, "resume"], capture_output=True, text=True, timeout=300, check=True)
    parent = tracking.Run.find(store.existing_store(working_directory), done.stdout.split()[-1])
    client = mlflow.MlflowClient(parent.uri)
    assert client.get_run(parent.id).info.status == "FINISHED"
    children = children_of(parent)
    assert len(children) == 3
    assert {child.info.status for child in children} == {"FINISHED"}
    assert not any("mgc.error" in child.data.tags for child in children)
    for trial, run_id in before.items():
        if (folder / "trials" / trial).exists() and moment != "before_tunes_first_snapshot":
            assert run_id in {child.info.run_id for child in children}
    for child in children:
        steps = [metric.step for metric in client.get_metric_history(child.info.run_id, "val_accuracy")]
        assert steps == list(range(1, len(steps) + 1))
