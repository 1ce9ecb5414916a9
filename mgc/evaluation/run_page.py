"""One self-contained page about a run: its figures and what they rest on, from what the run keeps.

The test split is shown if it was evaluated; otherwise the run's validation clips, which is no test-set evaluation.
"""

from __future__ import annotations

import base64
import tempfile
from contextlib import suppress
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

from mgc.config import TrainConfig, member_name
from mgc.core.errors import MgcError
from mgc.dataset import clips as clips_of
from mgc.evaluation import figures, run_card
from mgc.evaluation.calibration import PRECISION
from mgc.evaluation.model_card import INTENDED, OUT_OF_SCOPE
from mgc.evaluation.predictions import Predictions
from mgc.evaluation.run_card import feature_set_at
from mgc.evaluation.trained_models import calibration_of, predict_validation, read_models
from mgc.pages import html
from mgc.tracking.metric_names import EPOCH
from mgc.tracking.runs import FEATURES_TAG, flatten

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mgc.evaluation.model_card import ModelCard
    from mgc.evaluation.trained_models import TrainedModel
    from mgc.pages.html import Page
    from mgc.tracking.runs import Record, Run

TEMPLATE = "run.html.j2"
EMBEDDINGS = "pictures/embeddings.png"
"""Artifact of a run with a frozen encoder: the map of its training clips."""
MISTAKES = 6
"""Most confident mistakes that are shown."""
NOT_CALIBRATED = (
    "not calibrated: the run keeps no validation predictions of its own feature set; "
    "«mgc evaluate --split validation» there makes them"
)
CURVES = tuple(f"{EPOCH}{name}" for name in ("train_loss", "val_loss", "train_accuracy", "val_accuracy"))


def make(
    run: Run,
    out: Path | None = None,
    *,
    models: Sequence[TrainedModel] | None = None,
    predictions: Predictions | None = None,
    precision: float = PRECISION,
) -> Page:
    """Make the page of a training run, a trial, or a parent run of seeds or folds, and log it as ``report.html``.

    The run's model card is made with it.

    Parameters
    ----------
    run
        The run.
    out
        Write the page to this file too.
    models
        The run's models, where they were read already.
    predictions
        Predictions that the run keeps, where they were read already.
    precision
        Share of right answers, on validation clips, that is left when what is marked unsure is left out.

    Returns
    -------
    Page
        Where the page is, and the split that it shows: ``test``, ``validation``, or None where neither can be had.

    Raises
    ------
    InputError
        The run has no model, or ``out`` cannot be written.
    """
    record, models = run.record(), models or read_models(run)
    shown = None
    for split in ("test", "validation"):
        known = predictions if predictions and predictions.source.split == split else None
        shown = shown or known or Predictions.kept(run, split)
    shown = shown or _validated(models, record)
    card = run_card.keep(run, models, precision=precision)
    page = _render(run, record, models, shown, precision, card)
    return html.keep(run, page, out, shown.source.split if shown else None)


def _validated(models: Sequence[TrainedModel], record: Record) -> Predictions | None:
    """Predictions on the validation clips; None if the feature set that the models were trained on is not there."""
    feature_set = feature_set_at(record.tags.get(FEATURES_TAG, ""), models[0].card.fingerprint)
    if feature_set:
        with suppress(MgcError):  # shards are missing
            return predict_validation(models, feature_set)[1]
    return None


# What is on the page


def _render(
    run: Run,
    record: Record,
    models: Sequence[TrainedModel],
    predictions: Predictions | None,
    precision: float,
    card: ModelCard | None,
) -> str:
    facts: dict[str, Any] = {
        **html.heading(record),
        "kind": f"{len(models)} models" if len(models) > 1 else "one model",
        "notes": _notes(models, predictions),
        "curves": _curves(models),
        "embeddings": _embeddings(models[0].run) if models[0].card.config.frozen else None,
        "card": card
        and {"name": run_card.CARD, "intended": INTENDED, "not_for": OUT_OF_SCOPE, "limits": card.limits()},
        "settings": settings_of(models),
        "settings_note": "Marked: what differs from the preset plain_cnn.",
        "origin": html.origin(run, record, _data(record, models, predictions)),
    }
    if predictions:
        source, scores = predictions.source, predictions.score()
        facts |= {
            "source": source,
            "scores": scores,
            "commonest": max(row["support"] for row in scores.per_genre.values()) / scores.n,
            "members": _members(models, predictions),
            **_calibration(models, predictions, precision),
            "mistakes": _mistakes(predictions),
        }
        if source.members:
            accuracies = [member.accuracy for member in source.members]
            facts |= {"mean": mean(accuracies), "sd": stdev(accuracies)}
    return html.render(TEMPLATE, facts)


def _embeddings(run: Run) -> str | None:
    """The map of an encoder's vectors that a run keeps, as a ``data:`` address."""
    with tempfile.TemporaryDirectory() as folder:
        file = run.fetch(EMBEDDINGS, Path(folder))
        return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}" if file else None


