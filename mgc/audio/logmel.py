"""From mono samples to a feature: a z-scored log-Mel spectrogram as float16.

The spectrogram is that of librosa's ``melspectrogram`` and ``power_to_db`` within 0.002 dB, in less time: chunks of
frames that stay in the cache, float32 FFTs, and a mel matrix of which only the band around the diagonal is multiplied.
The tests compare it with librosa on synthetic sound and on real music.

Shape suffixes: F mel bands, T frames, N samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy.fft

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHUNK_FRAMES = 32
"""Frames transformed at once: 32 × 2048 float32 (256 kB) stay in the second-level cache; the whole clip does not."""
BAND_MELS = 16
"""Mel bands multiplied at once, with only those FFT bins that their triangles cover."""


@dataclass(frozen=True)
class LogMelSpec:
    """The parameters of a feature; all of them are part of a feature set's fingerprint."""

    sample_rate: int = 22_050
    """Hz of the mono signal."""
    seconds: float = 29.9
    """Length of the signal; shorter clips are zero-padded, longer ones cut."""
    n_fft: int = 2048
    """Samples in a Hann window."""
    hop_length: int = 512
    """Samples from one frame to the next."""
    n_mels: int = 128
    """Mel bands (Slaney's scale and normalisation) from 0 Hz to half the sample rate."""
    top_db: float = 80.0
    """dB kept below the loudest value; lower values are raised to that floor."""
    amin: float = 1e-10
    """Floor of the power, before the logarithm."""

    @property
    def n_samples(self) -> int:
        """Samples in a clip."""
        return round(self.sample_rate * self.seconds)

    @property
    def shape(self) -> tuple[int, int]:
        """(mel bands, frames) of a feature: (128, 1288) by default."""
        return self.n_mels, 1 + self.n_samples // self.hop_length


class Feature(NamedTuple):
    """What the network sees of a clip, and what it takes to get the dB back: ``z * std_db + mean_db``."""

    z_FT: NDArray[np.float16]
    """Z-scores of the log-Mel spectrogram [shape=spec.shape, dtype="<f2"]."""
    mean_db: float
    """Mean of the spectrogram in dB."""
    std_db: float
    """Standard deviation of the spectrogram in dB; 0 for digital silence."""


def feature(samples_N: NDArray[np.float32], spec: LogMelSpec) -> Feature:
    """Compute the feature of a clip, as it is stored in a shard and given to a network.

    Parameters
    ----------
    samples_N : np.ndarray [shape=(n,)]
        Mono signal at ``spec.sample_rate``, of any length: it is zero-padded or cut to ``spec.n_samples``.
    spec
        The parameters.

    Returns
    -------
    Feature
        Z-scores [shape=spec.shape, dtype="<f2"], mean and standard deviation in dB.

    Examples
    --------
    >>> z_FT, mean_db, std_db = feature(np.zeros(22_050, np.float32), LogMelSpec())
    >>> z_FT.shape, mean_db, std_db
    ((128, 1288), -100.0, 0.0)
    """
    z_FT, mean_db, std_db = standardize(log_mel(samples_N, spec))
    return Feature(z_FT.astype("<f2"), mean_db, std_db)


