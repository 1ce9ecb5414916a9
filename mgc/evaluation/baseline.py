"""The command ``mgc baseline``: MFCC statistics and a support vector machine, on the clips of a feature set.

The baseline of Defferrard et al., «FMA: A Dataset for Music Analysis» (ISMIR 2017), by ``features.py`` and
``usage.ipynb`` of their repository: 20 MFCCs at the file's own sample rate, 7 statistics of each over time,
standardised, an RBF kernel, nothing tuned. There it reaches 46.4 % on FMA-small, with statistics of the whole tracks
(mdeff/fma, issue 8); here they are of the part of a clip that the feature set's recipe takes, as for a network. A leak
(``mgc.dataset.protocols.leak``) does not stop it: the result and the run are marked LEAKY.

Shape suffixes: N clips, D = 140 statistics, K coefficients or frequencies, T frames, G genres.
"""

from __future__ import annotations

import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mgc.audio import decode as audio
from mgc.audio.quiet import quiet
from mgc.collection.splits import SPLITS
from mgc.collection.tracks import read_tracks
from mgc.core.errors import ClipError, InputError
from mgc.core.progress import Progress, say
from mgc.core.results import Result
from mgc.core.storage import Folder
from mgc.dataset import clips as clips_of
from mgc.dataset.protocols import check_genres, dealt, gap, leak
from mgc.features.feature_set import FeatureSet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

N_FFT = 2048
HOP_LENGTH = 512
N_MFCC = 20
SVM = {"kernel": "rbf", "C": 1.0, "gamma": "scale"}
"""scikit-learn's defaults; of standardised columns ``scale`` is FMA's ``auto``, 1/D."""


@dataclass(frozen=True)
class BaselineScores(Result):
    """How good the baseline is on a feature set."""

    run_id: str
    """MLflow run."""
    split: str
    """The protocol: ``official`` or ``random``."""
    leak: str
    """Why the figures flatter; empty where nothing is known against them."""
    test_evaluations: int
    """How often this test set has been evaluated on, this time included."""
    training_accuracy: float
    validation_accuracy: float
    n: int
    """Test clips."""
    accuracy: float
    """On the test clips."""
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
        lines = [
            f"MFCC + SVM, {self.split} split, test: accuracy {self.accuracy:.3f} [{low:.3f}, {high:.3f}] "
            f"of {self.n} clips, macro-F1 {self.macro_f1:.3f}",
            f"accuracy in training {self.training_accuracy:.3f}, in validation {self.validation_accuracy:.3f}",
            *(f"{genre:<{wide}}  F1 {row['f1']:.3f} of {row['support']}" for genre, row in self.per_genre.items()),
        ]
        return "\n".join([*lines, *([self.leak] if self.leak else [])])


