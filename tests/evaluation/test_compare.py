"""Two runs on the same clips, from what evaluation kept."""

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.feature_sets import GENRES
from helpers.runs import draw_nothing, other_fingerprint, parent_of, trained

from mgc.core.errors import InputError
from mgc.evaluation.compare import compare
from mgc.evaluation.evaluate import evaluate
from mgc.evaluation.metrics import paired, wilson
from mgc.evaluation.predictions import Predictions, Source
from mgc.tracking import runs as tracking
from mgc.tracking import store


@pytest.fixture(scope="module")
def uri(features):
    return store.open_store(features.folder)


def kept(uri, right, *, name="a run", order=None, **source) -> tracking.Run:
    """A run that has just these clips of four genres right."""
    right = np.array(right, bool)
    rows = np.arange(len(right)) if order is None else np.array(order)
    labels = rows % 4
    said = np.where(right[rows], labels, (labels + 1) % 4)
    about = Source("test", GENRES, "F", "f" * 64, "official", "")
    run = tracking.Run.start(uri, "mgc", name=name, step="train", config={})
    probabilities = np.eye(4, dtype=np.float32)[said]
    Predictions(replace(about, **source), rows + 100, tuple(map(str, rows)), labels, probabilities).keep(run)
    return run


def test_a_comparison_counts_the_clips_that_one_alone_has_right(uri):
    a_right = [True] * 40 + [False] * 60
    b_right = [True] * 30 + [False] * 10 + [True] * 35 + [False] * 25
    a, b = kept(uri, a_right, name="old"), kept(uri, b_right, name="new")
    result = compare(a.id, b.id)
    assert (result.n, result.split, result.leaky) == (100, "test", False)
    assert (result.a.accuracy, result.b.accuracy) == (0.4, 0.65)
    assert (result.a.ci95, result.b.name) == (wilson(40, 100), "new")
    assert (result.only_a, result.only_b) == (10, 35)
    expected = paired(np.array(a_right), np.array(b_right))
    assert (result.difference, result.difference_ci95, result.p) == (0.25, expected.ci95, expected.p)
    assert result.verdict.startswith("B is better than A: B - A is +25.0 points")
    text = str(result)
    for words in ("0.400", "0.650", "old", "new", a.id, "35 that it alone has right", "+0.250", "McNemar p ="):
        assert words in text
    assert text.endswith(result.verdict)
    assert compare(b.id, a.id).verdict.startswith("A is better than B: B - A is -25.0 points")
    json.dumps(result.to_dict())


def test_what_chance_could_do_is_no_difference(uri):
    a = kept(uri, [True] * 5 + [False] * 15)
    b = kept(uri, [True] * 8 + [False] * 12)
    result = compare(a.id, b.id)
    assert result.p == pytest.approx(0.25)
    assert "Neither is shown to be better" in result.verdict
    assert "20 clips cannot tell from chance" in result.verdict
    assert compare(a.id, a.id).p == 1.0


def test_clips_are_matched_by_id_whatever_their_order(uri):
    right = np.random.default_rng(0).random(30) < 0.5
    a, b = kept(uri, right), kept(uri, right, order=np.random.default_rng(1).permutation(30))
    result = compare(a.id, b.id)
    assert (result.only_a, result.only_b, result.difference) == (0, 0, 0.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"genres": ("x", "y", "z", "w"), "features": "OTHER"}, r"other clips \(OTHER\) than run .* \(F\)"),
        ({"protocol": "random"}, "is of the random split, run .* of the official one"),
    ],
)
def test_what_was_not_evaluated_alike_is_not_compared(uri, changes, said):
    a, b = kept(uri, [True] * 8), kept(uri, [True] * 8, **changes)
    with pytest.raises(InputError, match=f"run {b.id}: .*{said}") as caught:
        compare(a.id, b.id)
    assert len(str(caught.value).splitlines()) == 1


def test_other_clips_are_not_compared(uri):
    a, b = kept(uri, [True] * 8), kept(uri, [True] * 9)
    with pytest.raises(InputError, match="other clips"):
        compare(a.id, b.id)


def test_a_run_that_is_not_evaluated_is_named_with_what_to_do(uri, features):
    a, b = kept(uri, [True] * 8), trained(features)
    said = f"run {b.id}: not evaluated on split «test» yet; evaluate it first, on its feature set "
    with pytest.raises(InputError, match=f"{said}{features.folder}"):
        compare(a.id, b.id)
    with pytest.raises(InputError, match="not evaluated on split «validation» yet"):
        compare(b.id, a.id, split="validation")
    with pytest.raises(InputError, match="run no-such-run"):
        compare(a.id, "no-such-run")


def test_a_leak_is_named(uri):
    a, b = kept(uri, [True] * 8, leak="LEAKY: so"), kept(uri, [True] * 8)
    assert compare(a.id, b.id).leaky is True
    assert "LEAKY" in str(compare(b.id, a.id))


def test_an_evaluated_run_and_an_ensemble_are_compared_without_another_evaluation(features, tmp_path, monkeypatch):
    draw_nothing(monkeypatch)
    fresh = other_fingerprint(features, tmp_path / "set", "7")
    parent, children = parent_of(fresh, seed=[0, 1])
    together = evaluate(parent.id, fresh.folder)
    result = compare(children[0].id, parent.id)
    assert result.a.accuracy == together.members[0].accuracy
    assert result.b.accuracy == together.accuracy
    assert evaluate(parent.id, fresh.folder).test_evaluations == 2
