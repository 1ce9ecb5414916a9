import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from helpers.processes import free_ports
from helpers.twin_sweep import tune_twin

from mgc.config import ModelConfig, OptimConfig, SweepConfig, TrainConfig, read_config
from mgc.core.errors import InputError
from mgc.core.storage import Folder
from mgc.evaluation.evaluate import evaluate
from mgc.evaluation.predictions import Predictions
from mgc.sweep import tune
from mgc.sweep.sweep_folder import RUN_ID
from mgc.tracking import runs as tracking
from mgc.tracking import store
from mgc.tracking.runs import OUTCOME_TAG, REASON_TAG, STAGE_TAG, STEP_TAG
from mgc.training.fit_state import STATE
from mgc.training.loop import is_kept

pytestmark = pytest.mark.timeout(600)  # a sweep on a machine that does other things too
BASE = TrainConfig(model=ModelConfig(channels=(4, 8)), optim=OptimConfig(batch_size=8), epochs=4)
SPACE = """
model.norm: [true]
model.dropout: {uniform: [0.05, 0.3]}
model.head: [avg, avgmax]
optim.lr: {log_uniform: [0.002, 0.02]}
"""


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    file = tmp_path_factory.mktemp("space") / "space.yaml"
    file.write_text(SPACE)
    return file


SWEPT = SweepConfig(trials=5, concurrent=4, top=1, seeds=2, without=("model.norm",))


@pytest.fixture(scope="module")
def swept(features, ray_session, space):
    """Four trials at once on two cores, which share one SQLite store."""
    return tune.tune(features.folder.path, BASE, SWEPT, space=space, name="first")


@pytest.fixture(scope="module")
def parent(swept):
    return tracking.Run.find(store.existing_store(Path.cwd()), swept.parent_run_id)


def children_of(parent, step="trial"):
    client = mlflow.MlflowClient(parent.uri)
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id
    wanted = f"tags.`{tracking.PARENT_TAG}` = '{parent.id}' and tags.`{STEP_TAG}` = '{step}'"
    return client.search_runs([experiment], wanted)


def steps_of(uri, run_id, name="epoch/val_accuracy"):
    return [metric.step for metric in mlflow.MlflowClient(uri).get_metric_history(run_id, name)]


def models_of(run):
    return len(run.outputs.model_outputs if run.outputs else [])


def test_a_sweep_answers_with_the_contracts_keys(swept):
    tree = json.loads(json.dumps(swept.to_dict()))
    counts = {"trials", "pruned", "failed", "stopped"}
    runs = {"parent_run_id", "name", "best_run_id", "val_accuracy", "winner_run_id"}
    confirmed = {"again", "without", "bought", "said"}
    assert tree.keys() == counts | runs | confirmed | {"best_config", "config_file", "report"}
    assert (swept.trials, swept.failed, swept.stopped) == (5, 0, 0)
    assert 0 < swept.val_accuracy <= 1  # how good the best is, is luck: which trials are pruned depends on timing
    assert swept.run_id == swept.winner_run_id
    assert [each["field"] for each in tree["bought"]] == ["model.norm"]
    assert tree["said"][0] in str(swept)
    assert f"winner: run {swept.winner_run_id}; its configuration: {swept.config_file}" in str(swept)


def test_a_sweep_logs_its_best_trial_and_its_winner(swept, parent):
    metrics = parent.record().metrics
    assert metrics["val_accuracy"] == swept.val_accuracy
    assert metrics["winner_val_accuracy"] == swept.retrained[0].val_accuracy
    assert metrics["winner_shrinkage"] == swept.retrained[0].shrinkage
    assert (metrics["trials"], metrics["pruned"]) == (5, swept.pruned)


def test_its_page_shows_a_finished_sweep(swept):
    page = Path(urllib.request.url2pathname(swept.report.removeprefix("file://"))).read_text()
    assert "retrained with fresh seeds" in page
    assert "not finished" not in page


def test_each_trial_is_one_closed_child_run_whose_parameters_are_what_was_drawn(swept, parent):
    children = children_of(parent)
    assert sorted(child.info.run_name for child in children) == sorted(f"trial {n}" for n in range(1, 6))
    assert not any("mgc.error" in child.data.tags for child in children)
    assert all(child.inputs.dataset_inputs for child in children)
    assert {child.info.status for child in children} == {"FINISHED"}
    drawn = {"model.norm", "model.dropout", "model.head", "optim.lr", "seed"}
    assert all(child.data.params.keys() == drawn for child in children)
    assert len({child.data.params["optim.lr"] for child in children}) == 5
    pruned = [child for child in children if child.data.tags[OUTCOME_TAG] == "pruned"]
    assert len(pruned) == swept.pruned
    for child in children:
        steps = steps_of(parent.uri, child.info.run_id)
        assert steps == list(range(1, len(steps) + 1))
        if child in pruned:
            assert len(steps) < BASE.epochs
            assert f"after epoch {len(steps)}:" in child.data.tags[REASON_TAG]
        else:
            assert child.data.tags[OUTCOME_TAG] == "kept"
            assert len(steps) == BASE.epochs
        assert models_of(child) == (child not in pruned)


