"""What a fit logs to MLflow: inputs, each epoch, and at the end figures, predictions, plots and the model."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from mgc.core.errors import InputError
from mgc.core.progress import Progress
from mgc.core.ray_session import output_folder
from mgc.dataset.protocols import leak
from mgc.evaluation import calibration, run_card
from mgc.evaluation import figures as plots
from mgc.evaluation.calibration import Calibration
from mgc.evaluation.predictions import Predictions, Source
from mgc.evaluation.run_page import EMBEDDINGS
from mgc.evaluation.trained_models import TrainedModel
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
"""Training clips at most among which the plots of spectrograms find one of each genre."""


def open_for_learning(features: str | Path | FeatureSet, *, allow_leaks: bool) -> FeatureSet:
    """Open a feature set for training, unless it has artists in two splits.

    Parameters
    ----------
    features
        A finished feature set, or where it is.
    allow_leaks
        Open it in spite of leaks.

    Raises
    ------
    InputError
        The set is unfinished, or leaks.
    """
    if not isinstance(features, FeatureSet):
        features = FeatureSet.open(output_folder("features", features))  # MLflow's store may go beside it
    found = leak(features.manifest, "official")
    if found and not allow_leaks:
        raise InputError(f"`features={features.folder}`: {found}; mend the splits, or pass `allow_leaks=True`")
    return features


def describe(run: tracking.Run, feature_set: FeatureSet, config: TrainConfig) -> None:
    """Log a run's input, and tag the run with its track, and if it leaks.

    Parameters
    ----------
    run
        The MLflow run of a fit, or of several.
    feature_set
        Its input.
    config
        Its ``split`` may leak.
    """
    run.features(feature_set.folder, feature_set.manifest.fingerprint, "training")
    run.tag({tracking.TRACK_TAG: config.track})
    if leak(feature_set.manifest, config.split):
        run.tag({tracking.LEAKY_TAG: "true"})


class EpochLogger:
    """Logs each epoch to MLflow and shows it at the terminal, once, however often it is reported.

    Parameters
    ----------
    run
        The MLflow run of the fit.
    title
        Of the progress line.
    epochs
        Of the whole fit.
    """

    def __init__(self, run: tracking.Run, title: str, epochs: int) -> None:
        self.run = run
        self.progress = Progress(title, epochs, "epochs")
        self.started = time.time()
        self.reported = 0

    def __call__(self, point: Epoch) -> None:
        """Log an epoch and show it.

        Parameters
        ----------
        point
            The epoch, or one from before the fit was resumed.
        """
        self.run.metrics(point.metrics(), epoch=point.epoch, at=point.ended)
        if point.epoch <= self.reported:  # a worker that was started again begins with its former epochs
            return
        self.reported = point.epoch
        if point.ended < self.started:  # of the fit that is resumed
            self.progress.resume(1)
            return
        self.progress.advance(
            1,
            f"loss {point.train_loss:.3f}, accuracy {point.train_accuracy:.3f}; "
            f"validation {point.val_loss:.3f}, {point.val_accuracy:.3f}",
        )


def keep(run: tracking.Run, fitted: Fitted, data: LearningSet) -> None:
    """Log all that a finished fit leaves: figures, plots, validation predictions, checkpoint, program and model card.

    The fit's state is deleted last: if this is interrupted, the fit can be resumed and this done again.

    Parameters
    ----------
    run
        The MLflow run of the fit.
    fitted
        Its result.
    data
        Its clips.
    """
    run.metrics(
        {
            "best_epoch": fitted.best_epoch,
            "train_accuracy": fitted.train_accuracy,
            "val_accuracy": fitted.val_accuracy,
            "val_loss": fitted.val_loss,
            "gap": fitted.train_accuracy - fitted.val_accuracy,
        }
    )
    curves = plots.learning_curves([asdict(point) for point in fitted.history], fitted.best_epoch)
    run.figure(curves, "pictures/curves.png")
    model, card = checkpoint.read(fitted.checkpoint)
    predictions = validation_predictions(run, fitted, data, card.config.split)
    predictions.keep(run)
    calibrated = Calibration.fit(predictions.labels_N, predictions.probabilities_NG)
    calibrated.write(fitted.checkpoint)
    names = (checkpoint.WEIGHTS, checkpoint.CARD, calibration.FILE)
    with fitted.checkpoint.on_this_machine(*names) as here:
        for name in names:
            run.file(here / name, tracking.CHECKPOINT)
    confusion = plots.confusion_matrix(predictions.score(), predictions.source.title)
    run.figure(confusion, "pictures/confusion_validation.png")
    if card.config.frozen:
        labels_N = data.clips.labels_N[data.training]
        vectors_ND = data.clips.mel_NFT[data.training].mean(2, dtype=np.float32)
        run.figure(plots.embedding_map(vectors_ND, labels_N, data.genres), EMBEDDINGS)
    else:
        sample = data.clips.take(data.training[:PICTURED])
        run.figure(plots.spectrograms(sample, data.genres, data.spec), "pictures/spectrograms.png")
    run.model(model, card.spec.shape, len(card.genres))
    run_card.keep(run, [TrainedModel(run, model, card, calibrated)])
    discard(fitted.checkpoint)


def validation_predictions(run: tracking.Run, fitted: Fitted, data: LearningSet, protocol: str) -> Predictions:
    """Put a fit's validation predictions together with the clips they are of.

    Parameters
    ----------
    run
        Its tags say where the feature set is.
    fitted
        Has the probabilities.
    data
        Has labels, ids and paths.
    protocol
        ``config.split`` of the fit.
    """
    rows_N, clips = data.validation, data.clips
    features = run.record().tags[tracking.FEATURES_TAG]
    source = Source("validation", data.genres, features, data.fingerprint, protocol, data.leak)
    paths = tuple(clips.paths[row] for row in rows_N)
    probabilities_NG = fitted.val_probabilities_NG
    return Predictions(source, clips.track_ids_N[rows_N], paths, clips.labels_N[rows_N], probabilities_NG)
