"""The command ``mgc baseline``: statistics of clips and a classifier without a network, which a model is to beat.

- ``mfcc`` with ``svm`` is the baseline of Defferrard et al., «FMA: A Dataset for Music Analysis» (ISMIR 2017), by
  ``features.py`` and ``usage.ipynb`` of their repository: 20 MFCCs at the file's own sample rate, 7 statistics of each
  over time, standardised, an RBF kernel, nothing tuned. There it reaches 46.4 % on FMA-small, with statistics of the
  whole tracks (mdeff/fma, issue 8); here they are of the part of a clip that the feature set's recipe takes.
- ``logmel`` are mean and deviation over time of each log-Mel band, in decibels.
- ``random_cnn`` are what the CNN's blocks say with random filters: ``mgc.evaluation.random_cnn``.
- An encoder's are its vectors of a clip's windows, averaged: what a pretrained network hears, without training one.

A leak (``mgc.dataset.protocols.leak``) does not stop it: the result and the run are marked LEAKY.

Shape suffixes: N clips, D statistics, G genres.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mgc.collection.splits import SPLITS
from mgc.collection.tracks import read_tracks
from mgc.config import EncoderName, TrainConfig, track
from mgc.core.errors import InputError
from mgc.core.progress import say
from mgc.core.results import Result
from mgc.core.storage import Folder
from mgc.dataset import clips as clips_of
from mgc.dataset.embeddings import vectors_of
from mgc.dataset.protocols import check_genres, dealt, gap, leak, learning_set
from mgc.evaluation.clip_statistics import logmels_of, mfccs_of
from mgc.evaluation.random_cnn import random_cnn_of
from mgc.evaluation.ridge import STRENGTH, Ridge
from mgc.evaluation.zero_shot import ZeroShot, tags_of
from mgc.features.feature_set import FeatureSet

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from mgc.dataset.clips import Clips
    from mgc.evaluation.metrics import Scores
    from mgc.evaluation.predictions import Predictions

SVM = {"kernel": "rbf", "C": 1.0, "gamma": "scale"}
"""scikit-learn's defaults; of standardised columns ``scale`` is FMA's ``auto``, 1/D."""
LOGISTIC = {"C": 1.0, "max_iter": 1000}
"""scikit-learn's defaults, with enough iterations to end."""
RIDGE = {"strength": STRENGTH}
KNN = {"n_neighbors": 10, "weights": "distance", "metric": "cosine"}
SETTINGS: dict[str, dict[str, Any]] = {"svm": SVM, "logistic": LOGISTIC, "ridge": RIDGE, "knn": KNN, "zero_shot": {}}
NAMES = {
    "mfcc": "MFCC",
    "logmel": "log-Mel",
    "random_cnn": "random CNN",
    "svm": "SVM",
    "logistic": "logistic regression",
    "ridge": "ridge regression",
    "knn": "nearest neighbours",
    "zero_shot": "its own tags",
}