def test_four_trials_at_once_lose_and_double_no_metric(swept, parent):
    for child in children_of(parent):
        for name in ("epoch/train_loss", "epoch/val_loss", "epoch/train_accuracy", "epoch/lr", "epoch/seconds"):
            steps = steps_of(parent.uri, child.info.run_id, name)
            assert Counter(steps) == Counter(steps_of(parent.uri, child.info.run_id)), name


def test_the_best_is_retrained_and_ablated_with_the_same_fresh_seeds(swept, parent):
    client = mlflow.MlflowClient(parent.uri)
    groups = {run.data.tags[STAGE_TAG]: run for run in children_of(parent, "seeds")}
    assert groups.keys() == {"again", "without"}
    again, without = groups["again"], groups["without"]
    best = client.get_run(swept.best_run_id)
    kept = [run for run in children_of(parent) if run.data.tags[OUTCOME_TAG] == "kept"]
    assert best.data.metrics["val_accuracy"] == max(run.data.metrics["val_accuracy"] for run in kept)
    assert again.info.run_id == swept.winner_run_id == client.get_run(parent.id).data.tags[tracking.WINNER_TAG]
    assert again.data.tags[tracking.OF_TAG] == best.info.run_id
    assert without.data.tags[tracking.OF_TAG] == again.info.run_id
    retrained = {run.data.params["seed"]: run.data for run in children_of(tracking.Run(parent.uri, again.info.run_id))}
    ablated = {run.data.params["seed"]: run.data for run in children_of(tracking.Run(parent.uri, without.info.run_id))}
    assert retrained.keys() == ablated.keys() == {"1", "2"}
    assert best.data.params["seed"] == "0"
    for seed in ("1", "2"):
        assert retrained[seed].params == best.data.params | {"seed": seed}
        assert ablated[seed].params == best.data.params | {"seed": seed, "model.norm": "False"}
    figures = [model.metrics["val_accuracy"] for model in retrained.values()]
    assert again.data.metrics["val_accuracy"] == pytest.approx(sum(figures) / 2)
    assert again.data.metrics["shrinkage"] == pytest.approx(best.data.metrics["val_accuracy"] - sum(figures) / 2)
    assert {run.info.status for run in groups.values()} == {"FINISHED"}


def test_every_retrained_model_keeps_its_prediction_of_each_validation_clip(swept, parent, features):
    for group in (*swept.retrained, *swept.ablated):
        models = children_of(tracking.Run(parent.uri, group.run_id))
        said = [Predictions.kept(tracking.Run(parent.uri, model.info.run_id), "validation") for model in models]
        assert [len(each.labels_N) for each in said] == [12, 12]
        right = [each.right.mean() for each in said]
        assert right == pytest.approx([model.data.metrics["val_accuracy"] for model in models])


def test_best_trial_and_winner_can_be_evaluated(swept, features):
    best = evaluate(swept.best_run_id, features.folder.path, split="validation")
    assert best.accuracy == swept.val_accuracy
    whole = evaluate(swept, features.folder.path, split="validation")
    assert whole.to_dict()["accuracy_mean"] == pytest.approx(swept.retrained[0].val_accuracy)


def test_the_winners_configuration_is_a_file_that_config_reads(swept, parent):
    config = read_config(Path(swept.config_file), TrainConfig())
    assert config == swept.best_config
    assert config.model.channels == BASE.model.channels
    (model, _) = children_of(tracking.Run(parent.uri, swept.winner_run_id))
    assert str(config.optim.lr) == model.data.params["optim.lr"]


def test_a_sweeps_name_is_taken_once_and_an_unknown_one_is_not_resumed(swept, features):
    with pytest.raises(InputError, match="`resume=first`"):
        tune.tune(features.folder.path, BASE, name="first")
    with pytest.raises(InputError, match=r"`resume=nothing`: no such sweep; there are: first"):
        tune.tune(features.folder.path, BASE, resume="nothing")


def test_a_finished_sweep_resumed_says_the_same_and_runs_nothing(swept, parent, features, monkeypatch):
    before = {child.info.run_id: child.info.end_time for child in children_of(parent)}
    monkeypatch.setattr(tune, "TuneSession", None)  # Ray is not needed
    assert tune.tune(features.folder.path, BASE, resume="first") == swept
    assert {child.info.run_id: child.info.end_time for child in children_of(parent)} == before


