"""A temperature and a threshold of validation clips alone, and what they buy on another split."""

import json
from dataclasses import replace

import mlflow
import numpy as np
import pyarrow as pa
import pytest
from helpers.feature_sets import GENRES
from helpers.fits import PLAIN, one_thread  # noqa: F401 (two fits of one seed are alike)
from helpers.pages import page_of
from helpers.runs import draw_nothing, other_fingerprint, parent_of, trained

from mgc.config import TrainConfig
from mgc.core.errors import InputError
from mgc.core.storage import Folder
from mgc.dataset.protocols import learning_set
from mgc.evaluation import figures, run_page
from mgc.evaluation.calibration import NONE, Calibration, with_temperature
from mgc.evaluation.evaluate import evaluate, evaluate_once
from mgc.evaluation.metrics import calibration_error, score, wilson
from mgc.evaluation.predictions import Predictions, Source
from mgc.evaluation.trained_models import calibration_of, read_models
from mgc.features import shards
from mgc.features.feature_set import FeatureSet
from mgc.features.layout import MANIFEST, parquet_bytes, read_table
from mgc.tracking.runs import CHECKPOINT, EVALUATIONS_EXPERIMENT, Run
from mgc.tracking.store import existing_store, search
from mgc.training.train import train

LADDER = Calibration(
    1.0,
    0.1,
    0.1,
    (0.99, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4),
    (True,) * 10 + (False, True, False),
)
"""Of the first 10 clips 100 % are right, of 11 90.9 %, of 12 91.7 %, of 13 84.6 %."""


@pytest.fixture(scope="module")
def own(features, tmp_path_factory):
    return other_fingerprint(features, tmp_path_factory.mktemp("own") / "set", "x")


def run_of(result, features):
    return Run.find(existing_store(features.folder), result.run_id)


@pytest.fixture(scope="module")
def fitted(own):
    return train(own, PLAIN)


@pytest.fixture(scope="module")
def evaluated(fitted, own):
    return evaluate(fitted, own)


def made_up(sharpness: float, n: int = 400):
    """Labels, and probabilities that are as good as they say, sharpened."""
    generator = np.random.default_rng(0)
    honest_NG = generator.dirichlet(np.full(len(GENRES), 0.7), n)
    labels_N = np.array([generator.choice(len(GENRES), p=row) for row in honest_NG])
    return labels_N, with_temperature(honest_NG, 1 / sharpness).astype(np.float32)


# By hand


@pytest.mark.parametrize(
    ("precision", "threshold"), [(0.85, 0.45), (0.91, 0.45), (0.92, 0.55), (1.0, 0.55), (0.8, 0.4)]
)
def test_the_threshold_is_the_confidence_of_the_last_clip_by_which_enough_are_right(precision, threshold):
    assert LADDER.threshold(precision) == threshold


def test_no_threshold_where_the_most_confident_are_wrong_or_too_few():
    assert Calibration(1.0, 0.1, 0.1, LADDER.confidences, (False,) * 13).threshold(0.5) == float("inf")
    assert Calibration(1.0, 0.1, 0.1, LADDER.confidences[:9], (True,) * 9).threshold(0.5) == float("inf")


def test_what_is_sure_is_counted_from_the_threshold_on():
    """Confidences .9, .55, .5, .6: with .92 asked for the threshold is .55, and two of three are right."""
    probabilities_NG = np.array([[0.9, 0.1], [0.45, 0.55], [0.5, 0.5], [0.6, 0.4]], np.float64)
    found = LADDER.on(np.array([0, 1, 1, 1]), probabilities_NG, 0.92, fitted_here=False)
    assert (found.threshold, found.sure_share, found.sure_accuracy) == (0.55, 0.75, pytest.approx(2 / 3))
    assert found.sure_ci95 == wilson(2, 3)
    low, high = wilson(2, 3)
    text = f"sure of 75% of the clips, of which 66.7% [{low:.1%}, {high:.1%}] are right (asked: 92% on validation)"
    assert str(found).splitlines()[1] == text


