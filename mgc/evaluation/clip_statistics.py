"""Statistics of clips for classifiers without a network: of MFCCs, computed from the audio, and of log-Mel bands.

Shape suffixes: N clips, D statistics, K coefficients or frequencies, F mel bands, T frames.
"""

from __future__ import annotations

import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING

import numpy as np

from mgc.audio import decode as audio
from mgc.audio.quiet import quiet
from mgc.core.errors import ClipError, InputError
from mgc.core.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mgc.core.storage import Folder
    from mgc.features.feature_set import FeatureSet

N_FFT = 2048
HOP_LENGTH = 512
N_MFCC = 20


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
        Statistic by statistic, each of all coefficients; D = 140.
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


def mfccs_of(root: Folder, paths: Sequence[str], seconds: float, workers: int | None) -> NDArray[np.float32]:
    """Compute the MFCC statistics of the beginning of clips, in processes.

    Parameters
    ----------
    root
        The folder that the paths are relative to.
    paths
        Of the clips.
    seconds
        Of each clip that are heard, from its beginning.
    workers
        Processes; as many as there are CPUs if None.

    Returns
    -------
    np.ndarray [shape=(N, D)]
        A row a clip.

    Raises
    ------
    InputError
        A clip is missing or cannot be decoded.
    """
    progress = Progress("baseline", len(paths), "clips")
    rows = []
    with ProcessPoolExecutor(workers, get_context("spawn"), _one_thread) as pool:
        for row in pool.map(partial(_of_clip, root=root, seconds=seconds), paths):
            rows.append(row)
            progress.advance()
    return np.stack(rows)


def logmels_of(feature_set: FeatureSet, splits: Sequence[str]) -> NDArray[np.float32]:
    """Compute mean and deviation over time of each log-Mel band in decibels, from a feature set.

    Parameters
    ----------
    feature_set
        The feature set.
    splits
        Those to take, in this order.

    Returns
    -------
    np.ndarray [shape=(N, D)]
        A row a clip, in the order of ``mgc.dataset.clips.load``: the means of all bands, then the deviations;
        D is twice the number of bands.

    Raises
    ------
    InputError
        A shard is gone or not what the manifest says.
    """
    rows = []
    for entry in feature_set.manifest.shards_of(*splits):
        table = feature_set.table(entry, ["logmel", "mean_db", "std_db"])
        scale, shift = (table[name].to_numpy()[:, None, None] for name in ("std_db", "mean_db"))
        db_NFT = feature_set.spectrograms(entry, table).astype(np.float32) * scale + shift
        rows.append(np.concatenate([db_NFT.mean(2), db_NFT.std(2)], axis=1))
    return np.concatenate(rows)


def _one_thread() -> None:
    """Keep BLAS from starting as many threads as there are CPUs in each of as many processes."""
    import librosa.feature  # noqa: F401 (only libraries that are loaded are limited)
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)


def _of_clip(path: str, root: Folder, seconds: float) -> NDArray[np.float32]:
    try:
        with audio.open_clip(root, path) as file, quiet():
            sample_rate = audio.native_rate(file)
            samples = audio.load(file, sample_rate=sample_rate, seconds=seconds).samples
    except ClipError as error:
        raise InputError(
            f"`root={root}`: {path}: {error}; give the collection that the feature set was made from"
        ) from None
    return mfcc_statistics(samples, sample_rate)
