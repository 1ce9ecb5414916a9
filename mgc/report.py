"""One self-contained page about a run: the claim and what it rests on, from what the run keeps.

The test split is shown if it was evaluated; otherwise the clips that the run was validated on, which is no look at it.
"""

from __future__ import annotations

import base64
import io
from contextlib import suppress
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, Literal

import jinja2
import numpy as np

from mgc import clips as clips_of
from mgc import pictures
from mgc.config import PRESETS, member_name
from mgc.errors import InputError, MgcError
from mgc.features import FeatureSet
from mgc.files import write_text
from mgc.folder import Folder
from mgc.predictions import Predictions, on_validation, read_models
from mgc.provenance import COMMIT_TAG, DIRTY_TAG, VERSION_TAG
from mgc.store import existing_store
from mgc.tracking import FEATURES_TAG, STEP_TAG, Run, flatten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mgc.predictions import Trained
    from mgc.tracking import Record

PAGE = "report.html"
TEMPLATE = "report.html.j2"
MISTAKES = 6
"""Most confident mistakes that are shown."""
CURVES = ("train_loss", "val_loss", "train_accuracy", "val_accuracy")


def report(run_id: str, *, out: Path | None = None) -> dict[str, Any]:
    """Make the page of a training run, a trial, or a parent run of seeds or folds, and keep it as ``report.html``.

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
    models, record = read_models(run), run.record()
    predictions = Predictions.kept(run, "test") or Predictions.kept(run, "validation") or _validated(models, record)
    page = _render(run, record, models, predictions)
    run.text(page, PAGE)
    if out is not None:
        try:
            write_text(page, out)
        except OSError as error:
            raise InputError(f"--out {out}: cannot be written ({error.strerror or error})") from None
    return {
        "run_id": run.id,
        "split": predictions and predictions.source.split,
        "report": run.artifact_uri(PAGE),
        "out": out and str(out),
    }


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
        "name": record.name,
        "kind": f"{len(models)} models" if len(models) > 1 else "one model",
        "step": record.tags.get(STEP_TAG, "run"),
        "started": f"{datetime.fromtimestamp(record.started, UTC):%Y-%m-%d %H:%M} UTC",
        "notes": _notes(models, predictions),
        "curves": _curves(models),
        "settings": _settings(models),
        "origin": _origin(run, record, models, predictions),
    }
    if predictions:
        source, scores = predictions.source, predictions.score()
        facts |= {
            "source": source,
            "scores": scores,
            "commonest": max(row["support"] for row in scores.per_genre.values()) / scores.n,
            "members": _members(models, predictions),
            "reliability": _data_uri(pictures.reliability(scores, source.title)),
            "mistakes": _mistakes(predictions),
        }
        if source.members:
            accuracies = [member.accuracy for member in source.members]
            facts |= {"mean": mean(accuracies), "sd": stdev(accuracies)}
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = "{:.1%}".format
    return environment.from_string(resources.files("mgc").joinpath(TEMPLATE).read_text()).render(facts)


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
    return _data_uri(pictures.learning_curves(*drawn[0]) if len(drawn) == 1 else pictures.member_curves(drawn))


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
            picture = _data_uri(figure, "webp")  # a tenth of what spectrograms take in an SVG
    return {"listed": listed, "picture": picture, "wrong": int((~predictions.right).sum())}


def _settings(models: list[Trained]) -> list[dict[str, Any]]:
    """Every field of the configuration, and what the baseline has where it differs."""
    leaves = [flatten(model.card.config.to_dict()) for model in models]
    rows = []
    for name, plain in flatten(PRESETS["baseline"].to_dict()).items():
        values = list(dict.fromkeys(str(each[name]) for each in leaves))
        rows.append(
            {"name": name, "value": "; ".join(values), "baseline": str(plain) if values != [str(plain)] else None}
        )
    return rows


def _origin(run: Run, record: Record, models: list[Trained], predictions: Predictions | None) -> dict[str, str]:
    """Data, code and libraries."""
    tags = record.tags
    facts = {
        "run": run.id,
        "started": f"{datetime.fromtimestamp(record.started, UTC):%Y-%m-%d %H:%M} UTC",
        "trained on": f"{tags.get(FEATURES_TAG, '?')}, fingerprint {models[0].card.fingerprint}",
    }
    if predictions and predictions.source.fingerprint != models[0].card.fingerprint:
        facts["evaluated on"] = f"{predictions.source.features}, fingerprint {predictions.source.fingerprint}"
    changed = " (changed since)" if tags.get(DIRTY_TAG) == "true" else ""
    facts["commit"] = f"{tags[COMMIT_TAG]}{changed}" if COMMIT_TAG in tags else "not known"
    versions = sorted(name for name in tags if name.startswith(VERSION_TAG))
    facts["versions"] = ", ".join(f"{name.removeprefix(VERSION_TAG)} {tags[name]}" for name in versions)
    return facts


def _data_uri(figure: Figure, kind: Literal["svg", "webp"] = "svg") -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=180)
    mime = {"svg": "svg+xml", "webp": "webp"}[kind]
    return f"data:image/{mime};base64,{base64.b64encode(buffer.getvalue()).decode()}"
