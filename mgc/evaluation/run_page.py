"""One self-contained page about a run: the claim and what it rests on, from what the run keeps.

The test split is shown if it was evaluated; otherwise the clips that the run was validated on, which is no look at it.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

from mgc.config import PRESETS, member_name
from mgc.core.errors import MgcError
from mgc.core.storage import Folder
from mgc.dataset import clips as clips_of
from mgc.evaluation import figures as pictures
from mgc.evaluation.predictions import Predictions, on_validation, read_models
from mgc.features.feature_set import FeatureSet
from mgc.pages import html as page
from mgc.sweep import sweep_page as sweep_report
from mgc.tracking.runs import FEATURES_TAG, STEP_TAG, Run, flatten
from mgc.tracking.store import existing_store

if TYPE_CHECKING:
    from mgc.evaluation.predictions import Trained
    from mgc.tracking.runs import Record

TEMPLATE = "run.html.j2"
MISTAKES = 6
"""Most confident mistakes that are shown."""
CURVES = ("train_loss", "val_loss", "train_accuracy", "val_accuracy")


def report(run_id: str, *, out: Path | None = None) -> dict[str, Any]:
    """Make the page of a training run, a trial, a parent run of seeds or folds, or a sweep; keep it as ``report.html``.

    Parameters
    ----------
    out
        Write the page to this file too.

    Returns
    -------
    dict
        ``run_id``, ``split`` (that the page shows: ``test``, ``validation``, or None where neither can be had),
        ``report`` (where the run keeps the page), ``out`` (the file, or None).

    Raises
    ------
    InputError
        There is no such run, it has no model, or ``out`` cannot be written.
    """
    return make(Run.find(existing_store(Folder.at(Path.cwd())), run_id), out)


def make(run: Run, out: Path | None = None) -> dict[str, Any]:
    """As ``report``, of a run that is found already."""
    record = run.record()
    if record.tags.get(STEP_TAG) == "tune":
        return sweep_report.make(run, out) | {"split": "validation"}
    models = read_models(run)
    predictions = Predictions.kept(run, "test") or Predictions.kept(run, "validation") or _validated(models, record)
    kept = page.keep(run, _render(run, record, models, predictions), out)
    return kept | {"split": predictions and predictions.source.split}


def _validated(models: list[Trained], record: Record) -> Predictions | None:
    """What the models say of their validation clips; None if the feature set that they were trained on is not there."""
    feature_set = _feature_set(record.tags.get(FEATURES_TAG, ""), models[0].card.fingerprint)
    if feature_set:
        with suppress(MgcError):  # shards are missing
            return on_validation(models, feature_set)[1]
    return None


def _feature_set(place: str, fingerprint: str) -> FeatureSet | None:
    """The feature set at a place, if it is still the one of this fingerprint."""
    try:
        found = FeatureSet.open(place)
    except MgcError:
        return None
    return found if found.manifest.fingerprint == fingerprint else None


# What is on the page


def _render(run: Run, record: Record, models: list[Trained], predictions: Predictions | None) -> str:
    facts: dict[str, Any] = {
        **page.heading(record),
        "kind": f"{len(models)} models" if len(models) > 1 else "one model",
        "notes": _notes(models, predictions),
        "curves": _curves(models),
        "settings": _settings(models),
        "settings_note": "Marked: what differs from the preset baseline.",
        "origin": page.origin(run, record, _data(record, models, predictions)),
    }
    if predictions:
        source, scores = predictions.source, predictions.score()
        facts |= {
            "source": source,
            "scores": scores,
            "commonest": max(row["support"] for row in scores.per_genre.values()) / scores.n,
            "members": _members(models, predictions),
            "reliability": page.data_uri(pictures.reliability(scores, source.title)),
            "mistakes": _mistakes(predictions),
        }
        if source.members:
            accuracies = [member.accuracy for member in source.members]
            facts |= {"mean": mean(accuracies), "sd": stdev(accuracies)}
    return page.render(TEMPLATE, facts)


def _notes(models: list[Trained], predictions: Predictions | None) -> list[str]:
    """What one must know to read the claim."""
    if predictions is None:
        return ["The test split is not evaluated, and the feature set to compute validation figures from is gone."]
    source, notes = predictions.source, []
    if source.split == "test":
        notes.append(f"Look {source.looks} at this test split, counted over all runs.")
    else:
        chose = " They chose the epoch that is kept, which flatters." if models[0].card.config.keep == "best" else ""
        notes.append(f"The test split is not evaluated: these are validation clips.{chose}")
    if source.split == "validation" and models[0].card.config.fold:
        notes.append("Each clip is judged by a model that has not learnt from it.")
    elif source.members:
        notes.append(f"The probabilities are the mean of those of {len(source.members)} models.")
    if any(model.card.fingerprint != source.fingerprint for model in models):
        notes.append("Trained on another feature set: whether the models know these clips or artists is not checked.")
    return notes


def _members(models: list[Trained], predictions: Predictions) -> list[dict[str, Any]]:
    figures = {model.run.id: model.card.figures for model in models}
    return [
        {
            "name": member_name(member.seed, member.fold),
            "accuracy": member.accuracy,
            "val_accuracy": figures.get(member.run_id, {}).get("val_accuracy"),
            "best_epoch": figures.get(member.run_id, {}).get("best_epoch"),
            "run_id": member.run_id,
        }
        for member in predictions.source.members
    ]


def _curves(models: list[Trained]) -> str | None:
    drawn = [(model.run.history(CURVES), int(model.card.figures.get("best_epoch", 0))) for model in models]
    drawn = [(history, best_epoch) for history, best_epoch in drawn if history]
    if not drawn:
        return None
    return page.data_uri(pictures.learning_curves(*drawn[0]) if len(drawn) == 1 else pictures.member_curves(drawn))


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
    if listed and (feature_set := _feature_set(source.features, source.fingerprint)):
        splits = {entry.split: None for entry in feature_set.manifest.shards if entry.rows}
        with suppress(MgcError):  # shards are missing
            clips = clips_of.load(feature_set, *splits, lazily=True)
            place = {track_id: row for row, track_id in enumerate(clips.track_ids_N.tolist())}
            shown = clips.take(np.array([place[track_id] for track_id in predictions.track_ids_N[rows_B].tolist()]))
            spec = feature_set.manifest.spec
            figure = pictures.mistakes(shown, predictions.probabilities_NG[rows_B], source.genres, spec)
            picture = page.data_uri(figure, "webp")  # a tenth of what spectrograms take in an SVG
    return {"listed": listed, "picture": picture, "wrong": int((~predictions.right).sum())}


def _settings(models: list[Trained]) -> list[dict[str, Any]]:
    """Every field of the configuration, and what the baseline has where it differs."""
    leaves = [flatten(model.card.config.to_dict()) for model in models]
    rows = []
    for name, plain in flatten(PRESETS["baseline"].to_dict()).items():
        values = list(dict.fromkeys(str(each[name]) for each in leaves))
        note = f"baseline: {plain}" if values != [str(plain)] else None
        rows.append({"name": name, "value": "; ".join(values), "note": note})
    return rows


def _data(record: Record, models: list[Trained], predictions: Predictions | None) -> dict[str, str]:
    """What was trained and evaluated on."""
    fingerprint = models[0].card.fingerprint
    facts = {"trained on": f"{record.tags.get(FEATURES_TAG, '?')}, fingerprint {fingerprint}"}
    if predictions and predictions.source.fingerprint != fingerprint:
        facts["evaluated on"] = f"{predictions.source.features}, fingerprint {predictions.source.fingerprint}"
    return facts
