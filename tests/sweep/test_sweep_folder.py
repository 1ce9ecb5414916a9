"""A sweep's folder and its runs: what is asked for is read back, and each trial is one run that ends once."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from helpers.sweeps import SMALL, begun

from mgc.config import SweepConfig
from mgc.core.errors import InputError
from mgc.core.storage import Folder
from mgc.dataset.protocols import learning_set
from mgc.features.feature_set import FeatureSet
from mgc.model import checkpoint
from mgc.model.cnn import GenreCNN
from mgc.sweep import tune
from mgc.sweep.space import Space
from mgc.sweep.sweep_folder import (
    OUTCOME,
    RUN_ID,
    SEARCHED,
    STATUS,
    SWEEP,
    TASK,
    SweepFolder,
    Task,
    check_name,
    trial_name,
)
from mgc.tracking import runs as tracking
from mgc.tracking import store
from mgc.tracking.runs import Run
from mgc.training.fit_state import STATE

DIFFERENCES = {"model.dropout": 0.25, "model.channels": [4, 8], "optim.lr": 1 / 3}


@pytest.fixture
def a_sweep(features, tmp_path):
    return begun(features, tmp_path / "sweeps" / "a sweep", space={"optim.lr": {"uniform": [0.1, 0.2]}})


@pytest.fixture
def trial(a_sweep):
    return a_sweep.trial("trial 1")


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "..", "", None])
def test_a_trial_lies_in_the_folder_of_its_sweep(a_sweep, name):
    with pytest.raises(InputError, match=r"names a trial .*: damaged"):
        a_sweep.trial(name)


def beside(a_sweep, name):
    sweeps, _ = a_sweep.folder.parent
    return sweeps / name


def task_of(a_sweep, name="trial 1", differences=DIFFERENCES, seed=0):
    return Task(name, differences, seed, a_sweep.parent_run_id)


def begin(a_sweep, task, leak=""):
    """The run of a task, as the process of a trial begins with it."""
    trial = a_sweep.trial(task.name)
    trial.assign(task)
    return trial.begin(leak)


def keep(trial, features):
    """What a finished fit leaves."""
    trial.folder.make()
    data = learning_set(features, SMALL)
    figures = {"epochs": 3, "best_epoch": 2, "train_accuracy": 0.5, "val_accuracy": 0.25, "val_loss": 1.0}
    card = checkpoint.Card(SMALL, data.genres, data.spec, data.fingerprint, figures)
    model = GenreCNN(SMALL.model, len(data.genres), data.spec.shape)
    checkpoint.write(trial.folder, model.state_dict(), card)
    return figures


def raw(run):
    return mlflow.MlflowClient(run.uri).get_run(run.id)


# The sweep


@pytest.mark.parametrize(
    "settings",
    [
        SweepConfig(),
        SweepConfig(trials=7, search="random", asha=False, concurrent=3, workers_per_trial=2, time_budget=0.5),
        SweepConfig(gpus_per_trial=0.25, top=0, seeds=0, without=()),
        SweepConfig(without=("augment.mixup_alpha", "model.norm", "optim.weight_decay")),
    ],
)
def test_a_sweep_is_read_as_it_was_written(a_sweep, settings):
    written = replace(a_sweep, folder=beside(a_sweep, "other"), config=settings)
    written.write()
    read = SweepFolder.read(written.folder)
    assert read == written
    assert type(read.config.without) is tuple
    assert read.train_config({}) == SMALL
    assert read.parent == Run(a_sweep.uri, a_sweep.parent_run_id)
    replace(written, uri="http://me:PLANTED@host:5000").write()
    assert SweepFolder.read(written.folder).uri == "http://host:5000"
    assert b"PLANTED" not in written.folder.read(SWEEP)


def test_an_unknown_sweep_is_answered_with_those_there_are(a_sweep):
    with pytest.raises(InputError) as caught:
        SweepFolder.read(beside(a_sweep, "nothing"))
    assert str(caught.value) == "`resume=nothing`: no such sweep; there are: a sweep"
    replace(a_sweep, folder=beside(a_sweep, "Zwei")).write()
    beside(a_sweep, "no sweep").make()
    with pytest.raises(InputError, match=r"there are: Zwei, a sweep$"):
        SweepFolder.read(beside(a_sweep, "no sweep"))
    with pytest.raises(InputError, match=r"no such sweep; there are: none$"):
        SweepFolder.read(a_sweep.folder / "x")


def test_a_damaged_sweep_is_one_line_that_names_the_file(a_sweep):
    file = a_sweep.folder.path / SWEEP
    whole = file.read_text()
    facts = json.loads(whole)
    damaged = ["", whole[:-9], "null", "[]", "3", '"text"', "{}", "\udcff", json.dumps({**facts, "more": 1})]
    damaged += [json.dumps({name: value for name, value in facts.items() if name != left}) for left in facts]
    damaged += [json.dumps({**facts, "config": config}) for config in ({}, None, 3, {**facts["config"], "more": 1})]
    damaged += [json.dumps({**facts, "config": {**facts["config"], "without": None}})]
    damaged += [json.dumps({**facts, "config": {**facts["config"], "trials": 0}})]
    for text in damaged:
        file.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(InputError) as caught:
            SweepFolder.read(a_sweep.folder)
        assert str(caught.value).startswith(f"{file}: damaged ("), text
        assert len(str(caught.value).splitlines()) == 1
    file.write_text(whole)
    assert SweepFolder.read(a_sweep.folder) == a_sweep


def test_a_models_configuration_is_the_base_with_its_differences(a_sweep):
    config = a_sweep.train_config(DIFFERENCES, seed=9)
    assert (config.model.dropout, config.model.channels, config.optim.lr) == (0.25, (4, 8), 1 / 3)
    assert (config.seed, config.epochs, config.model.head) == (9, SMALL.epochs, SMALL.model.head)
    assert a_sweep.train_config({}).seed == SMALL.seed
    with pytest.raises(InputError, match="does not exist"):
        a_sweep.train_config({"model.drop": 1})


# Its trials


def test_a_trial_begun_twice_is_one_run(a_sweep, trial, features):
    assert trial.run is None
    run = begin(a_sweep, task_of(a_sweep, seed=5))
    run.finish("KILLED")
    run.tag({"mgc.error": "KeyboardInterrupt: "})
    assert begin(a_sweep, task_of(a_sweep, seed=5)) == run == trial.run
    assert a_sweep.searched() == [trial]
    assert a_sweep.parent.children() == [run]
    kept = raw(run)
    assert kept.info.status == "RUNNING"
    assert kept.info.run_name == "trial 1"
    assert kept.data.params == {
        "model.dropout": "0.25",
        "model.channels": "[4, 8]",
        "optim.lr": str(1 / 3),
        "seed": "5",
    }
    tags = kept.data.tags
    assert tags["mgc.step"] == "trial"
    assert tags[tracking.FINGERPRINT_TAG] == features.manifest.fingerprint
    assert not {"mgc.error", tracking.OUTCOME_TAG, tracking.LEAKY_TAG} & tags.keys()
    assert len(kept.inputs.dataset_inputs) == 1
    assert trial.task.differences == DIFFERENCES
    assert trial.outcome is None


@pytest.mark.parametrize("moment", ["features", "notes"])
def test_a_trial_killed_while_it_begins_finds_its_run_again(a_sweep, trial, moment, monkeypatch):
    def die(*_):
        raise SystemExit

    trial.assign(task_of(a_sweep))
    with monkeypatch.context() as patch:
        patch.setattr(*((Run, "features") if moment == "features" else (Folder, "write")), die)
        with pytest.raises(SystemExit):
            trial.begin("")
    assert trial.run is None
    run = begin(a_sweep, task_of(a_sweep))
    assert a_sweep.parent.children() == [run]
    assert len(raw(run).inputs.dataset_inputs) == 1
    other = begin(a_sweep, task_of(a_sweep, "trial 2"))
    assert other != run
    assert set(a_sweep.parent.children()) == {run, other}


def test_a_run_is_not_found_by_another_draw_seed_or_sweep(a_sweep, features, tmp_path, monkeypatch):
    other_sweep = begun(features, tmp_path / "sweeps" / "other")
    tasks = [
        (a_sweep, task_of(a_sweep)),
        (a_sweep, task_of(a_sweep, seed=1)),
        (a_sweep, task_of(a_sweep, differences={"model.dropout": 0.5})),
        (other_sweep, task_of(other_sweep)),
    ]
    written = Folder.write
    unless_run_id = lambda folder, name, data: name != RUN_ID and written(folder, name, data)  # noqa: E731
    monkeypatch.setattr(Folder, "write", unless_run_id)
    runs = [begin(mine, task) for mine, task in tasks]
    assert len({run.id for run in runs}) == 4
    assert [begin(mine, task) for mine, task in tasks] == runs


@pytest.mark.parametrize("leak", ["", "an artist in two splits"])
def test_a_trial_of_a_leaking_set_says_so(a_sweep, trial, leak):
    tags = begin(a_sweep, task_of(a_sweep), leak).record().tags
    assert tags.get(tracking.LEAKY_TAG) == ("true" if leak else None)


@pytest.mark.parametrize(
    ("outcome", "status"), [("pruned", "FINISHED"), ("failed", "FAILED"), ("stopped", "KILLED"), ("kept", "FINISHED")]
)
def test_an_end_is_told_once(a_sweep, trial, features, outcome, status):
    run = begin(a_sweep, task_of(a_sweep))
    if outcome == "kept":
        keep(trial, features)
    trial.end(outcome, "because" if outcome != "kept" else "")
    first = raw(run)
    assert first.info.status == STATUS[outcome] == status
    assert first.data.tags[tracking.OUTCOME_TAG] == outcome == trial.outcome
    assert first.data.tags.get(tracking.REASON_TAG) == ("because" if outcome != "kept" else None)
    trial.end(outcome, "for another reason")
    assert raw(run).info.end_time == first.info.end_time
    assert raw(run).data.tags == first.data.tags
    assert bool(trial.folder.kind(OUTCOME)) == (outcome != "kept")


def test_a_run_left_running_although_its_model_is_kept_is_finished(a_sweep, trial, features):
    """Its process died after the last of its work and before it said so."""
    run = begin(a_sweep, task_of(a_sweep))
    figures = keep(trial, features)
    assert trial.outcome == "kept"
    assert trial.figures == figures
    assert run.record().status == "RUNNING"
    trial.end("kept")
    assert run.record().status == "FINISHED"
    assert run.record().tags[tracking.OUTCOME_TAG] == "kept"


def test_a_model_whose_state_is_still_there_is_not_kept(trial, features):
    trial.folder.make()
    keep(trial, features)
    trial.folder.write(STATE, b"")
    assert trial.outcome is None
    trial.folder.remove(STATE)
    assert trial.outcome == "kept"


def test_a_trial_that_has_no_run_yet_can_end(a_sweep, trial):
    trial.assign(task_of(a_sweep))
    trial.end("stopped", "the time was over")
    assert trial.outcome == "stopped"
    assert trial.run is None


def test_a_long_reason_is_cut(a_sweep, trial):
    run = begin(a_sweep, task_of(a_sweep))
    trial.end("failed", "x" * 9000)
    assert run.record().tags[tracking.REASON_TAG] == "x" * 5000


def test_the_trials_of_a_search_are_those_that_have_a_task_in_their_order(a_sweep):
    assert a_sweep.searched() == []
    names = [trial_name(number) for number in range(1, 12)]
    assert names[:2] == ["trial 1", "trial 2"]
    for name in [*names, "trial 13", "again trial 1, seed 2"]:
        a_sweep.trial(name).assign(task_of(a_sweep, name))
    a_sweep.trial("trial 12").folder.make()  # of a process that was killed before it gave it anything to do
    assert [each.name for each in a_sweep.searched()] == names


def test_a_task_is_read_as_it_was_given(a_sweep, trial):
    task = Task("trial 1", DIFFERENCES, 7, "a run")
    trial.assign(replace(task, seed=8))
    trial.assign(task)
    assert trial.task == task
    assert trial.run is None
    assert trial.outcome is None


def test_a_task_of_a_version_with_population_based_training_is_read(trial):
    trial.folder.make()
    facts = {
        "name": "trial 1",
        "course": [[1, DIFFERENCES]],
        "seed": 7,
        "parent": "a run",
        "until": None,
        "own_from": 1,
    }
    trial.folder.write(TASK, json.dumps(facts).encode())
    assert trial.task == Task("trial 1", DIFFERENCES, 7, "a run")


def test_a_sweep_of_population_based_training_is_refused_in_one_line(a_sweep):
    file = a_sweep.folder.path / SWEEP
    file.write_text(file.read_text().replace('"search": "tpe"', '"search": "pbt"'))
    with pytest.raises(InputError) as caught:
        SweepFolder.read(a_sweep.folder)
    said = str(caught.value)
    assert said.startswith("`resume=a sweep`: population based training is no longer part of mgc; start a new sweep")
    assert f"mgc report {a_sweep.parent_run_id}" in said


def test_a_search_that_is_over_finishes_the_runs_that_their_processes_could_not(a_sweep, features):
    begin(a_sweep, task_of(a_sweep))
    keep(a_sweep.trial("trial 1"), features)
    a_sweep.folder.write(SEARCHED, b'["trial 1"]')
    (mine,) = tune._search(a_sweep, None)
    assert mine.run.record().status == "FINISHED"
    assert mine.run.record().tags[tracking.OUTCOME_TAG] == "kept"


def test_the_run_of_a_trial_is_what_its_folder_says(a_sweep, trial):
    run = begin(a_sweep, task_of(a_sweep))
    assert trial.folder.read(RUN_ID).decode() == run.id
    assert SweepFolder.read(a_sweep.folder).trial("trial 1").run == run


def test_features_of_the_sweep_can_be_opened(a_sweep, features):
    assert FeatureSet.open(a_sweep.features).manifest == features.manifest


def test_a_sweep_of_a_copied_project_goes_on_in_the_copys_own_store(features, tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    store.open_store(features.folder)
    made = begun(features, tmp_path / "one" / "mlflow_runs" / "sweeps" / "s")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    copy = Folder.at(tmp_path / "two" / "mlflow_runs" / "sweeps" / "s")
    (tmp_path / "one").rename(tmp_path / "kept")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"its MLflow store .* cannot be reached .*; set MLFLOW_TRACKING_URI"):
        tune._resume(copy, features)
    monkeypatch.chdir(tmp_path / "two")
    found = tune._resume(copy, features)
    assert (found.parent_run_id, found.uri) == (made.parent_run_id, store.open_store(features.folder))
    assert str(tmp_path / "two") in found.uri
    assert not (tmp_path / "one").exists()


def test_a_sweep_is_found_from_another_working_directory_of_the_same_store(features, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store/mlflow.db")
    tree = Space.of({"model.dropout": {"uniform": [0, 0.5]}}, SMALL).tree()
    made = begun(features, tmp_path / "a" / "s", space=tree)
    made.parent.tag({tracking.STORAGE_TAG: str(made.folder)})
    here = Folder.at(tmp_path / "b" / "s")
    assert tune._found(here, features) == made.folder
    assert tune._found(Folder.at(tmp_path / "b" / "t"), features) == Folder.at(tmp_path / "b" / "t")
    asked = tune._Asked(SMALL, SweepConfig(), Space.of(tree, SMALL))
    assert tune._found(here, features, asked) == made.folder
    assert tune._found(here, features, replace(asked, sweep_config=SweepConfig(trials=3))) == here
    other = replace(features, manifest=replace(features.manifest, fingerprint="0" * 64))
    assert tune._found(here, other) == here


@pytest.mark.parametrize("name", ["R&B sweep/1", "/", "..", ".", "", "a\nb", "a\0b", "é" * 101])
def test_a_name_that_no_folder_can_have_is_refused(name, features):
    with pytest.raises(InputError, match="names a folder; give printable characters without «/»"):
        tune.tune(features, name=name)
    assert not Path("mlflow_runs", "sweeps", "R&B sweep").exists()


@pytest.mark.parametrize("name", ["R&B sweep 1", "50 %?#é", ".hidden", "x" * 200])
def test_all_other_names_are_folders_names(name):
    assert check_name(name) == name