def log_mel(samples_N: NDArray[np.float32], spec: LogMelSpec) -> NDArray[np.float32]:
    """Compute the log-Mel spectrogram of a clip in dB.

    Parameters
    ----------
    samples_N : np.ndarray [shape=(n,)]
        Mono signal at ``spec.sample_rate``, of any length: it is zero-padded or cut to ``spec.n_samples``.
    spec
        The parameters.

    Returns
    -------
    np.ndarray [shape=spec.shape, dtype=float32]
        dB relative to power 1.0, at most ``spec.top_db`` below its maximum. Frames are centred: the signal is padded
        with ``n_fft / 2`` zeros on both sides.

    See Also
    --------
    librosa.feature.melspectrogram, librosa.power_to_db : the reference implementation.

    Examples
    --------
    >>> spec = LogMelSpec()
    >>> log_mel(np.zeros(spec.n_samples, np.float32), spec).shape
    (128, 1288)
    """
    n_mels, n_frames = spec.shape
    padded = np.zeros(spec.n_samples + spec.n_fft, np.float32)
    kept = min(len(samples_N), spec.n_samples)
    padded[spec.n_fft // 2 : spec.n_fft // 2 + kept] = samples_N[:kept]
    frames = np.lib.stride_tricks.sliding_window_view(padded, spec.n_fft)[:: spec.hop_length]

    window, bands = _window_and_bands(spec)
    mel_TF = np.empty((n_frames, n_mels), np.float32)
    for start in range(0, n_frames, CHUNK_FRAMES):
        stop = min(start + CHUNK_FRAMES, n_frames)
        spectrum = scipy.fft.rfft(frames[start:stop] * window, axis=1, overwrite_x=True)
        power = np.square(spectrum.real)
        power += np.square(spectrum.imag)
        for mels, bins, weights in bands:
            np.matmul(power[:, bins], weights, out=mel_TF[start:stop, mels])

    np.maximum(mel_TF, spec.amin, out=mel_TF)
    db_TF = np.log10(mel_TF, out=mel_TF)
    db_TF *= 10.0
    np.maximum(db_TF, db_TF.max() - spec.top_db, out=db_TF)
    return np.ascontiguousarray(db_TF.T)


def standardize(db_FT: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, float]:
    """Z-score a spectrogram over all its values.

    Parameters
    ----------
    db_FT : np.ndarray [shape=(f, t), dtype=float32]
        A spectrogram in dB.

    Returns
    -------
    z_FT : np.ndarray [shape=(f, t), dtype=float32]
        The z-scores; zeros where the spectrogram is constant, as that of digital silence is.
    mean, std : float
        Mean and standard deviation in dB.
    """
    mean = float(db_FT.mean(dtype=np.float64))
    std = float(db_FT.std(dtype=np.float64))
    scale = 1.0 / std if std > 0 else 0.0
    return (db_FT - np.float32(mean)) * np.float32(scale), mean, std


def mel_filters(spec: LogMelSpec) -> NDArray[np.float32]:
    """Triangular filters on Slaney's mel scale, each of unit area.

    Parameters
    ----------
    spec
        Sample rate, FFT size and number of bands.

    Returns
    -------
    np.ndarray [shape=(n_mels, 1 + n_fft / 2), dtype=float32]
        Weight of each FFT bin in each band.

    Notes
    -----
    The formula is that of M. Slaney's Auditory Toolbox (1998), as in ``librosa.filters.mel``, which is not called here
    because importing it costs a worker two seconds and 85 MB.
    """
    top = spec.sample_rate / 2
    edges = _mel_to_hz(np.linspace(0.0, _hz_to_mel(top), spec.n_mels + 2))
    width = np.diff(edges)
    bins = np.linspace(0.0, top, 1 + spec.n_fft // 2)
    ramps = edges[:, None] - bins[None, :]
    rising = -ramps[:-2] / width[:-1, None]
    falling = ramps[2:] / width[1:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)
    return np.asarray(triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None], np.float32)


_HZ_PER_MEL = 200.0 / 3
_LOG_FROM_HZ = 1000.0
_LOG_STEP = np.log(6.4) / 27.0


def _hz_to_mel(hz: float) -> float:
    """Slaney's mel scale: linear below 1 kHz, logarithmic above."""
    if hz < _LOG_FROM_HZ:
        return hz / _HZ_PER_MEL
    return _LOG_FROM_HZ / _HZ_PER_MEL + float(np.log(hz / _LOG_FROM_HZ) / _LOG_STEP)


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    log_from_mel = _LOG_FROM_HZ / _HZ_PER_MEL
    logarithmic = _LOG_FROM_HZ * np.exp(_LOG_STEP * (mel - log_from_mel))
    return np.where(mel < log_from_mel, mel * _HZ_PER_MEL, logarithmic)


@lru_cache(maxsize=4)
def _window_and_bands(spec: LogMelSpec) -> tuple[NDArray[np.float32], list[tuple[slice, slice, Any]]]:
    """Hann window, and for each group of mel bands its slice, its FFT bins and its weights [shape=(bins, mels)]."""
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(spec.n_fft) / spec.n_fft)).astype(np.float32)
    filters = mel_filters(spec)
    bands = []
    for start in range(0, spec.n_mels, BAND_MELS):
        mels = slice(start, min(start + BAND_MELS, spec.n_mels))
        used = np.flatnonzero(filters[mels].any(axis=0))
        bins = slice(int(used[0]), int(used[-1]) + 1)
        bands.append((mels, bins, np.ascontiguousarray(filters[mels, bins].T)))
    return window, bands
