"""The page of a sweep: what MLflow holds of it, what is said of that, and what cannot be said."""

import json
import math
import re
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import sweeps
from helpers.pages import Page, page_of
from helpers.sweeps import first

from mgc import cli
from mgc.core.errors import InputError
from mgc.evaluation.metrics import Estimate, over_seeds
from mgc.evaluation.run_page import report
from mgc.sweep import results as sweep_view
from mgc.sweep import sweep_page as sweep_report
from mgc.sweep.importance import importances
from mgc.sweep.results import Bought
from mgc.tracking import runs as tracking
from mgc.tracking.store import search

NAME = "<script>alert(1)</script> & $co_{"


@pytest.fixture(scope="module")
def made(working_directory):
    return sweeps.full(NAME)


@pytest.fixture(scope="module")
def view(made):
    return sweep_view.read(made.run)


@pytest.fixture(scope="module")
def looks(made):
    return len(search(made.run.uri, tracking.EVALUATIONS_EXPERIMENT, {}))


@pytest.fixture(scope="module")
def result(made, looks, tmp_path_factory):
    return report(made.run.id, out=tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture(scope="module")
def page(result):
    return page_of(result)


# What is read


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


def test_what_was_trained_again_is_read_by_seed_and_clip(view, made):
    assert [each.of for each in view.again] == ["trial 4", "trial 2"]
    assert view.winner is view.again[0]
    assert [model.seed for model in view.winner.models] == [1, 2, 3]
    assert [model.val_accuracy for model in view.winner.models] == [28 / 40, 30 / 40, 29 / 40]
    for model, count in zip(view.winner.models, (28, 30, 29), strict=True):
        assert np.array_equal(model.right_N, first(count))  # in the clips' order, not the rows'
    assert (view.winner.first, view.winner.shrinkage) == (0.75, pytest.approx(0.75 - 29 / 40))
    assert view.winner.sd == pytest.approx(statistics.stdev([28 / 40, 30 / 40, 29 / 40]))


def test_what_a_field_bought_is_paired_by_seed_and_clip(view, made):
    norm, dropout = view.bought
    assert (norm.field, norm.value, norm.off, norm.seeds, norm.clips) == ("model.norm", "True", "False", 3, 40)
    difference = np.array([first(28), first(30), first(29)], int) - np.array([first(14), first(15), first(13)])
    assert norm.bought == over_seeds(difference)
    assert norm.bought.mean == pytest.approx(45 / 120)
    assert norm.gap.mean == pytest.approx((0.85 - 0.95) - 45 / 120)
    assert not norm.bought.chance
    assert dropout.bought.mean == dropout.gap.mean == 0
    assert dropout.bought.chance
    winner, without = made.again[1], made.again[2]
    assert sweep_view.bought(winner, without) == norm


def test_seeds_that_are_not_finished_on_both_sides_are_left_out(made):
    tags = {tracking.STAGE_TAG: "without", tracking.FIELD_TAG: "model.norm"}
    one = made.seeds("without model.norm", [first(10), first(20)], [0.5, 0.9], tags, seeds=(9, 2))
    found = sweep_view.bought(made.again[1], tracking.Run(made.run.uri, one))
    assert (found.seeds, found.bought.mean) == (1, pytest.approx(10 / 40))  # seed 2: 30 clips and 20
    assert found.gap.mean == pytest.approx(-0.05 - 10 / 40)
    none = made.seeds("without model.norm", [first(10)], [0.5], tags, seeds=(9,))
    with pytest.raises(InputError, match="no seed is finished"):
        sweep_view.bought(made.again[1], tracking.Run(made.run.uri, none))
    others = made.seeds("without model.norm", [first(10, 39)], [0.5], tags)
    with pytest.raises(InputError, match="other clips"):
        sweep_view.bought(made.again[1], tracking.Run(made.run.uri, others))


def test_a_run_that_is_no_sweep_or_an_older_one_is_named(made):
    with pytest.raises(InputError, match="is no sweep but of step «trial»"):
        sweep_view.read(made.trials[0])
    old = tracking.Run.start(made.run.uri, "mgc", name="old", step="tune", config={})
    with pytest.raises(InputError, match=r"keeps no space\.json"):
        report(old.id)


# What is said


def test_the_page_is_whole_and_needs_nothing_but_itself(page, result):
    assert set(page.pictures()) == {"Again:", "Worth", "Curves", "Importances", "Dimensions:", "Parallel"}
    assert not {"script", "link", "iframe", "object", "base", "b"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not {"href", "srcset", "onload", "onclick"} & attributes.keys()
        assert attributes.get("src", "data:image/").startswith("data:image/")
    assert NAME in page.text
    assert len(Path(result["out"]).read_bytes()) < 1_000_000


def test_the_claim_is_the_fresh_seeds_and_what_the_search_had_said(page, view):
    low, high = over_seeds(np.array([model.right_N for model in view.winner.models], int)).ci95
    assert "trial 4, trained again, has 72.5% of 40 validation clips right" in page.text
    assert f"(95% interval over seeds and clips {low:.1%} to {high:.1%}); the search had said 75.0%." in page.text
    assert "points lost: the shrinkage +2.5" in page.text
    assert "The best of 5 trials is partly the luckiest" in page.text
    assert "shrank by 8.8 points on average (2 trained again)" in page.text
    assert "the 40 validation clips, of which one is 2.5 points" in page.text
    assert "5 kept, 1 pruned, 1 failed, 1 stopped" in page.text
    assert "trial 2 80.0% 65.0% ± 5.0% +15.0 +25.0 3" in page.text


def test_the_test_split_plays_no_part(page, made, looks):
    assert "The test split played no part." in page.text
    assert len(search(made.run.uri, tracking.EVALUATIONS_EXPERIMENT, {})) == looks


def test_all_trials_are_listed_with_why_they_ended(page):
    assert "trial 2 kept 80.0% +20.0 4 True 0.31 0.002 1 25" in page.text
    assert "trial 6 pruned 42.0% – 2 False 0.45 0.0002 0 – ASHA stopped it after 2 epochs" in page.text
    assert "trial 7 failed 20.0% – 1 False 0.5 0.005 0 – ValueError: a <b> & c" in page.text
    assert "trial 8 stopped – – 0 False 0.25 0.0025 0 – interrupted" in page.text
    places = [page.text.index(f"trial {number} {how}") for number, how in ((2, "kept"), (1, "kept"), (6, "pruned"))]
    assert places == sorted(places)
    assert "augment.time_mask_frames uniform [10, 60], when augment.time_masks in [1, 2] 40 25 44" in page.text
    assert "model.dropout 0.35 base: 0.1" in page.text


def estimate(mean, low, high):
    return Estimate(mean, (low, high))


@pytest.mark.parametrize(
    ("bought", "gap", "said"),
    [
        (
            estimate(0.021, -0.01, 0.052),
            estimate(-0.093, -0.15, -0.04),
            "bought +2.1 points of validation accuracy [−1.0, +5.2], and closed the gap to the training accuracy by "
            "9.3 points [4.0, 15.0]. The accuracy bought cannot be told from chance.",
        ),
        (
            estimate(-0.03, -0.05, -0.01),
            estimate(0.02, -0.01, 0.05),
            "bought −3.0 points of validation accuracy [−5.0, −1.0], and opened the gap to the training accuracy by "
            "2.0 points [−1.0, 5.0]. The change of the gap cannot be told from chance.",
        ),
        (
            estimate(-0.0001, -0.04, 0.04),
            estimate(0.0, -0.04, 0.05),
            "bought +0.0 points of validation accuracy [−4.0, +4.0], and closed the gap to the training accuracy by "
            "0.0 points [−5.0, 4.0]. Neither can be told from chance.",
        ),
        (
            estimate(0.02, 0.01, 0.03),
            estimate(-0.02, -0.03, -0.01),
            "bought +2.0 points of validation accuracy [+1.0, +3.0], and closed the gap to the training accuracy by "
            "2.0 points [1.0, 3.0].",
        ),
    ],
)
def test_a_sentence_says_what_was_bought_and_what_is_chance(bought, gap, said):
    sentence = sweep_report.sentence(Bought("model.dropout", "0.23102", "0.0", bought, gap, 3, 40))
    assert sentence == f"model.dropout 0.231 instead of 0 {said}"


def test_the_sentences_are_on_the_page(page, view):
    for each in view.bought:
        assert sweep_report.sentence(each) in page.text
    assert "Neither can be told from chance." in page.text
    assert "3 seeds paired one by one on 40 validation clips" in page.text


def test_the_sweep_keeps_page_and_picture(made, result, tmp_path):
    assert result["split"] == "validation"
    assert Path(result["report"].removeprefix("file://")).read_text() == Path(result["out"]).read_text()
    assert made.run.fetch("pictures/sweep.png", tmp_path).read_bytes().startswith(b"\x89PNG")


def test_mgc_report_makes_the_page_of_a_sweep(capsys, tmp_path):
    small = sweeps.sweep(name="small")
    for accuracy, norm in ((0.5, True), (0.6, False)):
        small.trial(accuracy, model__norm=norm, model__dropout=0.1, optim__lr=0.001, augment__time_masks=0)
    small.trial(0.4, "running", "", 1, model__norm=True, model__dropout=0.2, optim__lr=0.001, augment__time_masks=0)
    small.repeat(small.trials[1].id, [first(20), first(21)], [0.9, 0.9], 0.6, status="KILLED")
    small.without("nobody", "model.norm", "True", "False", [first(3)], [0.9])
    out = tmp_path / "page.html"
    assert cli.run(["report", small.run.id, "--out", str(out), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer.keys() == {"run_id", "split", "report", "out"}
    assert (answer["run_id"], answer["out"]) == (small.run.id, str(out))
    text = Page(out.read_text()).text
    assert "This sweep is not finished (running)" in text
    assert "trial 2 is the best of 2 trials that ran to their end." in text
    assert "None was trained again with fresh seeds, so by how much is not known." in text
    assert "2 trials ran to their end: too few to say what matters" in text
    assert "trial 3 running 40.0% – 1" in text
    assert set(Page(out.read_text()).pictures()) == {"Curves", "Dimensions:", "Parallel"}
    for absent in ("trained again, has", "What each regulariser bought", "fresh seeds, which"):
        assert absent not in text


def test_a_sweep_of_which_nothing_came_has_a_page(tmp_path):
    failed = sweeps.sweep(name="failed")
    failed.trial(0, "failed", "RunError: no", 0, model__norm=True)
    run = failed.end("FAILED")
    with pytest.raises(InputError, match="cannot be written"):
        sweep_report.make(run, tmp_path / "no" / "page.html")
    page = Page(Path(sweep_report.make(run, tmp_path / "page.html")["out"]).read_text())
    assert "No trial ran to its end." in page.text
    assert "Trials: 1 failed." in page.text
    assert not page.pictures()


def test_what_cannot_be_compared_is_named_on_the_page(made, view, tmp_path, monkeypatch):
    said = "model.norm: run x: validated on other clips than what it is compared with"
    bare = replace(view, trials=(), again=(), bought=(), missing=(said,))
    monkeypatch.setattr(sweep_report, "read", lambda run: bare)
    page = Page(Path(sweep_report.make(made.trials[0], tmp_path / "page.html")["out"]).read_text())
    assert f"Not compared: {said}" in page.text
    assert "What each regulariser bought" in page.text
    assert not page.pictures()


def test_of_one_fresh_seed_there_is_no_spread(made, view, tmp_path, monkeypatch):
    winner = replace(view.winner, models=view.winner.models[:1], sd=math.nan, first=math.nan, shrinkage=math.nan)
    monkeypatch.setattr(sweep_report, "read", lambda run: replace(view, trials=(), again=(), bought=(), winner=winner))
    text = Path(sweep_report.make(made.trials[1], tmp_path / "page.html")["out"]).read_text()
    assert "validation accuracy of the winner, 1 fresh seed 72.5%" in Page(text).text
    assert "nan" not in Page(text).text
    assert "shrinkage" not in text


# What matters


def test_what_makes_the_difference_is_most_important_and_what_is_conditional_is_not_judged():
    found = importances(sweeps.view(sweeps.drawn(24)))
    assert next(iter(found.shares)) == "model.norm"
    assert found.shares["model.norm"] > 0.6
    assert sum(found.shares.values()) == pytest.approx(1)
    assert set(found.shares) == set(sweeps.SPACE) - {"augment.time_mask_frames"}
    assert found.said.endswith("Not judged, as not drawn in all of them or always the same: augment.time_mask_frames.")
    assert "24 trials of 4 dimensions give a rough order" in found.said
    assert importances(sweeps.view(sweeps.drawn(24))) == found


def test_trials_that_did_not_run_to_their_end_do_not_count_for_importance():
    kept = sweeps.drawn(12)
    pruned = [replace(each, outcome="pruned", val_accuracy=1 - each.val_accuracy) for each in sweeps.drawn(30, 1)]
    assert importances(sweeps.view(kept + pruned)) == importances(sweeps.view(kept))


@pytest.mark.parametrize(
    ("trials", "search", "said"),
    [
        (sweeps.drawn(3), "tpe", "3 trials ran to their end: too few"),
        ([replace(each, val_accuracy=0.5) for each in sweeps.drawn(9)], "tpe", "All 9 trials .* equally good"),
        (sweeps.drawn(9), "pbt", "change while they learn"),
        ([replace(each, values={}) for each in sweeps.drawn(9)], "tpe", "No dimension"),
    ],
)
def test_where_nothing_can_be_said_of_importance_that_is_said_in_a_line(trials, search, said):
    found = importances(sweeps.view(trials, search=search))
    assert not found.shares
    assert len(found.said.splitlines()) == 1
    assert re.search(said, found.said)