def test_nobody_is_sure_where_no_confidence_is_enough():
    never = Calibration(2.0, 0.1, 0.1, LADDER.confidences, (False,) * 13)
    found = never.on(*made_up(1.0), 0.9, fitted_here=False)
    assert (found.threshold, found.sure_share, found.sure_accuracy, found.sure_ci95) == (None, 0.0, None, None)
    assert "sure of none of the clips (asked: 90% on validation)" in str(found)


def test_probabilities_that_are_too_sure_are_calibrated():
    labels_N, probabilities_NG = made_up(3.0)
    found = Calibration.fit(labels_N, probabilities_NG)
    assert found.temperature == pytest.approx(3.0, rel=0.15)
    assert found.ece_after < found.ece_before / 2
    others_N, others_NG = made_up(3.0, 4000)
    after = found.on(others_N, others_NG, 0.9, fitted_here=False)
    assert after.ece < score(others_N, others_NG, GENRES).ece / 2
    assert after.sure_accuracy == pytest.approx(0.9, abs=0.06)


# Evaluations


def test_an_evaluation_says_both_calibration_errors_and_what_unsure_buys(fitted, evaluated, own):
    kept = Predictions.kept(run_of(fitted, own), "test")
    own_calibration = Calibration.read(fitted.checkpoint)
    calibrated_NG = with_temperature(kept.probabilities_NG, own_calibration.temperature)
    found = evaluated.calibrated
    assert found.temperature == own_calibration.temperature != 1
    assert found.ece == calibration_error(calibrated_NG.max(1), kept.right)
    assert found.fitted_here is False
    lines = str(evaluated).splitlines()
    assert f"calibration error {evaluated.ece:.3f}" in lines[0]
    assert f"calibration error {found.ece:.3f} with temperature {found.temperature:.2f}, fitted on val" in lines[1]
    assert "(asked: 90% on validation)" in lines[2]
    plain = json.loads(json.dumps(evaluated.to_dict()))
    assert plain["calibrated"]["temperature"] == found.temperature


def test_the_figures_have_names_in_mlflow_and_a_picture(fitted, own):
    result = evaluate(fitted, own, precision=0.3)
    found, run = result.calibrated, run_of(fitted, own)
    assert found.sure_share > 0
    metrics = run.record().metrics
    assert {
        name: metrics[f"test_{name}"] for name in ("ece_calibrated", "temperature", "sure_share", "sure_accuracy")
    } == {
        "ece_calibrated": found.ece,
        "temperature": found.temperature,
        "sure_share": found.sure_share,
        "sure_accuracy": found.sure_accuracy,
    }
    assert metrics["test_sure_precision"] == 0.3
    pictures = mlflow.MlflowClient(run.uri).list_artifacts(run.id, "pictures")
    assert "pictures/risk_coverage_test.png" in {item.path for item in pictures}
    text = page_of(result).text
    assert f"Sure of {found.sure_share:.0%} of the clips, of which {found.sure_accuracy:.1%}" in text
    assert "from right to left ever more of the least confident clips are left out" in text


def with_other_test_labels(features, path):
    """A copy of a set whose test clips have the next genre."""
    other = other_fingerprint(features, path, "y")
    entries = list(other.manifest.shards)
    for number, entry in enumerate(entries):
        if entry.split == "test":
            table = read_table(path / entry.file)
            labels = (table["label"].to_numpy() + 1) % len(GENRES)
            for name, values in (("label", labels), ("genre", [GENRES[label] for label in labels])):
                field = table.schema.field(name)
                column = pa.chunked_array([pa.array(values, field.type)])
                table = table.set_column(table.schema.get_field_index(name), field, column)
            other.folder.write(entry.file, parquet_bytes(table))
            entries[number] = shards.read_record(other.folder, entry.file).entry
    (path / MANIFEST).write_text(replace(other.manifest, shards=tuple(entries)).to_json())
    return FeatureSet.open(path)


