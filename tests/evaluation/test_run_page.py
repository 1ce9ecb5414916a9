"""The page: self-contained, whole, and honest about what it does not know."""

import shutil

import numpy as np
import pytest
import torch
from helpers.feature_sets import GENRES
from helpers.pages import Page, page_of
from helpers.runs import other_fingerprint, parent_of, trained

from mgc.core.errors import InputError
from mgc.dataset import protocols as learning
from mgc.evaluation.evaluate import evaluate
from mgc.evaluation.predictions import Predictions
from mgc.evaluation.run_page import make
from mgc.evaluation.trained_models import predict_validation, read_models
from mgc.tracking.runs import EVALUATIONS_EXPERIMENT
from mgc.tracking.store import search


def by_pytorch(model, data):
    """Probabilities of the validation clips, by PyTorch alone."""
    mel_BFT = torch.from_numpy(data.clips.mel_NFT[data.validation]).float()
    with torch.inference_mode():
        return model(mel_BFT[:, None]).softmax(1).numpy()


@pytest.fixture(scope="module")
def own(features, tmp_path_factory):
    return other_fingerprint(features, tmp_path_factory.mktemp("own") / "set", "5")


@pytest.fixture(scope="module")
def run(own):
    return trained(own, name="<script>alert(1)</script> & co", epochs=7)


@pytest.fixture(scope="module")
def evaluated(run, own):
    return evaluate(run.id, own.folder)


@pytest.fixture(scope="module")
def page(evaluated):
    return page_of(evaluated)


def test_the_page_needs_nothing_but_itself(page):
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not {"href", "srcset", "onload", "onclick"} & attributes.keys()
        assert attributes.get("src", "data:image/").startswith("data:image/")
        assert "url(" not in (attributes.get("style") or "")
    assert "viewport" in [attributes.get("name") for tag, attributes in page.tags if tag == "meta"]


def test_names_are_text_and_nothing_else(page):
    assert "<script>alert(1)</script> & co" in page.text


def test_the_claim_has_its_interval_and_the_count_of_evaluations(page, evaluated):
    low, high = evaluated.ci95
    assert f"{evaluated.accuracy:.1%} of 13 test clips right" in page.text
    assert f"(95% interval {low:.1%} to {high:.1%})" in page.text
    assert f"Test-set evaluation {evaluated.test_evaluations} on this test set" in page.text
    assert "LEAKY" not in page.text


def test_the_page_has_curves_tables_calibration_and_mistakes(page, evaluated, run, own):
    assert set(page.pictures()) == {"Loss", "Accuracy", "Log-Mel"}
    for genre in GENRES:
        assert f"{genre} {evaluated.per_genre[genre]['support']}" in page.text
    kept = Predictions.kept(run, "test")
    rows = kept.mistakes(6)
    confidence = kept.probabilities_NG[rows].max(1)
    assert list(confidence) == sorted(confidence, reverse=True)
    assert not kept.right[rows].any()
    places = [page.text.index(f" {kept.paths[row]} ") for row in rows]
    assert places == sorted(places)
    assert f"{len(rows)} of {(~kept.right).sum()} wrong clips." in page.text


def test_the_page_says_what_it_was_made_of(page, run, own):
    assert "epochs 7 plain_cnn: 20 keep" in page.text
    assert "model.dropout 0.1 model.head" in page.text  # as in plain_cnn: not marked
    assert f"{own.folder}, fingerprint {'5' * 64}" in page.text
    assert f"run {run.id}" in page.text
    tags = run.record().tags
    assert f"torch {tags['mgc.version.torch']}" in page.text
    assert tags.get("mlflow.source.git.commit", "not known") in page.text


def test_a_report_is_made_again_and_written_where_asked(run, evaluated, tmp_path):
    made = make(run, out=tmp_path / "page.html")
    assert (made.run_id, made.split, made.report) == (run.id, "test", evaluated.report)
    assert made.out == str(tmp_path / "page.html")
    assert f"Test-set evaluation {evaluated.test_evaluations} on" in Page((tmp_path / "page.html").read_text()).text
    with pytest.raises(InputError, match="cannot be written"):
        make(run, out=tmp_path / "no" / "page.html")


