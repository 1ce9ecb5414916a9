"""One trial in this process, without Ray: killed and resumed it is as one that nobody interrupted."""

import mlflow
import pytest
import torch
from helpers.fits import one_thread  # noqa: F401 (sums are taken in one order)
from helpers.sweeps import SMALL, begun

from mgc.dataset.protocols import learning_set
from mgc.model import checkpoint
from mgc.sweep import trial as trials
from mgc.sweep.sweep_folder import Task
from mgc.tracking.metric_names import EPOCH
from mgc.tracking.runs import OUTCOME_TAG
from mgc.training.fit_state import discard
from mgc.training.placement import Place

DIFFERENCES = {"optim.lr": 0.01, "model.dropout": 0.2}


@pytest.fixture
def train(features, tmp_path, monkeypatch):
    """Train a sweep's only trial, killed after some of its epochs."""
    monkeypatch.setattr(trials, "keep", lambda run, fitted, data: discard(fitted.checkpoint))  # which takes longest
    data = learning_set(features, SMALL)

    def train(name, *killed_after):
        sweep = begun(features, tmp_path / "sweeps" / name)
        trial = sweep.trial("trial 1")
        trial.assign(Task("trial 1", DIFFERENCES, 7, sweep.parent_run_id))
        for last in killed_after:

            def die(point, last=last):
                if point.epoch == last:
                    raise SystemExit  # as by Tune, or a process that dies: nobody says how the run ended

            with pytest.raises(SystemExit):
                trials.train_trial(trial, data, Place(1, gpu=False), die)
            assert trial.outcome is None
            assert trial.run.record().status == "RUNNING"
        reported = []
        trials.train_trial(trial, data, Place(1, gpu=False), reported.append)
        return trial, reported

    return train


def test_a_trial_is_trained_with_its_differences_and_its_seed(train):
    trial, reported = train("whole")
    assert [point.epoch for point in reported] == [1, 2, 3]
    config = checkpoint.read(trial.folder)[1].config
    assert config == trial.sweep.train_config(DIFFERENCES, 7)
    assert (config.optim.lr, config.model.dropout, config.seed) == (0.01, 0.2, 7)
    record = trial.run.record()
    assert (trial.outcome, record.tags[OUTCOME_TAG], record.status) == ("kept", "kept", "FINISHED")
    assert record.params == {"optim.lr": "0.01", "model.dropout": "0.2", "seed": "7"}


def test_a_trial_killed_in_each_epoch_ends_as_an_undisturbed_one(train):
    whole, _ = train("undisturbed")
    parts, reported = train("disturbed", 1, 2)
    assert [point.epoch for point in reported] == [1, 2, 3]  # Tune hears of the epochs that are behind it again
    mine, twins = (checkpoint.read(each.folder)[0].state_dict() for each in (parts, whole))
    assert all(torch.equal(mine[name], twins[name]) for name in twins)
    for metric in ("train_loss", "val_accuracy", "lr"):
        assert logged(parts.run, metric) == logged(whole.run, metric)
    assert len(logged(parts.run, "val_accuracy")) == 3
    assert len(parts.sweep.parent.children()) == 1


def logged(run, name):
    """Epochs and values of a metric, each as often as MLflow has it."""
    points = mlflow.MlflowClient(run.uri).get_metric_history(run.id, f"{EPOCH}{name}")
    return sorted((point.step, point.value) for point in points)
