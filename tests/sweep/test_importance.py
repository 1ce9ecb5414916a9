"""What makes the difference between trials is important, and where that cannot be said a line says so."""

import re
from dataclasses import replace

import pytest
from helpers import sweeps

from mgc.sweep.importance import importances


def test_what_makes_the_difference_is_most_important_and_what_is_conditional_is_not_judged():
    found = importances(sweeps.view(sweeps.drawn(24)))
    assert next(iter(found.shares)) == "model.norm"
    assert found.shares["model.norm"] > 0.6
    assert sum(found.shares.values()) == pytest.approx(1)
    assert set(found.shares) == set(sweeps.SPACE) - {"augment.time_mask_frames"}
    assert found.note.endswith("Left out, as not drawn in all of them or always the same: augment.time_mask_frames.")
    assert "24 trials of 4 dimensions give a rough order" in found.note
    assert importances(sweeps.view(sweeps.drawn(24))) == found


def test_trials_that_did_not_run_to_their_end_do_not_count_for_importance():
    kept = sweeps.drawn(12)
    pruned = [replace(each, outcome="pruned", val_accuracy=1 - each.val_accuracy) for each in sweeps.drawn(30, 1)]
    assert importances(sweeps.view(kept + pruned)) == importances(sweeps.view(kept))


@pytest.mark.parametrize(
    ("trials", "search", "said"),
    [
        (sweeps.drawn(3), "tpe", "3 trials were trained to their end: too few"),
        ([replace(each, val_accuracy=0.5) for each in sweeps.drawn(9)], "tpe", "All 9 trials .* equally good"),
        (sweeps.drawn(9), "pbt", "change while they learn"),
        ([replace(each, values={}) for each in sweeps.drawn(9)], "tpe", "No dimension"),
    ],
)
def test_where_nothing_can_be_said_of_importance_that_is_said_in_a_line(trials, search, said):
    found = importances(sweeps.view(trials, search=search))
    assert not found.shares
    assert len(found.note.splitlines()) == 1
    assert re.search(said, found.note)