@dataclass(frozen=True)
class BaselineScores(Result):
    """How good the baseline is on a feature set."""

    run_id: str
    """MLflow run."""
    name: str
    """Statistics and classifier: ``MFCC + SVM``."""
    split: str
    """The protocol: ``official`` or ``random``."""
    folds: int
    """Of a cross-validation; 0 without."""
    leak: str
    """Why the figures flatter; empty where nothing is known against them."""
    test_evaluations: int
    """How often this test set has been evaluated on, this time included; 0 of a cross-validation."""
    training_accuracy: float
    """Of folds the mean."""
    validation_accuracy: float
    n: int
    """Test clips; of a cross-validation its validation clips."""
    accuracy: float
    """On these."""
    ci95: tuple[float, float]
    """Wilson's 95 % interval of the accuracy."""
    macro_f1: float
    per_genre: dict[str, dict[str, float]]
    """Precision, recall, F1 and clips (``support``) of each genre."""
    confusion: list[list[int]]
    """Row = true genre, column = predicted genre, in the order of ``per_genre``."""
    seconds: float
    """That it took."""

    @property
    def leaky(self) -> bool:
        """Whether the figures flatter."""
        return bool(self.leak)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: the fields, ``leaky`` for ``leak``, ``looks`` for ``test_evaluations``."""
        facts = {field.name: getattr(self, field.name) for field in fields(self)}
        del facts["leak"]
        return facts | {"leaky": self.leaky, "looks": facts.pop("test_evaluations")}

    def __str__(self) -> str:
        """Return the accuracies, and a line a genre."""
        low, high = self.ci95
        wide = max(map(len, self.per_genre))
        of = f"{self.folds} folds, validation" if self.folds else f"{self.split} split, test"
        lines = [
            f"{self.name}, {of}: accuracy {self.accuracy:.3f} [{low:.3f}, {high:.3f}] "
            f"of {self.n} clips, macro-F1 {self.macro_f1:.3f}",
            f"accuracy in training {self.training_accuracy:.3f}, in validation {self.validation_accuracy:.3f}",
            *(f"{genre:<{wide}}  F1 {row['f1']:.3f} of {row['support']}" for genre, row in self.per_genre.items()),
        ]
        return "\n".join([*lines, *([self.leak] if self.leak else [])])


def baseline(
    features: str | Path | FeatureSet,
    root: str | Path | None = None,
    *,
    kind: Literal["mfcc", "logmel", "random_cnn"] = "mfcc",
    encoder: EncoderName = "none",
    classifier: Literal["svm", "logistic", "ridge", "knn", "zero_shot"] = "svm",
    split: Literal["official", "random"] = "official",
    folds: int = 0,
    workers: int | None = None,
) -> BaselineScores:
    """Fit a classifier on training clips and evaluate it once on the test clips, or cross-validate it.

    MFCCs are computed anew each time: 1000 clips of 30 s take one CPU about 90 s.

    Parameters
    ----------
    features
        Path or URI of a finished feature set.
    root
        The collection that it was made from, as ``mgc.collection.tracks.read_tracks`` takes it; needed for ``mfcc``.
    kind
        Statistics: of MFCCs, of log-Mel bands, or of random convolutions.
    encoder
        In their place: the vectors of a pretrained encoder, or of the same layers with random weights; the feature set
        has the encoder's recipe.
    classifier
        A support vector machine with an RBF kernel, logistic regression, ridge regression, or the nearest neighbours by
        the cosine; of standardised statistics. ``zero_shot`` learns nothing: see ``mgc.evaluation.zero_shot``.
    split
        The feature set's own split, or the literature's random one, which is leaky.
    folds
        Cross-validate over training and validation clips, all clips of an artist in one fold, as ``mgc train`` does;
        the test clips are left alone.
    workers
        Processes that compute MFCCs; all CPUs by default.

    Returns
    -------
    BaselineScores
        The figures; ``print`` shows them. They and the predictions are kept with an MLflow run.

    Raises
    ------
    InputError
        A path or value cannot be used, or a clip of the set is missing from ``root`` or cannot be decoded; the set is
        not of the encoder's recipe, or the encoder's weights are not here.
    RunError
        The MLflow store does not answer.
    """
    from mgc.tracking import runs as tracking
    from mgc.tracking import store

    start = time.monotonic()
    protocol = TrainConfig(split=split, folds=folds)  # refuses what cannot be
    if workers is not None and workers < 1:
        raise InputError(f"`workers={workers}`: must be at least 1")
    feature_set = FeatureSet.open(features)
    manifest = feature_set.manifest
    splits = SPLITS[:2] if folds else SPLITS
    clips = clips_of.load(feature_set, *splits, lazily=True)
    parts = _parts(feature_set, clips, protocol)
    zero_shot = ZeroShot(encoder, manifest.genres) if classifier == "zero_shot" else None
    uri = store.open_store(feature_set.folder)
    if encoder != "none":
        vectors_NDK = vectors_of(feature_set, splits, encoder, store.storage(None, feature_set.folder))
        statistics_ND = tags_of(encoder, vectors_NDK) if zero_shot else vectors_NDK.mean(2, dtype=np.float32)
    elif kind == "logmel":
        statistics_ND = logmels_of(feature_set, splits)
    elif kind == "random_cnn":
        statistics_ND = random_cnn_of(feature_set, splits)
    elif root is None:
        raise InputError(
            "`root`: needed for MFCCs, which are computed from the audio; or take `kind=logmel` or `kind=random_cnn`"
        )
    else:
        audio_root = read_tracks(root, allow_outside=True).audio_root
        statistics_ND = mfccs_of(audio_root, clips.paths, manifest.spec.seconds, workers)

    name, settings = f"{NAMES[kind] if encoder == 'none' else encoder} + {NAMES[classifier]}", SETTINGS[classifier]
    config = {"root": str(Folder.at(root)) if root else None, "kind": kind, "split": split, "folds": folds}
    config["encoder"] = encoder
    found = leak(manifest, split)
    tags = {tracking.TRACK_TAG: track(encoder)} | ({tracking.LEAKY_TAG: "true"} if found else {})
    run = tracking.Run.start(
        uri, tracking.EXPERIMENT, name=name, step="baseline", config=config | {classifier: settings}, tags=tags
    )
    with run.closing():
        run.features(feature_set.folder, manifest.fingerprint, "training")
        fitted = [
            zero_shot or _fit(classifier, statistics_ND[training], clips.labels_N[training]) for training, *_ in parts
        ]
        training_accuracy, validated = 0.0, []
        for machine, (training, validation, _) in zip(fitted, parts, strict=True):
            training_accuracy += float(machine.score(statistics_ND[training], clips.labels_N[training])) / len(parts)
            validated.append(_predicted(machine, statistics_ND, clips, validation, len(manifest.genres)))
        predictions = _joined(feature_set, "validation", split, validated)
        predictions.keep(run)
        validation_accuracy, scores, count = float(predictions.right.mean()), predictions.score(), 0
        if not folds:
            count, scores = _tested(run, feature_set, split, fitted[0], statistics_ND, clips, parts[0][2])
        seconds = round(time.monotonic() - start, 2)
        accuracies = {"train_accuracy": training_accuracy, "val_accuracy": validation_accuracy}
        run.metrics(accuracies | {"gap": training_accuracy - validation_accuracy, "seconds": seconds})
        if not folds:
            run.metrics({"test_accuracy": scores.accuracy, "test_macro_f1": scores.macro_f1, "test_clips": scores.n})
            run.metrics({"test_ci95_low": scores.ci95[0], "test_ci95_high": scores.ci95[1]})
    return BaselineScores(
        run.id,
        name,
        split,
        folds,
        found,
        count,
        training_accuracy,
        validation_accuracy,
        scores.n,
        scores.accuracy,
        scores.ci95,
        scores.macro_f1,
        scores.per_genre,
        scores.confusion,
        seconds,
    )


def _parts(
    feature_set: FeatureSet, clips: Clips, protocol: TrainConfig
) -> list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Rows of training, validation and test clips: of the split, or of each fold, which has no test clips."""
    if protocol.folds:
        each = (replace(protocol, fold=fold) for fold in range(1, protocol.folds + 1))
        sets = [learning_set(feature_set, config, lazily=True, clips=clips) for config in each]
        return [(data.training, data.validation, np.arange(0)) for data in sets]
    names_N = dealt(clips, protocol.split)
    training, validation, test = (np.flatnonzero(names_N == name) for name in SPLITS)
    check_genres(feature_set, clips.labels_N[training])
    for name, rows in zip(SPLITS, (training, validation, test), strict=True):
        if missing := gap(feature_set.manifest.genres, clips.labels_N[rows], name, "its figures do not tell of them"):
            say(f"baseline: {missing}")
    return [(training, validation, test)]


