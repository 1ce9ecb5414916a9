"""A resumed search knows what an undisturbed one knows: ASHA and the sampler decide the same."""

from types import SimpleNamespace

import numpy as np
import pytest
from helpers.sweeps import SMALL, begun
from ray.tune.schedulers import TrialScheduler

from mgc.sweep.searcher import FolderSearcher, asha, ended_curves
from mgc.sweep.space import Space
from mgc.tracking.metric_names import EPOCH

TREE = {"optim.lr": {"log_uniform": [0.001, 0.1]}}


def report(scheduler, name, epochs, curve):
    """Report a trial's epochs, as Tune does; return the epoch after which it is stopped, or the last."""
    trial = SimpleNamespace(trial_id=name)
    scheduler.on_trial_add(None, trial)
    for epoch in range(1, epochs + 1):
        result = {"epoch": epoch, "val_accuracy": curve[epoch - 1]}
        if scheduler.on_trial_result(None, trial, result) == TrialScheduler.STOP:
            break
    scheduler.on_trial_complete(None, trial, result)
    return epoch


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 7, 12, 16, 40])
@pytest.mark.parametrize("resumed_after", [0, 1, 5, 19])
def test_a_resumed_asha_stops_whom_an_undisturbed_one_stops(epochs, resumed_after):
    generator = np.random.default_rng(epochs)
    curves = np.maximum.accumulate(generator.uniform(size=(30, epochs)), axis=1)
    undisturbed = asha(epochs, {})
    expected = [report(undisturbed, f"trial {n}", epochs, curve) for n, curve in enumerate(curves)]
    known = {f"trial {n}": dict(enumerate(curves[n, : expected[n]].tolist(), 1)) for n in range(resumed_after)}
    resumed = asha(epochs, known)
    found = [report(resumed, f"trial {n}", epochs, curves[n]) for n in range(resumed_after, 30)]
    assert found == expected[resumed_after:]
    if epochs > 3:
        assert len(set(expected)) > 1


def test_curves_of_ended_trials_are_the_best_so_far(features, tmp_path):
    sweep = begun(features, tmp_path / "sweeps" / "curves", space=TREE, trials=4)
    searcher = FolderSearcher(sweep, Space.of(TREE, SMALL), [], {})
    for number, accuracies in enumerate([(0.3, 0.5, 0.4), (0.2, 0.6)], 1):
        searcher.suggest(f"tune {number}")
        run = sweep.trial(f"trial {number}").begin("")
        for epoch, accuracy in enumerate(accuracies, 1):
            run.metrics({f"{EPOCH}val_accuracy": accuracy}, epoch=epoch)
    sweep.trial("trial 1").end("pruned")
    assert ended_curves(sweep.searched()) == {"trial 1": {1: 0.3, 2: 0.5, 3: 0.5}}


def test_a_resumed_search_hands_out_the_interrupted_trials_first_and_proposes_the_same(features, tmp_path):
    space = Space.of(TREE, SMALL)

    def proposed(sweep, interrupted):
        searcher = FolderSearcher(sweep, space, [], {})
        for number in range(1, 7):
            if interrupted and number == 4:  # the second and third trial have not ended
                ended = {"trial 1": {1: 0.1}}
                searcher = FolderSearcher(sweep, space, sweep.searched(), ended)
                assert [searcher.suggest(f"again {n}") for n in (2, 3)] == [{"trial": "trial 2"}, {"trial": "trial 3"}]
            assert searcher.suggest(f"tune {number}") == {"trial": f"trial {number}"}
            if number == 1:
                searcher.on_trial_complete("tune 1", {"val_accuracy": 0.1})
        return [trial.task.differences for trial in sweep.searched()]

    whole = proposed(begun(features, tmp_path / "whole", space=TREE, trials=6), False)
    assert len({str(each) for each in whole}) == 6
    assert proposed(begun(features, tmp_path / "parts", space=TREE, trials=6), True) == whole


def test_a_trial_that_failed_before_its_first_report_is_told_as_failed(features, tmp_path):
    sweep = begun(features, tmp_path / "failed", space=TREE, trials=2)
    searcher = FolderSearcher(sweep, Space.of(TREE, SMALL), [], {})
    searcher.suggest("tune 1")
    searcher.on_trial_complete("tune 1", None, error=True)
    searcher.suggest("tune 2")
    assert searcher.running == {"tune 2": 2}
