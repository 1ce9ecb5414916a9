"""A run's model card: its facts are gathered from what the run keeps, and it is kept with the run and the weights.

A single model's card is ``README.md`` beside its weights, in the storage and in MLflow, so that this folder is a model
repository. A parent run of seeds or folds has a card that names its models; each of them has its own.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mgc.core.errors import MgcError, first_line
from mgc.core.progress import say
from mgc.core.storage import Folder
from mgc.dataset.protocols import leak
from mgc.encoders.registry import ENCODERS
from mgc.evaluation.calibration import PRECISION
from mgc.evaluation.model_card import ModelCard, SplitResult
from mgc.evaluation.predictions import Predictions
from mgc.evaluation.trained_models import calibration_of, kept_validation, read_models
from mgc.features.feature_set import FeatureSet
from mgc.features.layout import Manifest
from mgc.model import checkpoint
from mgc.model.pretrained import Pretrained
from mgc.tracking import registry
from mgc.tracking.provenance import COMMIT_TAG, DIRTY_TAG, VERSION_TAG
from mgc.tracking.runs import (
    CHECKPOINT,
    FEATURES_TAG,
    LEAKY_TAG,
    OF_TAG,
    PARENT_TAG,
    PLACE_TAG,
    REGISTERED_TAG,
    STEP_TAG,
    STORAGE_TAG,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mgc.evaluation.trained_models import TrainedModel
    from mgc.tracking.runs import Run

CARD = "model_card.md"
"""Artifact of a run that is its model card."""
README = "README.md"
"""The same beside the weights, where a hub reads it."""
FEATURES = "features.json"
"""Artifact of a run: manifest of the feature set of its training, but for the shards."""


def keep(
    run: Run,
    models: Sequence[TrainedModel] | None = None,
    *,
    precision: float | None = None,
    model_id: str | None = None,
) -> ModelCard | None:
    """Make the model card of a run from what the run keeps, and keep it, in place of an earlier one.

    It is logged as ``model_card.md``. That of a single model is ``README.md`` in its checkpoint too: in MLflow, and in
    the storage where the checkpoint is still there. Nothing is raised: a model is worth more than its card.

    Parameters
    ----------
    run
        A run with a checkpoint, or a parent of seeds or folds.
    models
        The run's models, where they were read already.
    precision
        Share of right answers, on validation clips, that is left when what is marked unsure is left out; by default
        that of the run's last evaluation.
    model_id
        MLflow's id of a logged model, to whose files the card is added as well: those of a registered version.

    Returns
    -------
    ModelCard or None
        None where it could not be made or kept, which is said.
    """
    try:
        models = models or read_models(run)
        card = model_card(run, models, precision=precision)
        text = card.text()
        run.text(text, CARD)
        if [model.run for model in models] == [run]:
            run.text(text, f"{CHECKPOINT}/{README}")
            storage = run.record().tags.get(STORAGE_TAG)
            if storage and (folder := Folder.at(storage)).kind(checkpoint.CARD) == "file":
                folder.write(README, text.encode())
        if model_id:
            registry.add_text(run.uri, model_id, text, README)
    except Exception as error:  # whatever it is, the model is there
        say(f"run {run.id}: no model card ({type(error).__name__}: {first_line(error)}); «mgc report» makes it")
        return None
    return card


def model_card(run: Run, models: Sequence[TrainedModel], *, precision: float | None = None) -> ModelCard:
    """Gather the facts of a model card from what a run keeps.

    Parameters
    ----------
    run
        The run.
    models
        Its models.
    precision
        As of ``keep``.

    Returns
    -------
    ModelCard
        The facts.

    Raises
    ------
    InputError
        Predictions that a run keeps are damaged.
    """
    record, first = run.record(), models[0]
    tags, network, config = record.tags, first.model, first.card.config
    if precision is None:
        asked = (record.metrics.get(f"{prefix}_sure_precision") for prefix in ("test", "val_ensemble", "val"))
        precision = next(filter(None, asked), PRECISION)
    trained = network.classifier if isinstance(network, Pretrained) and config.frozen else network
    features = tags.get(FEATURES_TAG, "")
    manifest = _manifest(run, features, first.card.fingerprint)
    kept = [Predictions.kept(run, "test"), Predictions.kept(run, "validation") or kept_validation(models)]
    calibration = calibration_of(models)
    results = tuple(
        SplitResult(each.source, each.score(), each.calibrated(calibration, first.card.fingerprint, precision))
        for each in kept
        if each
    )
    found = [result.source.leak for result in results] + ([leak(manifest, config.split)] if manifest else [])
    found += ["LEAKY: so the run says"] if tags.get(LEAKY_TAG) == "true" else []
    changed = " (changed since)" if tags.get(DIRTY_TAG) == "true" else ""
    return ModelCard(
        name=record.name,
        run_id=run.id,
        step=tags.get(STEP_TAG, "run"),
        started=f"{datetime.fromtimestamp(record.started, UTC):%Y-%m-%d}",
        version=tags.get(f"{VERSION_TAG}mgc"),
        commit=f"{tags[COMMIT_TAG]}{changed}" if COMMIT_TAG in tags else None,
        place=tags.get(PLACE_TAG),
        parent=tags.get(PARENT_TAG),
        registered=tags.get(REGISTERED_TAG),
        searched=tags.get(STEP_TAG) == "trial" or OF_TAG in tags,
        models=tuple((model.run.id, model.card) for model in models),
        n_parameters=sum(each.numel() for each in network.parameters()),
        n_trained=sum(each.numel() for each in trained.parameters() if each.requires_grad),
        encoder=ENCODERS.get(config.model.encoder),
        features=features,
        manifest=manifest,
        leak=next(filter(None, found), ""),
        results=results,
    )


def feature_set_at(location: str, fingerprint: str) -> FeatureSet | None:
    """Return the feature set of a location, if it is still the one of a fingerprint.

    Parameters
    ----------
    location
        Path or URI.
    fingerprint
        Of the set that is wanted.
    """
    try:
        found = FeatureSet.open(location)
    except MgcError:
        return None
    return found if found.manifest.fingerprint == fingerprint else None


def _manifest(run: Run, location: str, fingerprint: str) -> Manifest | None:
    """What is known of the feature set of a run's training; the run keeps it, for a card that is made elsewhere."""
    if found := feature_set_at(location, fingerprint):
        manifest = replace(found.manifest, shards=())
        run.text(manifest.to_json(), FEATURES)
        return manifest
    with tempfile.TemporaryDirectory() as folder:
        file = run.fetch(FEATURES, Path(folder))
        try:
            kept = Manifest.from_json(file.read_text()) if file else None
        except (MgcError, KeyError, TypeError, ValueError):  # of another version
            return None
    return kept if kept and kept.fingerprint == fingerprint else None
