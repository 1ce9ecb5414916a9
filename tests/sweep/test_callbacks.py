"""What Tune calls: when a search's time is over, and how the ends of trials are shown and recorded. No Ray."""

import pickle
import time
from types import SimpleNamespace

import pytest
from helpers.sweeps import begun

from mgc.sweep.callbacks import TimeBudget, TrialWatch
from mgc.sweep.sweep_folder import Task
from mgc.tracking.runs import OUTCOME_TAG, REASON_TAG


def test_a_search_has_its_time_and_a_resumed_one_has_it_again():
    budget = TimeBudget(0.3)
    assert not budget.passed
    assert not budget("a trial", {"epoch": 1})
    deadline = time.monotonic() + 10
    while not budget.stop_all():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert budget.passed
    assert not budget("a trial", {"epoch": 1})  # it ends all or none
    resumed = pickle.loads(pickle.dumps(budget))
    assert resumed.seconds == 0.3
    assert not resumed.passed
    assert budget.passed


def test_without_a_limit_the_time_is_never_over():
    budget = TimeBudget(0.0)
    budget.began -= 1e9
    assert not budget.passed
    assert not budget.stop_all()


@pytest.fixture
def sweep(features, tmp_path):
    sweep = begun(features, tmp_path / "sweeps" / "watched", trials=3)
    for number in (1, 2, 3):
        sweep.trial(f"trial {number}").assign(Task(f"trial {number}", {"optim.lr": 0.1}, 0, sweep.parent_run_id))
    return sweep


def of_tune(number, error=None, **result):
    """A trial as Tune has it."""
    last = {"epoch": 2, "val_accuracy": 0.5, "train_accuracy": 0.6} | result
    return SimpleNamespace(config={"trial": f"trial {number}"}, last_result=last, get_error=lambda: error)


def test_a_trial_that_asha_stops_is_pruned_and_one_of_before_is_shown(sweep, capsys):
    sweep.trial("trial 1").end("pruned")
    watch = TrialWatch(sweep, "search", 3, {"trial 1": {1: 0.3, 2: 0.4}})
    watch.setup()
    run = sweep.trial("trial 2").begin("")
    for number in (2, 3):
        watch.on_trial_start(1, [], of_tune(number))
        watch.on_trial_result(1, [], of_tune(number), of_tune(number).last_result)
    watch.on_trial_complete(1, [], of_tune(2))
    watch.on_trial_error(1, [], of_tune(3, error="Traceback …\nValueError: too small"))
    ended = [of_tune(2), of_tune(3)]
    watch.on_experiment_end(ended)
    assert watch.trials == ended
    assert sweep.trial("trial 2").outcome == "pruned"
    tags = run.record().tags
    assert tags[OUTCOME_TAG] == "pruned"
    assert tags[REASON_TAG] == "ASHA stopped it after epoch 2: it was not among the best there"
    table = capsys.readouterr().err.splitlines()
    assert "search: trial 3 failed: ValueError: too small" in table
    rows = [line.split()[:6] for line in table if line.startswith("trial ") and "/3" in line]
    assert rows == [
        ["trial", "2", "pruned", "2/3", "0.500", "0.600"],
        ["trial", "1", "pruned", "2/3", "0.400", "–"],
        ["trial", "3", "failed", "2/3", "0.500", "0.600"],
    ]


def test_a_watch_can_be_pickled_for_tunes_snapshot(sweep):
    watch = TrialWatch(sweep, "search", 3, {})
    watch.setup()
    copy = pickle.loads(pickle.dumps(watch))
    watch.on_experiment_end([])
    assert (copy.table, copy.sweep) == (None, sweep)
