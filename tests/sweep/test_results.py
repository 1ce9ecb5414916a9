"""A sweep is read from MLflow: its trials, what was retrained by seed and clip, and ablations paired by both."""

import statistics

import numpy as np
import pytest
from helpers import sweeps
from helpers.sweeps import first

from mgc.core.errors import InputError
from mgc.evaluation.metrics import over_seeds
from mgc.sweep import results
from mgc.tracking import runs as tracking


@pytest.fixture(scope="module")
def made(working_directory):
    return sweeps.full()


@pytest.fixture(scope="module")
def view(made):
    return results.read(made.run)


def test_trials_are_read_with_their_values_the_best_first(view):
    assert [each.name for each in view.trials] == [f"trial {number}" for number in (2, 4, 5, 3, 1, 6, 7, 8)]
    assert [each.outcome for each in view.trials] == ["kept"] * 5 + ["pruned", "failed", "stopped"]
    best = view.trials[0]
    assert best is view.best
    assert best.values == {
        "model.norm": True,
        "model.dropout": 0.31,
        "optim.lr": 0.002,
        "augment.time_masks": 1,
        "augment.time_mask_frames": 25,
    }
    assert (best.val_accuracy, best.gap, best.epochs) == (0.8, pytest.approx(0.2), (1, 2, 3, 4))
    pruned, stopped = view.trials[5], view.trials[7]
    assert "augment.time_mask_frames" not in pruned.values
    assert (pruned.val_accuracy, pruned.gap, pruned.epochs) == (pytest.approx(0.42), None, (1, 2))
    assert (stopped.val_accuracy, stopped.epochs, stopped.reason) == (None, (), "interrupted")


def test_what_was_retrained_is_read_by_seed_and_clip(view, made):
    assert [each.configuration for each in view.retrained] == ["trial 4", "trial 2"]
    assert view.winner is view.retrained[0]
    assert [model.seed for model in view.winner.models] == [1, 2, 3]
    assert [model.val_accuracy for model in view.winner.models] == [28 / 40, 30 / 40, 29 / 40]
    for model, count in zip(view.winner.models, (28, 30, 29), strict=True):
        assert np.array_equal(model.right_N, first(count))  # in the clips' order, not the rows'
    assert (view.winner.first, view.winner.shrinkage) == (0.75, pytest.approx(0.75 - 29 / 40))
    assert view.winner.sd == pytest.approx(statistics.stdev([28 / 40, 30 / 40, 29 / 40]))


def test_the_effect_of_a_field_is_paired_by_seed_and_clip(view, made):
    norm, dropout = view.effects
    assert (norm.field, norm.value, norm.off, norm.seeds, norm.clips) == ("model.norm", "True", "False", 3, 40)
    difference = np.array([first(28), first(30), first(29)], int) - np.array([first(14), first(15), first(13)])
    assert norm.accuracy == over_seeds(difference)
    assert norm.accuracy.mean == pytest.approx(45 / 120)
    assert norm.gap.mean == pytest.approx((0.85 - 0.95) - 45 / 120)
    assert not norm.accuracy.chance
    assert dropout.accuracy.mean == dropout.gap.mean == 0
    assert dropout.accuracy.chance
    winner, ablated = made.again[1], made.again[2]
    assert results.effect_of(winner, ablated) == norm


def test_seeds_that_are_not_finished_on_both_sides_are_left_out(made):
    tags = {tracking.STAGE_TAG: "without", tracking.FIELD_TAG: "model.norm"}
    one = made.seeds("without model.norm", [first(10), first(20)], [0.5, 0.9], tags, seeds=(9, 2))
    found = results.effect_of(made.again[1], tracking.Run(made.run.uri, one))
    assert (found.seeds, found.accuracy.mean) == (1, pytest.approx(10 / 40))  # seed 2: 30 clips and 20
    assert found.gap.mean == pytest.approx(-0.05 - 10 / 40)
    none = made.seeds("without model.norm", [first(10)], [0.5], tags, seeds=(9,))
    with pytest.raises(InputError, match="no seed is finished"):
        results.effect_of(made.again[1], tracking.Run(made.run.uri, none))
    others = made.seeds("without model.norm", [first(10, 39)], [0.5], tags)
    with pytest.raises(InputError, match="other clips"):
        results.effect_of(made.again[1], tracking.Run(made.run.uri, others))


def test_a_run_that_is_no_sweep_or_an_older_one_is_named(made):
    with pytest.raises(InputError, match="is no sweep but of step «trial»"):
        results.read(made.trials[0])
    old = tracking.Run.start(made.run.uri, "mgc", name="old", step="tune", config={})
    with pytest.raises(InputError, match=r"keeps no space\.json"):
        results.read(old)


def test_an_effect_has_its_name_of_before_in_json(view):
    tree = view.effects[0].to_dict()
    assert tree.keys() == {"field", "value", "off", "bought", "gap", "seeds", "clips"}
    assert tree["bought"]["mean"] == view.effects[0].accuracy.mean