def test_a_sweep_begun_again_by_its_name_goes_on_and_by_other_settings_is_refused(swept, features, space, monkeypatch):
    monkeypatch.setattr(tune, "TuneSession", None)  # Ray is not needed
    assert tune.tune(features.folder.path, BASE, SWEPT, space=space, name="first") == swept
    with pytest.raises(InputError, match=r"`name=first`: is there already, with other settings; choose another, or"):
        tune.tune(features.folder.path, BASE, replace(SWEPT, trials=9), space=space, name="first")


def kill_a_trial(folder: Path) -> None:
    """SIGKILL the process of a trial of ours that is in its epochs."""
    while not list(folder.glob("trials/*/state.safetensors")):
        time.sleep(0.05)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().startswith(b"ray::ImplicitFunc") and is_ours(process):
                return os.kill(int(process.name), signal.SIGKILL)
        except OSError:
            continue
    return None


def is_ours(process: Path) -> bool:
    """Whether a process descends from this one."""
    parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
    return parent == os.getpid() or (parent > 1 and is_ours(process.with_name(str(parent))))


def test_trials_that_raise_are_recorded_and_a_killed_one_goes_on_from_its_last_epoch(features, ray_session, tmp_path):
    # five poolings of 33 frames: no network, so two trials raise; another is killed
    space = tmp_path / "space.yaml"
    space.write_text("model.channels: [[4, 8], [2, 2, 2, 2, 2, 2]]\nmodel.norm: [false, true]")
    base, settings = replace(BASE, epochs=40), SweepConfig(top=0, concurrent=2, search="grid", asha=False)
    killer = threading.Thread(target=kill_a_trial, args=[Path.cwd() / "mlflow_runs" / "sweeps" / "failing"])
    killer.start()
    result = tune.tune(features.folder.path, base, settings, space=space, name="failing")
    killer.join()
    assert (result.trials, result.failed) == (4, 2)
    assert result.best_config.model.channels == (4, 8)
    assert result.run_id == result.winner_run_id == result.best_run_id
    parent = tracking.Run.find(store.existing_store(Path.cwd()), result.parent_run_id)
    failed = [run for run in children_of(parent) if run.data.tags[OUTCOME_TAG] == "failed"]
    assert {run.info.status for run in failed} == {"FAILED"}
    reasons = sorted(run.data.tags[REASON_TAG] for run in failed)
    assert len(reasons) == 2
    assert all("poolings" in reason or "small" in reason for reason in reasons), reasons
    for run in children_of(parent):
        if run.data.tags[OUTCOME_TAG] == "kept":
            assert steps_of(parent.uri, run.info.run_id) == list(range(1, 41))


def test_a_space_or_settings_that_cannot_be_are_refused_before_anything_starts(features, tmp_path, working_directory):
    space = tmp_path / "space.yaml"
    space.write_text("model.dropout: {uniform: [0, 1.5]}")
    for settings, file, message in [
        (SweepConfig(), space, r"space.yaml`: `model.dropout=1.5`: must be in \[0, 1\)"),
        (SweepConfig(search="grid"), None, r"`search=grid`: «model\.dropout»"),
        (SweepConfig(without=("model.drop",)), None, r"`without=model.drop`: config field «model.drop» does not exist"),
        (SweepConfig(search="pbt"), None, r"`search=pbt`: must be one of tpe, random, grid"),
    ]:
        with pytest.raises(InputError, match=message):
            tune.tune(features.folder.path, BASE, settings, space=file, name="impossible")
    assert not (working_directory / "mlflow_runs" / "sweeps" / "impossible").exists()


@pytest.mark.slow
def test_a_trial_may_have_two_workers(features, ray_session, space):
    settings = SweepConfig(trials=1, workers_per_trial=2, top=0)
    result = tune.tune(features.folder.path, replace(BASE, epochs=2), settings, space=space, name="two workers")
    assert (result.trials, result.failed) == (1, 0)
    uri = store.existing_store(Path.cwd())
    assert steps_of(uri, result.best_run_id) == [1, 2]


@pytest.fixture
def tracking_server(tmp_path, monkeypatch):
    """A real MLflow server with a store of its own."""
    (port,) = free_ports(1)
    line = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    line += ["--artifacts-destination", str(tmp_path / "artifacts"), "--host", "127.0.0.1", "--port", str(port)]
    with open(tmp_path / "server.log", "wb") as log:
        server = subprocess.Popen([*line, "--workers", "1"], stdout=log, stderr=log, start_new_session=True)
    uri = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 90
    while True:
        try:
            urllib.request.urlopen(f"{uri}/health", timeout=2)
            break
        except OSError:
            assert time.monotonic() < deadline, (tmp_path / "server.log").read_text()
            time.sleep(0.3)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    yield uri
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


