"""A fit and the MLflow run that keeps it: what a training, a seed, a fold and a trial of a sweep have in common."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from mgc.collection.splits import leak_message
from mgc.core.errors import InputError
from mgc.core.progress import Progress
from mgc.core.ray_session import output_folder
from mgc.dataset.protocols import leak
from mgc.evaluation import figures as pictures
from mgc.evaluation.predictions import Source
from mgc.evaluation.trained_models import TrainedModel, predict_clips
from mgc.features.feature_set import FeatureSet
from mgc.model import checkpoint
from mgc.tracking import runs as tracking
from mgc.training.fit_state import Epoch, discard

if TYPE_CHECKING:
    from pathlib import Path

    from mgc.config import TrainConfig
    from mgc.dataset.protocols import LearningSet
    from mgc.training.loop import Fitted

PICTURED = 400
"""Clips at most whose spectrograms are looked through for pictures of each genre."""


def open_for_learning(features: str | Path, *, allow_leaks: bool) -> FeatureSet:
    """Open a feature set; refuse one with artists in two splits, whose figures would flatter."""
    feature_set = FeatureSet.open(output_folder("features", features))  # MLflow's store may go beside it
    leaks = list(feature_set.manifest.artist_leaks)
    if leaks and not allow_leaks:
        raise InputError(
            f"--features {feature_set.folder}: {leak_message(leaks)}; mend the splits or pass --allow-leaks"
        )
    return feature_set


def describe(run: tracking.Run, feature_set: FeatureSet, config: TrainConfig) -> None:
    """Name the run's input, and say if it leaks."""
    run.features(feature_set.folder, feature_set.manifest.fingerprint, "training")
    if leak(feature_set.manifest, config.split):
        run.tag({tracking.LEAKY_TAG: "true"})


class Watch:
    """What happens after each epoch: MLflow and the person at the terminal hear of it, once."""

    def __init__(self, run: tracking.Run, title: str, epochs: int) -> None:
        self.run = run
        self.progress = Progress(title, epochs, "epochs")
        self.began = time.time()
        self.told = 0

    def __call__(self, point: Epoch) -> None:
        """Log an epoch and show it."""
        self.run.metrics(point.metrics(), epoch=point.epoch, at=point.ended)
        if point.epoch <= self.told:  # a worker that was started again begins with its former epochs
            return
        self.told = point.epoch
        if point.ended < self.began:  # of the fit that is gone on with
            self.progress.resume(1)
            return
        self.progress.advance(
            1,
            f"loss {point.train_loss:.3f}, accuracy {point.train_accuracy:.3f}; "
            f"validation {point.val_loss:.3f}, {point.val_accuracy:.3f}",
        )


def keep(run: tracking.Run, fitted: Fitted, data: LearningSet) -> None:
    """Give a run all that a finished fit leaves.

    That is figures, pictures, what it says of its validation clips, the checkpoint, and the model as a program. The
    fit's state goes last: interrupted before, the fit can be taken up and this done again.
    """
    run.metrics(
        {
            "best_epoch": fitted.best_epoch,
            "best_train_accuracy": fitted.train_accuracy,
            "best_val_accuracy": fitted.val_accuracy,
            "best_gap": fitted.train_accuracy - fitted.val_accuracy,
        }
    )
    run.figure(pictures.learning_curves([asdict(p) for p in fitted.history], fitted.best_epoch), "pictures/curves.png")
    model, card = checkpoint.read(fitted.checkpoint)
    for name in (checkpoint.WEIGHTS, checkpoint.CARD):
        run.file(fitted.checkpoint / name, tracking.CHECKPOINT)
    place = run.record().tags[tracking.FEATURES_TAG]
    source = Source("validation", data.genres, place, data.fingerprint, card.config.split, data.leak)
    (said,) = predict_clips([TrainedModel(run, model, card)], data.clips.take(data.validation), source)
    said.keep(run)
    run.figure(pictures.confusion_matrix(said.score(), source.title), "pictures/confusion_validation.png")
    sample = data.clips.take(data.training[:PICTURED])
    run.figure(pictures.spectrograms(sample, data.genres, data.spec), "pictures/spectrograms.png")
    run.model(model, card.spec.shape, len(card.genres))
    discard(fitted.checkpoint)
