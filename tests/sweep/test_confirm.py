"""Retraining and ablation: which models are trained, what their scores are, and that they are done once. No Ray."""

from statistics import mean, stdev

import pytest
from helpers.sweeps import SMALL, begun

from mgc.core.errors import InputError, RunError
from mgc.dataset.protocols import learning_set
from mgc.model import checkpoint
from mgc.model.cnn import GenreCNN
from mgc.sweep.confirm import ablate, off_value, retrain
from mgc.sweep.sweep_folder import Task
from mgc.tracking import runs as tracking

ACCURACIES = {
    "trial 1": 0.8,
    "trial 2": 0.7,
    "again trial 1, seed 3": 0.5,
    "again trial 1, seed 4": 0.7,
    "again trial 2, seed 3": 0.6,
    "again trial 2, seed 4": 0.8,
}


class Trainer:
    """Keeps models of given accuracies, without training."""

    def __init__(self, sweep, features):
        self.sweep, self.data, self.trained, self.failing = sweep, learning_set(features, SMALL), [], set()

    def __call__(self, tasks, title):
        for task in tasks:
            trial = self.sweep.trial(task.name)
            if trial.outcome:
                continue
            self.trained.append(task.name)
            trial.assign(task)
            trial.begin("")
            if task.name in self.failing:
                trial.end("failed", "too small")
                continue
            config = self.sweep.train_config(task.differences, task.seed)
            accuracy = ACCURACIES.get(task.name, 0.25)
            figures = {"epochs": 3, "best_epoch": 3, "train_accuracy": 0.9, "val_accuracy": accuracy, "val_loss": 1.0}
            card = checkpoint.Card(config, self.data.genres, self.data.spec, self.data.fingerprint, figures)
            model = GenreCNN(config.model, len(self.data.genres), self.data.spec.shape)
            checkpoint.write(trial.folder, model.state_dict(), card)


@pytest.fixture
def sweep(features, tmp_path):
    fields = ("model.norm", "model.dropout", "augment.mixup_alpha")
    return begun(features, tmp_path / "sweeps" / "confirmed", seeds=2, without=fields)


@pytest.fixture
def train(sweep, features):
    return Trainer(sweep, features)


@pytest.fixture
def best(sweep, train):
    tasks = [
        Task("trial 1", {"model.dropout": 0.3}, sweep.seed, sweep.parent_run_id),
        Task("trial 2", {"model.dropout": 0.1}, sweep.seed, sweep.parent_run_id),
    ]
    train(tasks, "search")
    train.trained.clear()
    return [sweep.trial(task.name) for task in tasks]


def test_the_best_are_retrained_with_seeds_the_search_has_not_seen(sweep, features, best, train):
    found = retrain(sweep, features, best, train)
    assert [trial for trial, _ in found] == best
    assert train.trained == [f"again trial {n}, seed {seed}" for n in (1, 2) for seed in (3, 4)]
    for trial, scores in found:
        models = [sweep.trial(f"again {trial.name}, seed {seed}") for seed in (3, 4)]
        assert [model.task.seed for model in models] == [3, 4]
        assert all(model.task.differences == trial.task.differences for model in models)
        figures = [ACCURACIES[model.name] for model in models]
        assert (scores.name, scores.first_val_accuracy) == (f"again: {trial.name}", ACCURACIES[trial.name])
        assert scores.val_accuracy == pytest.approx(mean(figures))
        assert scores.val_accuracy_sd == pytest.approx(stdev(figures))
        assert scores.shrinkage == pytest.approx(ACCURACIES[trial.name] - mean(figures))
        run = tracking.Run(sweep.uri, scores.run_id)
        record = run.record()
        assert record.metrics == {k: v for k, v in scores.to_dict().items() if k not in ("run_id", "name")}
        assert record.status == "FINISHED"
        assert record.tags[tracking.STAGE_TAG] == "again"
        assert record.tags[tracking.OF_TAG] == trial.run.id
        assert record.tags[tracking.PARENT_TAG] == sweep.parent_run_id
        assert set(run.children()) == {model.run for model in models}
        assert {model.run.record().status for model in models} == {"FINISHED"}


def test_what_is_done_is_not_done_again(sweep, features, best, train):
    before = retrain(sweep, features, best, train)
    train.trained.clear()
    assert retrain(sweep, features, best, train) == before
    assert train.trained == []


def test_an_interrupted_retraining_is_finished(sweep, features, best, train):
    def interrupted(tasks, title):
        train(tasks[:1], title)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retrain(sweep, features, best, interrupted)
    train.trained.clear()
    found = retrain(sweep, features, best, train)
    assert len(found) == 2
    assert "again trial 1, seed 3" not in train.trained
    runs = [run for run in sweep.parent.children() if run.record().tags["mgc.step"] == "seeds"]
    assert len(runs) == 2


def test_a_configuration_of_which_a_model_fails_is_left_out(sweep, features, best, train, capsys):
    train.failing = {"again trial 1, seed 4"}
    ((trial, scores),) = retrain(sweep, features, best, train)
    assert (trial.name, scores.name) == ("trial 2", "again: trial 2")
    assert "again: trial 1: not all of its models could be trained" in capsys.readouterr().err
    failed = [run.record() for run in sweep.parent.children() if run.record().name == "again: trial 1"]
    assert [each.status for each in failed] == ["FAILED"]


def test_none_that_can_be_retrained_ends_the_sweep(sweep, features, best, train):
    train.failing = {f"again trial {n}, seed 3" for n in (1, 2)}
    with pytest.raises(RunError, match="none of the best could be retrained"):
        retrain(sweep, features, best, train)


def test_the_winner_is_trained_with_one_field_off_at_a_time(sweep, features, train, capsys):
    winner = {"model.dropout": 0.3, "optim.lr": 0.01}
    found = ablate(sweep, features, "the winner", winner, train)
    assert [scores.name for scores in found] == ["without model.norm", "without model.dropout"]
    assert "augment.mixup_alpha is off in the winner and in the base configuration" in capsys.readouterr().err
    off = {"model.norm": ("True", False), "model.dropout": ("0.3", 0.0)}
    for scores, (field, (value, other)) in zip(found, off.items(), strict=True):
        tags = tracking.Run(sweep.uri, scores.run_id).record().tags
        assert tags[tracking.STAGE_TAG] == "without"
        assert tags[tracking.OF_TAG] == "the winner"
        assert (tags[tracking.FIELD_TAG], tags[tracking.VALUE_TAG]) == (field, value)
        assert tags[tracking.OFF_TAG] == str(other)
        for seed in (3, 4):
            assert sweep.trial(f"without {field}, seed {seed}").task.differences == winner | {field: other}
        assert scores.to_dict().keys() == {"run_id", "name", "val_accuracy", "val_accuracy_sd", "train_accuracy"}


def test_a_field_that_is_off_in_the_winner_is_set_to_the_bases_value(sweep, features, train):
    found = ablate(sweep, features, "the winner", {"model.norm": False}, train)
    assert [scores.name for scores in found] == ["with model.norm"]
    assert sweep.trial("with model.norm, seed 3").task.differences == {"model.norm": True}


def test_a_field_is_off_at_false_zero_or_the_plain_cnns_value():
    config = SMALL
    assert off_value("model.norm", config) is False
    assert off_value("model.dropout", config) == 0.0
    assert off_value("augment.time_masks", config) == 0
    assert off_value("model.head", config) == "flatten"
    with pytest.raises(InputError, match=r"`without=model\.drop`: config field «model\.drop» does not exist"):
        off_value("model.drop", config)