def test_without_an_evaluation_the_validation_clips_are_shown_and_nothing_is_counted(own):
    run = trained(own, seed=3)
    before = len(search(run.uri, EVALUATIONS_EXPERIMENT, {}))
    made = make(run)
    page = page_of(made)
    assert made.split == "validation"
    data = learning.learning_set(own, read_models(run)[0].card.config)
    said = by_pytorch(read_models(run)[0].model, data)
    accuracy = (said.argmax(1) == data.clips.labels_N[data.validation]).mean()
    assert f"{accuracy:.1%} of 12 validation clips right" in page.text
    assert "The test split is not evaluated: these are validation clips. They chose the epoch" in page.text
    assert "Test-set evaluation" not in page.text
    assert len(search(run.uri, EVALUATIONS_EXPERIMENT, {})) == before


def test_the_page_of_a_parent_has_mean_spread_and_members(own):
    parent, children = parent_of(own, seed=[0, 1, 2])
    result = evaluate(parent.id, own.folder)
    text = page_of(result).text
    assert f"one model: mean ± sd of 3 {result.accuracy_mean:.1%} ± {result.accuracy_sd:.1%}" in text
    assert f"{result.accuracy:.1%} of 13 test clips right" in text
    for child, member in zip(children, result.members, strict=True):
        assert f"seed {member.seed} {member.accuracy:.1%} 30.0% 3 {child.id}" in text
    assert "seed 0; 1; 2 plain_cnn: 0" in text


def test_folds_without_an_evaluation_judge_each_clip_by_the_model_that_did_not_learn_it(own):
    parent, children = parent_of(own, step="folds", fold=[1, 2, 3], folds=[3, 3, 3])
    made = make(parent)
    text = page_of(made).text
    right, clips = 0, 0
    for child in children:
        (model,) = read_models(child)
        data = learning.learning_set(own, model.card.config)
        said = by_pytorch(model.model, data)
        right += (said.argmax(1) == data.clips.labels_N[data.validation]).sum()
        clips += len(said)
    assert clips == 44 + 12
    assert f"{right / clips:.1%} of 56 validation clips right" in text
    assert "Each clip is predicted by a model that was not trained on it." in text
    assert "fold 2, seed 0" in text


def test_seeds_of_folds_are_averaged_within_their_fold(own):
    models = []
    for fold in (2, 1):
        for seed in (0, 1):
            models += read_models(trained(own, seed=seed, fold=fold, folds=2))
    apart, found = predict_validation(models, own)
    assert [(member.fold, member.seed) for member in found.source.members] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    data = learning.learning_set(own, models[2].card.config)  # fold 1
    each = [by_pytorch(model.model, data) for model in models[2:]]
    assert np.allclose(found.probabilities_NG[: len(data.validation)], np.mean(each, axis=0), atol=1e-7)
    assert sorted(found.track_ids_N) == sorted(data.clips.track_ids_N)
    for said, expected in zip(apart[2:], each, strict=True):
        assert np.allclose(said.probabilities_NG, expected, atol=1e-7)


def test_a_feature_set_that_is_gone_is_missed_by_name(features, tmp_path):
    fresh = other_fingerprint(features, tmp_path / "set", "6")
    run, other = trained(fresh), trained(fresh, seed=1)
    evaluate(run.id, fresh.folder)
    shutil.rmtree(fresh.folder.path)
    page = page_of(make(run))
    assert f"the feature set {fresh.folder} is gone, or another is there now" in page.text
    assert "Log-Mel" not in page.pictures()
    assert "taken for" in page.text
    made = make(other)
    assert made.split is None
    assert "the feature set to compute validation figures from is gone" in page_of(made).text
    assert set(page_of(made).pictures()) == {"Loss"}
    shutil.copytree(features.folder.path, fresh.folder.path)  # another set at its place
    assert make(other).split is None
    assert "Log-Mel" not in page_of(make(run)).pictures()


def test_another_feature_set_than_the_one_trained_on_is_said(run, own, features, tmp_path):
    fresh = other_fingerprint(features, tmp_path / "set", "8")
    text = page_of(evaluate(trained(own).id, fresh.folder)).text
    assert "Trained on another feature set: whether the models know these clips or artists is not checked." in text
    assert f"evaluated on {fresh.folder}, fingerprint {'8' * 64}" in text