def test_temperature_and_threshold_never_see_test_labels(fitted, evaluated, own, tmp_path):
    other = evaluate(fitted, with_other_test_labels(own, tmp_path / "set"))
    assert other.confusion != evaluated.confusion
    assert other.calibrated.temperature == evaluated.calibrated.temperature
    assert other.calibrated.threshold == evaluated.calibrated.threshold
    assert other.calibrated.sure_share == evaluated.calibrated.sure_share


def test_on_the_validation_clips_it_says_that_it_was_fitted_on_them(fitted, own, monkeypatch):
    draw_nothing(monkeypatch)
    found = evaluate(fitted, own, split="validation")
    assert found.calibrated.fitted_here is True
    assert "these are the clips that it was fitted on" in str(found)
    assert evaluate(fitted, own, split="training").calibrated.fitted_here is False


def test_seeds_are_calibrated_as_the_ensemble_that_they_are(own, monkeypatch):
    draw_nothing(monkeypatch)
    result = train(own, PLAIN, seeds=2)
    kept = [Predictions.kept(run_of(member, own), "validation") for member in result.members]
    expected = Calibration.fit(kept[0].labels_N, np.mean([each.probabilities_NG for each in kept], axis=0))
    found = evaluate(result, own)
    assert found.calibrated.temperature == pytest.approx(expected.temperature, rel=1e-3)
    assert run_of(result, own).record().metrics["test_temperature"] == found.calibrated.temperature
    for member in result.members:
        its = run_of(member, own).record().metrics["test_temperature"]
        assert its == Calibration.read(member.checkpoint).temperature != found.calibrated.temperature


def test_folds_are_calibrated_on_all_their_clips_each_by_its_own_models(own, monkeypatch):
    draw_nothing(monkeypatch)
    parent, _ = parent_of(own, step="folds", fold=[1, 1, 2, 2], folds=[2] * 4, seed=[0, 1, 0, 1])
    assert evaluate(parent.id, own).calibrated is None  # made by hand: these runs keep nothing yet
    found = evaluate(parent.id, own, split="validation")
    models = read_models(parent)
    parts = []
    for pair in (models[:2], models[2:]):
        data = learning_set(own, TrainConfig(folds=2, fold=pair[0].card.config.fold))
        each = [Predictions.kept(model.run, "validation") for model in pair]
        assert each[0].track_ids_N.tolist() == data.clips.track_ids_N[data.validation].tolist()
        parts.append((each[0].labels_N, np.mean([one.probabilities_NG for one in each], axis=0)))
    labels_N, probabilities_NG = (np.concatenate(column) for column in zip(*parts, strict=True))
    expected = Calibration.fit(labels_N, probabilities_NG)
    assert found.calibrated.temperature == pytest.approx(expected.temperature, rel=1e-3)
    assert found.calibrated.fitted_here is True
    assert evaluate(parent.id, own).calibrated.temperature == found.calibrated.temperature


def test_kept_predictions_give_the_same_without_an_evaluation(fitted, own):
    first = evaluate(fitted, own)
    again = evaluate_once(fitted, own)
    assert (again.calibrated, again.test_evaluations) == (first.calibrated, first.test_evaluations)


# Without, and damaged


def test_a_model_of_before_is_said_to_be_not_calibrated_until_its_validation_clips_are(own):
    run = trained(own)
    found = evaluate(run.id, own)
    assert found.calibrated is None
    assert str(found).splitlines()[1] == run_page.NOT_CALIBRATED
    assert "calibrated" not in found.to_dict()
    assert not [name for name in run.record().metrics if "sure" in name or "temperature" in name]
    pictures = mlflow.MlflowClient(run.uri).list_artifacts(run.id, "pictures")
    assert "pictures/risk_coverage_test.png" not in {item.path for item in pictures}
    assert "Not calibrated: the run keeps no validation predictions" in page_of(found).text
    assert evaluate(run.id, own, split="validation").calibrated.fitted_here is True
    assert evaluate(run.id, own).calibrated.fitted_here is False