@pytest.mark.slow
def test_a_tracking_server_keeps_a_sweep_that_its_time_budget_ends(
    features, ray_session, space, tracking_server, monkeypatch
):
    trials = Path.cwd() / "mlflow_runs" / "sweeps" / "remote" / "trials"
    kept = lambda: sum(is_kept(Folder.at(trial)) for trial in trials.glob("*"))  # noqa: E731
    enough = property(lambda budget: kept() >= 2)  # however slow the machine is
    monkeypatch.setattr("mgc.sweep.callbacks.TimeBudget.passed", enough)
    settings = SweepConfig(trials=100, concurrent=2, time_budget=1, top=0, search="random")
    result = tune.tune(features.folder.path, replace(BASE, epochs=2), settings, space=space, name="remote")
    assert 1 < result.trials < 100
    assert result.stopped <= 2
    parent = tracking.Run.find(tracking_server, result.parent_run_id)
    assert mlflow.MlflowClient(tracking_server).get_run(parent.id).info.status == "FINISHED"
    children = children_of(parent)
    assert len(children) <= result.trials  # one that was stopped at its very start has no run yet
    assert {run.data.tags[OUTCOME_TAG] for run in children} <= {"kept", "pruned", "stopped"}
    for run in children:
        steps = steps_of(tracking_server, run.info.run_id)
        assert steps == list(range(1, len(steps) + 1))
    best = tracking.Run(tracking_server, result.best_run_id)
    assert Predictions.kept(best, "validation").right.mean() == result.val_accuracy


DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from helpers.twin_sweep import tune_twin
from mgc.core.ray_session import disconnect
print(tune_twin(*sys.argv[2:]).parent_run_id)
disconnect()
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_killed_again_and_again_ends_as_its_undisturbed_twin(features, ray_session, working_directory):
    """Each trial once, each metric step once, one parent run, and every figure the same to the last bit."""
    whole = tune_twin(features.folder.path, "undisturbed")
    folder = working_directory / "mlflow_runs" / "sweeps" / "disturbed"
    line = [sys.executable, "-c", DRIVER, str(Path(__file__).parents[1]), str(features.folder.path), "disturbed"]
    trials = folder / "trials"
    for moment, signal_number, reached in [
        ("in an epoch", signal.SIGINT, lambda: list(trials.glob(f"*/{STATE}"))),
        ("one ended, two on the way", signal.SIGKILL, lambda: (trials / "trial 3" / STATE).exists()),
        ("the best retrained", signal.SIGKILL, lambda: list(trials.glob(f"again*/{STATE}"))),
    ]:
        driver = subprocess.Popen(line, start_new_session=True, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 200
        while not reached():
            assert time.monotonic() < deadline, moment
            assert driver.poll() is None, driver.stderr.read()
            time.sleep(0.02)
        if signal_number == signal.SIGINT:
            os.kill(driver.pid, signal.SIGINT)
            _, said = driver.communicate(timeout=120)
            assert driver.returncode != 0
            assert "search: 0/3 trials, " in said  # the results so far
            assert "--resume disturbed" in said
        else:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
        line = [*line[:6], "resume"]
    begun = {note.parent.name: note.read_text() for note in trials.glob(f"*/{RUN_ID}")}
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=True)
    parent = tracking.Run.find(store.existing_store(working_directory), done.stdout.split()[-1])
    assert parent.record().status == "FINISHED"
    mine, twins = runs_of(parent), runs_of(tracking.Run(parent.uri, whole.parent_run_id))
    assert mine.keys() == twins.keys()
    assert len(mine) == 5
    assert {name: mine[name].info.run_id for name in begun} == begun
    for name, run in mine.items():
        assert run.info.status == "FINISHED"
        assert "mgc.error" not in run.data.tags
        assert run.data.params == twins[name].data.params
        assert steps_of(parent.uri, run.info.run_id) == list(range(1, 13))
        for metric in ("epoch/train_loss", "epoch/val_loss", "val_accuracy"):
            assert run.data.metrics[metric] == twins[name].data.metrics[metric], (name, metric)


def runs_of(parent):
    """The runs of a sweep's models, by name."""
    groups = [tracking.Run(parent.uri, group.info.run_id) for group in children_of(parent, "seeds")]
    return {run.info.run_name: run for each in (parent, *groups) for run in children_of(each)}
