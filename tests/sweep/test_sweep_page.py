"""The page of a sweep: what it says of the sweep, and what it says that it cannot say."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import sweeps
from helpers.pages import Page
from helpers.sweeps import first

from mgc import cli
from mgc.core.errors import InputError
from mgc.evaluation.metrics import Estimate, over_seeds
from mgc.sweep import results, sweep_page
from mgc.sweep.report import report
from mgc.sweep.results import Effect
from mgc.tracking import runs as tracking
from mgc.tracking.store import search

NAME = "<script>alert(1)</script> & $co_{"


@pytest.fixture(scope="module")
def made(working_directory):
    return sweeps.full(NAME)


@pytest.fixture(scope="module")
def view(made):
    return results.read(made.run)


@pytest.fixture(scope="module")
def evaluations(made):
    return len(search(made.run.uri, tracking.EVALUATIONS_EXPERIMENT, {}))


@pytest.fixture(scope="module")
def result(made, evaluations, tmp_path_factory):
    return report(made.run.id, out=tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture(scope="module")
def page(result):
    return Page(Path(result.report.removeprefix("file://")).read_text())


def test_the_page_is_whole_and_needs_nothing_but_itself(page, result):
    assert set(page.pictures()) == {"Retrained:", "Ablations:", "Curves", "Importances", "Dimensions:", "Parallel"}
    assert not {"script", "link", "iframe", "object", "base", "b"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not {"href", "srcset", "onload", "onclick"} & attributes.keys()
        assert attributes.get("src", "data:image/").startswith("data:image/")
    assert NAME in page.text
    assert len(Path(result.out).read_bytes()) < 1_000_000


def test_the_claim_is_the_fresh_seeds_and_the_accuracy_in_the_search(page, view):
    low, high = over_seeds(np.array([model.right_N for model in view.winner.models], int)).ci95
    assert "trial 4, retrained, classifies 72.5% of 40 validation clips correctly" in page.text
    assert f"(95% interval over seeds and clips {low:.1%} to {high:.1%}); in the search it was 75.0%." in page.text
    assert "points lost: the shrinkage +2.5" in page.text
    assert "The best of 5 trials is partly the luckiest" in page.text
    assert "shrank by 8.8 points on average (2 retrained)" in page.text
    assert "the 40 validation clips, of which one is 2.5 points" in page.text
    assert "5 kept, 1 pruned, 1 failed, 1 stopped" in page.text
    assert "trial 2 80.0% 65.0% ± 5.0% +15.0 +25.0 3" in page.text


def test_the_test_split_plays_no_part(page, made, evaluations):
    assert "The test split played no part." in page.text
    assert len(search(made.run.uri, tracking.EVALUATIONS_EXPERIMENT, {})) == evaluations


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
    ("accuracy", "gap", "said"),
    [
        (
            estimate(0.021, -0.01, 0.052),
            estimate(-0.093, -0.15, -0.04),
            "changes the validation accuracy by +2.1 points [−1.0, +5.2], and closes the gap to the training "
            "accuracy by 9.3 points [4.0, 15.0]. The change of the accuracy cannot be told from chance.",
        ),
        (
            estimate(-0.03, -0.05, -0.01),
            estimate(0.02, -0.01, 0.05),
            "changes the validation accuracy by −3.0 points [−5.0, −1.0], and opens the gap to the training "
            "accuracy by 2.0 points [−1.0, 5.0]. The change of the gap cannot be told from chance.",
        ),
        (
            estimate(-0.0001, -0.04, 0.04),
            estimate(0.0, -0.04, 0.05),
            "changes the validation accuracy by +0.0 points [−4.0, +4.0], and closes the gap to the training "
            "accuracy by 0.0 points [−5.0, 4.0]. Neither can be told from chance.",
        ),
        (
            estimate(0.02, 0.01, 0.03),
            estimate(-0.02, -0.03, -0.01),
            "changes the validation accuracy by +2.0 points [+1.0, +3.0], and closes the gap to the training "
            "accuracy by 2.0 points [1.0, 3.0].",
        ),
    ],
)
def test_a_sentence_says_what_a_field_changes_and_what_is_chance(accuracy, gap, said):
    sentence = sweep_page.sentence(Effect("model.dropout", "0.23102", "0.0", accuracy, gap, 3, 40))
    assert sentence == f"model.dropout 0.231 instead of 0 {said}"


def test_the_sentences_are_on_the_page(page, view):
    for each in view.effects:
        assert sweep_page.sentence(each) in page.text
    assert "Neither can be told from chance." in page.text
    assert "3 seeds paired one by one on 40 validation clips" in page.text


def test_the_sweep_keeps_page_and_picture(made, result, tmp_path):
    assert result.split == "validation"
    assert Path(result.report.removeprefix("file://")).read_text() == Path(result.out).read_text()
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
    assert "trial 2 is the best of 2 trials that were trained to their end." in text
    assert "None was retrained with fresh seeds, so by how much is not known." in text
    assert "2 trials were trained to their end: too few for importances" in text
    assert "trial 3 running 40.0% – 1" in text
    assert set(Page(out.read_text()).pictures()) == {"Curves", "Dimensions:", "Parallel"}
    for absent in ("retrained, classifies", "Ablations: the effect", "fresh seeds, which"):
        assert absent not in text


def test_a_sweep_of_which_nothing_came_has_a_page(tmp_path):
    failed = sweeps.sweep(name="failed")
    failed.trial(0, "failed", "RunError: no", 0, model__norm=True)
    run = failed.end("FAILED")
    with pytest.raises(InputError, match="cannot be written"):
        report(run.id, out=tmp_path / "no" / "page.html")
    page = Page(Path(report(run.id, out=tmp_path / "page.html").out).read_text())
    assert "No trial was trained to its end." in page.text
    assert "Trials: 1 failed." in page.text
    assert not page.pictures()


def test_what_cannot_be_compared_is_named_on_the_page(view, tmp_path):
    said = "model.norm: run x: validated on other clips than what it is compared with"
    bare = replace(view, trials=(), retrained=(), effects=(), missing=(said,))
    page = Page(Path(sweep_page.make(bare, tmp_path / "page.html").out).read_text())
    assert f"Not compared: {said}" in page.text
    assert "Ablations: the effect of each field" in page.text
    assert not page.pictures()


def test_of_one_fresh_seed_there_is_no_spread(view, tmp_path):
    winner = replace(view.winner, models=view.winner.models[:1], sd=math.nan, first=math.nan, shrinkage=math.nan)
    bare = replace(view, trials=(), retrained=(), effects=(), winner=winner)
    text = Path(sweep_page.make(bare, tmp_path / "page.html").out).read_text()
    assert "validation accuracy of the winner, 1 fresh seed 72.5%" in Page(text).text
    assert "nan" not in Page(text).text
    assert "shrinkage" not in text