def test_validation_clips_of_another_set_calibrate_nothing(own, tmp_path, monkeypatch):
    """A model may have learnt them."""
    draw_nothing(monkeypatch)
    run, other = trained(own), other_fingerprint(own, tmp_path / "set", "z")
    assert evaluate(run.id, other, split="validation").calibrated is None
    assert calibration_of(read_models(run)) is NONE


@pytest.mark.parametrize("text", ["{", "[]", '{"temperature": -1}', '{"confidences": [0.5], "right": []}'])
def test_a_damaged_calibration_is_one_line_that_names_it(own, tmp_path, text):
    run, file = trained(own), tmp_path / "calibration.json"
    file.write_text(text)
    run.file(file, CHECKPOINT)
    with pytest.raises(
        InputError, match=rf"^run {run.id}: checkpoint/calibration\.json: damaged \(.*train again$"
    ) as caught:
        evaluate(run.id, own)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"calibration\.json: damaged"):
        Calibration.read(Folder.at(tmp_path))


@pytest.mark.parametrize("precision", [0.0, 1.5, float("nan")])
def test_no_share_is_refused_and_counts_as_no_evaluation(fitted, own, precision):
    run = run_of(fitted, own)
    before = len(search(run.uri, EVALUATIONS_EXPERIMENT, {}))
    with pytest.raises(InputError, match=r"`precision=.*`: must be above 0 and at most 1"):
        evaluate(fitted, own, precision=precision)
    assert len(search(run.uri, EVALUATIONS_EXPERIMENT, {})) == before


# The picture


def test_the_curve_ends_where_all_are_answered_and_marks_the_threshold():
    labels_N, probabilities_NG = made_up(3.0)
    ids = np.arange(len(labels_N))
    source = Source("test", GENRES, "", "", "official", "")
    predictions = Predictions(source, ids, tuple(map(str, ids)), labels_N, probabilities_NG)
    calibration = Calibration.fit(labels_N, probabilities_NG)
    calibrated = predictions.calibrated(calibration, "", 0.9)
    upper, lower = figures.risk_coverage(predictions, calibration, calibrated).axes
    curve, all_answered, marked = upper.lines
    assert curve.get_xdata()[-1] == 1
    assert curve.get_ydata()[-1] == all_answered.get_ydata()[0] == predictions.right.mean()
    first = np.argsort(-calibration(probabilities_NG).max(1), kind="stable")[:10]
    assert (curve.get_xdata()[0], curve.get_ydata()[0]) == (10 / 400, predictions.right[first].mean())
    assert (marked.get_xdata()[0], marked.get_ydata()[0]) == (calibrated.sure_share, calibrated.sure_accuracy)
    at = np.interp(calibrated.sure_share, curve.get_xdata(), curve.get_ydata())
    assert at == pytest.approx(calibrated.sure_accuracy, abs=0.01)
    assert f"calibration error {predictions.score().ece:.3f}" in lower.get_legend().get_texts()[1].get_text()


def test_clips_of_one_confidence_are_all_above_a_threshold_or_none(monkeypatch):
    monkeypatch.setattr("mgc.evaluation.calibration.FEWEST", 2)
    tied = Calibration(1.0, 0.0, 0.0, (1.0,) * 20, (True,) * 10 + (False,) * 10)
    assert tied.threshold(0.9) == float("inf")  # not 1.0, of which half is right
    assert tied.threshold(0.5) == 1.0
    above = Calibration(1.0, 0.0, 0.0, (0.9, 0.9, 0.8, 0.8), (True, True, True, False))
    assert (above.threshold(0.9), above.threshold(0.75)) == (0.9, 0.8)
    assert NONE.threshold(0.5) == float("inf")
