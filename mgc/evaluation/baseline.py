"""The field's floor: statistics of MFCCs and a support vector machine, on the clips and splits of a feature set.

The baseline of Defferrard et al., «FMA: A Dataset for Music Analysis» (ISMIR 2017), by ``features.py`` and
``usage.ipynb`` of their repository: 20 MFCCs at the file's own sample rate, 7 statistics of each over time,
standardised, an RBF kernel, nothing tuned. There it reaches 46.4 % on FMA-small, with statistics of the whole tracks
(mdeff/fma, issue 8); here they are of the part of a clip that the feature set's recipe takes: what a network hears.

Shape suffixes: N clips, D = 140 statistics, K coefficients or frequencies, T frames, G genres.
"""

from __future__ import annotations

import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mgc.audio import decode as audio
from mgc.collection.splits import SPLITS
from mgc.collection.tracks import read_tracks
from mgc.core.errors import ClipError, InputError
from mgc.core.progress import Progress
from mgc.core.storage import Folder
from mgc.dataset import clips as clips_of
from mgc.dataset.protocols import LEAKY, dealt, leak
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
FIGURES = ("n", "accuracy", "ci95", "macro_f1", "per_genre", "confusion")


def floor(
    root: str | Path,
    features: str | Path,
    *,
    split: Literal["official", "random"] = "official",
    workers: int | None = None,
) -> dict[str, Any]:
    """Fit the machine on the training clips of a feature set, and score it once on its test clips.

    The statistics are computed anew each time: 1000 clips of 30 s take one CPU about 90 s.

    Parameters
    ----------
    root
        The collection that the feature set was made from, as ``mgc.collection.tracks.read_tracks`` takes it.
    features
        A finished feature set.
    split
        The feature set's own split, or the literature's random one, which is leaky.
    workers
        Processes; all CPUs by default.

    Returns
    -------
    dict
        ``run_id`` of the MLflow run, ``split``, ``leaky`` (artists are in more than one split), ``looks`` (at this
        test split so far), ``training_accuracy``, ``validation_accuracy``, of the test clips ``n``, ``accuracy``,
        ``ci95`` (Wilson), ``macro_f1``, ``per_genre``, ``confusion`` (row = true, column = predicted, in the order of
        ``per_genre``), and ``seconds``.

    Raises
    ------
    InputError
        A path or value cannot be used, or a clip of the set is missing from ``root`` or cannot be decoded.
    """
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    from mgc.evaluation.predictions import Predictions, Source, looking
    from mgc.tracking import runs as tracking

    # here, because the processes that compute the statistics import this module
    from mgc.tracking import store

    start = time.monotonic()
    if workers is not None and workers < 1:
        raise InputError(f"--workers {workers}: must be at least 1")
    feature_set = FeatureSet.open(features)
    manifest = feature_set.manifest
    clips = clips_of.load(feature_set, *SPLITS, lazily=True)
    audio_root = read_tracks(root).audio_root
    uri = store.open_store(feature_set.folder)
    statistics_ND = _statistics(audio_root, clips.paths, manifest.spec.seconds, workers)

    leaky = bool(leak(manifest, split))
    config = {"root": str(Folder.at(root)), "split": split, "n_mfcc": N_MFCC, "svm": SVM}
    tags = {tracking.LEAKY_TAG: "true"} if leaky else {}
    run = tracking.Run.start(uri, tracking.EXPERIMENT, name="MFCC + SVM", step="baseline", config=config, tags=tags)
    with run.closing():
        run.features(feature_set.folder, manifest.fingerprint, "training")
        splits_N = dealt(clips, split)
        training_N, validation_N, test_N = (splits_N == name for name in SPLITS)
        machine = make_pipeline(StandardScaler(), SVC(**SVM))
        machine.fit(statistics_ND[training_N], clips.labels_N[training_N])
        training_accuracy = float(machine.score(statistics_ND[training_N], clips.labels_N[training_N]))
        validation_accuracy = float(machine.score(statistics_ND[validation_N], clips.labels_N[validation_N]))
        source = Source.of(feature_set, "test", split)
        with looking(run, source) as (looks, _):
            test = clips.take(np.flatnonzero(test_N))
            sure_NG = np.eye(len(manifest.genres), dtype=np.float32)[machine.predict(statistics_ND[test_N])]
            said = Predictions(replace(source, looks=looks), test.track_ids_N, test.paths, test.labels_N, sure_NG)
            said.keep(run)
            scores = said.score()
        seconds = round(time.monotonic() - start, 2)
        run.metrics({"training_accuracy": training_accuracy, "validation_accuracy": validation_accuracy})
        run.metrics({"test_accuracy": scores.accuracy, "test_macro_f1": scores.macro_f1, "test_clips": scores.n})
        run.metrics({"test_ci95_low": scores.ci95[0], "test_ci95_high": scores.ci95[1], "seconds": seconds})
    return {
        "run_id": run.id,
        "split": split,
        "leaky": leaky,
        "looks": looks,
        "training_accuracy": training_accuracy,
        "validation_accuracy": validation_accuracy,
        **{name: getattr(scores, name) for name in FIGURES},
        "seconds": seconds,
    }


def summary(result: dict[str, Any]) -> str:
    """Say how good the machine is, for a terminal."""
    low, high = result["ci95"]
    wide = max(map(len, result["per_genre"]))
    lines = [
        f"MFCC + SVM, {result['split']} split, test: accuracy {result['accuracy']:.3f} [{low:.3f}, {high:.3f}] "
        f"of {result['n']} clips, macro-F1 {result['macro_f1']:.3f}",
        f"accuracy in training {result['training_accuracy']:.3f}, in validation {result['validation_accuracy']:.3f}",
        *(f"{genre:<{wide}}  F1 {row['f1']:.3f} of {row['support']}" for genre, row in result["per_genre"].items()),
    ]
    if result["leaky"]:
        lines.append(LEAKY if result["split"] == "random" else "LEAKY: artists are in more than one split")
    return "\n".join(lines)


def mfcc_statistics(samples: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
    """Mean, deviation, skewness, kurtosis, median, minimum and maximum of each MFCC over time [shape=(D,)]."""
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
        with audio.open_clip(audio_root, path) as file:
            sample_rate = audio.native_rate(file)
            samples = audio.load(file, sample_rate=sample_rate, seconds=seconds).samples
    except ClipError as error:
        raise InputError(
            f"--root {audio_root}: {path}: {error}; give the collection that the feature set was made from"
        ) from None
    return mfcc_statistics(samples, sample_rate)