def _notes(models: Sequence[TrainedModel], predictions: Predictions | None) -> list[str]:
    """Sentences that say how to read the figures."""
    if predictions is None:
        return ["The test split is not evaluated, and the feature set to compute validation figures from is gone."]
    source, notes = predictions.source, []
    if source.split == "test":
        notes.append(f"Test-set evaluation {source.test_evaluations} on this test set, counted over all runs.")
    else:
        chose = " They chose the epoch that is kept, which flatters." if models[0].card.config.keep == "best" else ""
        notes.append(f"The test split is not evaluated: these are validation clips.{chose}")
    if source.split == "validation" and models[0].card.config.fold:
        notes.append("Each clip is predicted by a model that was not trained on it.")
    elif source.members:
        notes.append(f"The probabilities are the mean of those of {len(source.members)} models.")
    if any(model.card.fingerprint != source.fingerprint for model in models):
        notes.append("Trained on another feature set: whether the models know these clips or artists is not checked.")
    return notes


def _calibration(models: Sequence[TrainedModel], predictions: Predictions, precision: float) -> dict[str, Any]:
    """What the temperature and ``unsure`` buy, in words and as an image; without a calibration the reliability."""
    calibration = calibration_of(models)
    calibrated = predictions.calibrated(calibration, models[0].card.fingerprint, precision)
    if calibrated is None:
        drawn, said = figures.reliability(predictions.score(), predictions.source.title), NOT_CALIBRATED
    else:
        drawn, said = figures.risk_coverage(predictions, calibration, calibrated), str(calibrated)
    sentences = [f"{line[0].upper()}{line[1:]}." for line in said.splitlines()]
    return {"calibrated": calibrated, "calibration": html.data_uri(drawn), "calibration_said": sentences}


def _members(models: Sequence[TrainedModel], predictions: Predictions) -> list[dict[str, Any]]:
    of_training = {model.run.id: model.card.figures for model in models}
    return [
        {
            "name": member_name(member.seed, member.fold),
            "accuracy": member.accuracy,
            "val_accuracy": of_training.get(member.run_id, {}).get("val_accuracy"),
            "best_epoch": of_training.get(member.run_id, {}).get("best_epoch"),
            "run_id": member.run_id,
        }
        for member in predictions.source.members
    ]


def _curves(models: Sequence[TrainedModel]) -> str | None:
    """The learning curves of the models, as an image."""
    drawn = []
    for model in models:
        points = model.run.history(CURVES)
        history = [{name.removeprefix(EPOCH): value for name, value in point.items()} for point in points]
        if history:
            drawn.append((history, int(model.card.figures.get("best_epoch", 0))))
    return html.data_uri(figures.member_curves(drawn)) if drawn else None


def _mistakes(predictions: Predictions) -> dict[str, Any]:
    """The most confident mistakes, and their spectrograms if the feature set is there."""
    source, rows_B = predictions.source, predictions.mistakes(MISTAKES)
    listed = [
        {
            "true": source.genres[predictions.labels_N[row]],
            "predicted": source.genres[predictions.probabilities_NG[row].argmax()],
            "probability": float(predictions.probabilities_NG[row].max()),
            "path": predictions.paths[row],
        }
        for row in rows_B
    ]
    picture = None
    if listed and (feature_set := feature_set_at(source.features, source.fingerprint)):
        splits = {entry.split: None for entry in feature_set.manifest.shards if entry.rows}
        with suppress(MgcError):  # shards are missing
            clips = clips_of.load(feature_set, *splits, lazily=True)
            place = {track_id: row for row, track_id in enumerate(clips.track_ids_N.tolist())}
            shown = clips.take(np.array([place[track_id] for track_id in predictions.track_ids_N[rows_B].tolist()]))
            spec = feature_set.manifest.spec
            figure = figures.mistakes(shown, predictions.probabilities_NG[rows_B], source.genres, spec)
            picture = html.data_uri(figure, "webp")  # a tenth of what spectrograms take in an SVG
    return {"listed": listed, "picture": picture, "wrong": int((~predictions.right).sum())}


def settings_of(models: Sequence[TrainedModel]) -> list[dict[str, Any]]:
    """List every field of the configuration, with the value of the preset plain_cnn where it differs.

    Parameters
    ----------
    models
        The models of a run.

    Returns
    -------
    list of dict
        ``name``, ``value`` and ``note`` of each field, as the pages show them.
    """
    leaves = [flatten(model.card.config.to_dict()) for model in models]
    rows = []
    for name, plain in flatten(TrainConfig().to_dict()).items():  # the defaults of all fields are that preset
        values = list(dict.fromkeys(str(each[name]) for each in leaves))
        note = f"plain_cnn: {plain}" if values != [str(plain)] else None
        rows.append({"name": name, "value": "; ".join(values), "note": note})
    return rows


def _data(record: Record, models: Sequence[TrainedModel], predictions: Predictions | None) -> dict[str, str]:
    """Where the model's knowledge is from, and the feature sets of training and evaluation."""
    fingerprint = models[0].card.fingerprint
    facts = {"track": models[0].card.config.track}
    facts |= {"trained on": f"{record.tags.get(FEATURES_TAG, '?')}, fingerprint {fingerprint}"}
    if predictions and predictions.source.fingerprint != fingerprint:
        facts["evaluated on"] = f"{predictions.source.features}, fingerprint {predictions.source.fingerprint}"
    return facts