def _fit(classifier: str, statistics_ND: NDArray[np.float32], labels_N: NDArray[np.int64]) -> Any:
    if classifier == "ridge":
        return Ridge().fit(statistics_ND, labels_N)
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    kinds = {"svm": SVC, "logistic": LogisticRegression, "knn": KNeighborsClassifier}
    machine = kinds[classifier](**SETTINGS[classifier])
    return make_pipeline(StandardScaler(), machine).fit(statistics_ND, labels_N)


def _predicted(
    machine: Any, statistics_ND: NDArray[np.float32], clips: Clips, rows: NDArray[np.int64], genres: int
) -> tuple[Clips, NDArray[np.float32]]:
    """The clips of some rows, and their probabilities [shape=(N, G)]; of a machine that has none, all on one genre."""
    probabilities_NG = np.zeros((len(rows), genres), np.float32)
    if hasattr(machine, "predict_proba"):
        probabilities_NG[:, machine.classes_] = machine.predict_proba(statistics_ND[rows])
    else:
        probabilities_NG[np.arange(len(rows)), machine.predict(statistics_ND[rows])] = 1
    return clips.take(rows), probabilities_NG


def _joined(
    feature_set: FeatureSet, split: str, protocol: str, parts: list[tuple[Clips, NDArray[np.float32]]]
) -> Predictions:
    from mgc.evaluation.predictions import Predictions, Source

    return Predictions(
        Source.of(feature_set, split, protocol),
        np.concatenate([clips.track_ids_N for clips, _ in parts]),
        tuple(path for clips, _ in parts for path in clips.paths),
        np.concatenate([clips.labels_N for clips, _ in parts]),
        np.concatenate([probabilities_NG for _, probabilities_NG in parts]),
    )


def _tested(
    run: Any,
    feature_set: FeatureSet,
    protocol: str,
    machine: Any,
    statistics_ND: NDArray[np.float32],
    clips: Clips,
    rows: NDArray[np.int64],
) -> tuple[int, Scores]:
    """Count a test-set evaluation, and then predict."""
    from mgc.evaluation.predictions import Source
    from mgc.evaluation.test_evaluations import counted_test_evaluation

    with counted_test_evaluation(run, Source.of(feature_set, "test", protocol)) as (count, _):
        part = _predicted(machine, statistics_ND, clips, rows, len(feature_set.manifest.genres))
        predictions = _joined(feature_set, "test", protocol, [part])
        predictions = replace(predictions, source=replace(predictions.source, test_evaluations=count))
        predictions.keep(run)
    return count, predictions.score()
