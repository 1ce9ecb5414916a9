"""Several runs as one: weights from validation, each of its clips scored with weights that were found without it."""

import json

import numpy as np
import pytest
from helpers.feature_sets import GENRES

from mgc.core.errors import InputError
from mgc.evaluation.blend import blend, mixture
from mgc.evaluation.compare import compare
from mgc.evaluation.predictions import Predictions, Source
from mgc.tracking import runs as tracking
from mgc.tracking import store

CLIPS = 200
LABELS = np.arange(CLIPS) % 4


@pytest.fixture(scope="module")
def uri(features):
    return store.open_store(features.folder)


def kept(uri, name, knows, *, splits=("validation",), fingerprint="f", leak="", clips=CLIPS):
    """A run that is sure, and right, of the genres that it knows, and guesses the others."""
    run = tracking.Run.start(uri, "mgc", name=name, step="train", config={})
    labels = LABELS[:clips]
    probabilities = np.where(np.isin(labels, knows)[:, None], np.eye(4)[labels] * 0.88 + 0.03, 0.25)
    probabilities += np.random.default_rng(len(name)).uniform(0, 0.02, probabilities.shape)  # no ties
    probabilities = (probabilities / probabilities.sum(1, keepdims=True)).astype(np.float32)
    for split in splits:
        source = Source(split, GENRES, "F", fingerprint * 64, "official", leak)
        Predictions(source, np.arange(clips), tuple(map(str, range(clips))), labels, probabilities).keep(run)
    return run


def test_two_that_know_different_genres_are_better_together_than_each(uri):
    a, b = kept(uri, "low", [0, 1]), kept(uri, "higher", [2, 3], fingerprint="e")  # of another recipe
    result = blend([a.id, b.id])
    assert result.accuracy == 1.0 > max(result.accuracies)
    assert result.weights == pytest.approx((0.5, 0.5), abs=0.02)
    assert "weight 0.50" in str(result)
    assert json.loads(json.dumps(result.to_dict()))["names"] == ["low", "higher"]
    verdict = compare(a.id, result.run_id, split="validation")
    assert verdict.verdict.startswith("B is better than A")


def test_a_run_that_knows_nothing_gets_no_weight(uri):
    known = np.array([[0.9, 0.8, 0.7], [0.25, 0.25, 0.25]])
    assert mixture(known) == pytest.approx([1, 0], abs=1e-6)
    result = blend([kept(uri, "all", [0, 1, 2, 3]).id, kept(uri, "nothing", []).id])
    assert result.weights == pytest.approx((1, 0), abs=1e-3)


def test_the_mixture_has_the_least_cross_entropy(uri):
    true = np.random.default_rng(0).uniform(0.01, 1, (2, 500))
    found = mixture(true)
    losses = [-np.log(weight * true[0] + (1 - weight) * true[1]).mean() for weight in np.linspace(0, 1, 201)]
    assert found.sum() == pytest.approx(1)
    assert -np.log(found @ true).mean() == pytest.approx(min(losses), abs=1e-5)


def test_a_clip_has_no_part_in_the_weights_that_it_is_scored_with(uri):
    """Of two runs that are right on opposite halves at random, blending the answers in would be right too often."""
    generator = np.random.default_rng(3)
    runs = []
    for name in ("a", "b"):
        run = tracking.Run.start(uri, "mgc", name=name, step="train", config={})
        probabilities = generator.dirichlet([1.0] * 4, CLIPS).astype(np.float32)
        source = Source("validation", GENRES, "F", "f" * 64, "official", "")
        Predictions(source, np.arange(CLIPS), tuple(map(str, range(CLIPS))), LABELS, probabilities).keep(run)
        runs.append(run)
    assert abs(blend([run.id for run in runs]).accuracy - 0.25) < 0.08


def test_the_test_split_counts_as_an_evaluation(uri):
    runs = [kept(uri, name, [0, 1], splits=("validation", "test"), fingerprint="bb") for name in ("x", "y")]
    result = blend([run.id for run in runs], split="test")
    assert Predictions.kept(tracking.Run.find(uri, result.run_id), "test").source.test_evaluations == 1
    assert "test_accuracy" in tracking.Run.find(uri, result.run_id).record().metrics


def test_what_cannot_be_blended_is_refused_in_one_line(uri):
    a, b = kept(uri, "a run", [0]), kept(uri, "shorter", [1], clips=CLIPS - 1)
    for runs, said in (
        ([a], "`runs`: two or more"),
        ([a, a], "`runs`: two or more"),
        ([a, b], "evaluated on other clips"),
        ([a, kept(uri, "leaky", [1], leak="LEAKY: so")], None),
    ):
        if said is None:
            assert blend([run.id for run in runs]).leaky is True
            continue
        with pytest.raises(InputError, match=said):
            blend([run.id for run in runs])
    with pytest.raises(InputError, match="not evaluated on split «test» yet"):
        blend([a.id, kept(uri, "another", [2]).id], split="test")