def baseline(
    root: str | Path,
    features: str | Path | FeatureSet,
    *,
    split: Literal["official", "random"] = "official",
    workers: int | None = None,
) -> BaselineScores:
    """Fit the SVM on the training clips of a feature set, and evaluate it once on its test clips.

    The statistics are computed anew each time: 1000 clips of 30 s take one CPU about 90 s.

    Parameters
    ----------
    root
        The collection that the feature set was made from, as ``mgc.collection.tracks.read_tracks`` takes it.
    features
        Path or URI of a finished feature set.
    split
        The feature set's own split, or the literature's random one, which is leaky.
    workers
        Processes; all CPUs by default.

    Returns
    -------
    BaselineScores
        The figures; ``print`` shows them. They are kept with an MLflow run.

    Raises
    ------
    InputError
        A path or value cannot be used, or a clip of the set is missing from ``root`` or cannot be decoded.
    RunError
        The MLflow store does not answer.
    """
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    # here, because the processes that compute the statistics import this module
    from mgc.evaluation.predictions import Predictions, Source
    from mgc.evaluation.test_evaluations import counted_test_evaluation
    from mgc.tracking import runs as tracking
    from mgc.tracking import store

    start = time.monotonic()
    if workers is not None and workers < 1:
        raise InputError(f"`workers={workers}`: must be at least 1")
    feature_set = FeatureSet.open(features)
    manifest = feature_set.manifest
    clips = clips_of.load(feature_set, *SPLITS, lazily=True)
    splits_N = dealt(clips, split)
    training_N, validation_N, test_N = (splits_N == name for name in SPLITS)
    check_genres(feature_set, clips.labels_N[training_N])
    for name in SPLITS:
        if missing := gap(manifest.genres, clips.labels_N[splits_N == name], name, "its figures do not tell of them"):
            say(f"baseline: {missing}")
    audio_root = read_tracks(root, allow_outside=True).audio_root
    uri = store.open_store(feature_set.folder)
    statistics_ND = _statistics(audio_root, clips.paths, manifest.spec.seconds, workers)

    found = leak(manifest, split)
    config = {"root": str(Folder.at(root)), "split": split, "n_mfcc": N_MFCC, "svm": SVM}
    tags = {tracking.LEAKY_TAG: "true"} if found else {}
    run = tracking.Run.start(uri, tracking.EXPERIMENT, name="MFCC + SVM", step="baseline", config=config, tags=tags)
    with run.closing():
        run.features(feature_set.folder, manifest.fingerprint, "training")
        machine = make_pipeline(StandardScaler(), SVC(**SVM))
        machine.fit(statistics_ND[training_N], clips.labels_N[training_N])
        training_accuracy = float(machine.score(statistics_ND[training_N], clips.labels_N[training_N]))
        validation_accuracy = float(machine.score(statistics_ND[validation_N], clips.labels_N[validation_N]))
        source = Source.of(feature_set, "test", split)
        with counted_test_evaluation(run, source) as (count, _):
            test = clips.take(np.flatnonzero(test_N))
            one_hot_NG = np.eye(len(manifest.genres), dtype=np.float32)[machine.predict(statistics_ND[test_N])]
            source = replace(source, test_evaluations=count)
            predictions = Predictions(source, test.track_ids_N, test.paths, test.labels_N, one_hot_NG)
            predictions.keep(run)
            scores = predictions.score()
        seconds = round(time.monotonic() - start, 2)
        accuracies = {"train_accuracy": training_accuracy, "val_accuracy": validation_accuracy}
        run.metrics(accuracies | {"gap": training_accuracy - validation_accuracy, "seconds": seconds})
        run.metrics({"test_accuracy": scores.accuracy, "test_macro_f1": scores.macro_f1, "test_clips": scores.n})
        run.metrics({"test_ci95_low": scores.ci95[0], "test_ci95_high": scores.ci95[1]})
    return BaselineScores(
        run.id,
        split,
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


def mfcc_statistics(samples: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
    """Compute mean, deviation, skewness, kurtosis, median, minimum and maximum of each MFCC over time.

    Parameters
    ----------
    samples : np.ndarray [shape=(n,), dtype=float32]
        Mono audio.
    sample_rate
        In Hz.

    Returns
    -------
    np.ndarray [shape=(D,)]
        Statistic by statistic, each of all coefficients.
    """
    import librosa
    from scipy import stats

    power_KT = np.abs(librosa.stft(samples, n_fft=N_FFT, hop_length=HOP_LENGTH)) ** 2
    mel_KT = librosa.feature.melspectrogram(sr=sample_rate, S=power_KT)
    mfcc_KT = librosa.feature.mfcc(S=librosa.power_to_db(mel_KT), n_mfcc=N_MFCC)
    functions = (np.mean, np.std, stats.skew, stats.kurtosis, np.median, np.min, np.max)
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        values_D = np.concatenate([function(mfcc_KT, axis=1) for function in functions])
    filled_D: NDArray[np.float32] = np.nan_to_num(values_D)  # silence has no skewness and no kurtosis
    return filled_D


def _statistics(audio_root: Folder, paths: Sequence[str], seconds: float, workers: int | None) -> NDArray[np.float32]:
    """The statistics of the first ``seconds`` of each clip [shape=(N, D)], computed in processes."""
    progress = Progress("baseline", len(paths), "clips")
    rows = []
    with ProcessPoolExecutor(workers, get_context("spawn"), _one_thread) as pool:
        for row in pool.map(partial(_clip_statistics, audio_root=audio_root, seconds=seconds), paths):
            rows.append(row)
            progress.advance()
    return np.stack(rows)


def _one_thread() -> None:
    """Keep BLAS from starting as many threads as there are CPUs in each of as many processes."""
    import librosa.feature  # noqa: F401 (only libraries that are loaded are limited)
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)


def _clip_statistics(path: str, audio_root: Folder, seconds: float) -> NDArray[np.float32]:
    try:
        with audio.open_clip(audio_root, path) as file, quiet():
            sample_rate = audio.native_rate(file)
            samples = audio.load(file, sample_rate=sample_rate, seconds=seconds).samples
    except ClipError as error:
        raise InputError(
            f"`root={audio_root}`: {path}: {error}; give the collection that the feature set was made from"
        ) from None
    return mfcc_statistics(samples, sample_rate)
