"""From mono samples to a feature: a log-Mel spectrogram as float16, z-scored or at its own level.

The spectrogram is that of librosa's ``melspectrogram`` and ``power_to_db`` within 0.002 dB, in less time: chunks of
frames that stay in the cache, float32 FFTs, and a mel matrix of which only the band around the diagonal is multiplied.
The tests compare it with librosa on synthetic sound and on real music.

Shape suffixes: F mel bands, T frames, N samples.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

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
    """Samples of an FFT, and of a Hann window; Kaldi's is shorter, see ``frame_length``."""
    hop_length: int = 512
    """Samples from one frame to the next."""
    n_mels: int = 128
    """Mel bands (Slaney's scale and normalisation) from 0 Hz, Kaldi's from 20 Hz, to half the sample rate."""
    top_db: float = 80.0
    """dB kept below the loudest value; lower values are raised to that floor."""
    amin: float = 1e-10
    """Floor of the power, before the logarithm."""
    scaling: Literal["zscore", "log1p", "kaldi"] = "zscore"
    """``zscore``: decibels, z-scored over the clip, so that no clip is louder than another. ``log1p``: log10(1 + 10⁴ ×
    power), which keeps the level (Dieleman & Schrauwen, «End-to-end learning for music audio», ICASSP 2014);
    ``top_db`` and ``amin`` have no part in it. ``kaldi``: Kaldi's log filter bank at its level, less ``AUDIOSET_MEAN``,
    over twice ``AUDIOSET_STD``; ``top_db`` has no part in it."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON holds them.

        A ``scaling`` of ``zscore`` is left out: what was made before there was another keeps bytes and fingerprint.
        """
        tree = asdict(self)
        if self.scaling == "zscore":
            del tree["scaling"]
        return tree

    @property
    def n_samples(self) -> int:
        """Samples in a clip."""
        return round(self.sample_rate * self.seconds)

    @property
    def frame_length(self) -> int:
        """Samples in a Hann window: ``n_fft``, or Kaldi's 25 ms, which zeros fill up to ``n_fft``."""
        return self.sample_rate // 40 if self.scaling == "kaldi" else self.n_fft

    @property
    def padding(self) -> int:
        """Zeros around a clip, half of them before it, so that its frames are centred; Kaldi's are within the clip."""
        return 0 if self.scaling == "kaldi" else self.n_fft

    @property
    def shape(self) -> tuple[int, int]:
        """(mel bands, frames) of a feature: (128, 1288) by default."""
        return self.n_mels, 1 + (self.n_samples + self.padding - self.frame_length) // self.hop_length


RECIPES: dict[str, LogMelSpec] = {
    "logmel": LogMelSpec(),
    "musicnn": LogMelSpec(sample_rate=16_000, n_fft=512, hop_length=256, n_mels=96, scaling="log1p"),
    "ast": LogMelSpec(sample_rate=16_000, n_fft=512, hop_length=160, amin=2.0**-23, scaling="kaldi"),
}
"""Log-Mel spectrograms by name: those that mgc's own networks learn from, and what musicnn (Pons & Serra, «musicnn:
pre-trained convolutional neural networks for music audio tagging», ISMIR 2019 late-breaking) and AST (Gong, Chung &
Glass, «AST: Audio Spectrogram Transformer», Interspeech 2021) were trained on."""

AUDIOSET_MEAN, AUDIOSET_STD = -4.2677393, 4.5689974
"""Of Kaldi's log filter bank over AudioSet, in natural logarithms of power, as AST's authors counted them."""
DECIBELS = 10 / math.log(10)
"""Of a natural logarithm of power that is 1."""
PREEMPHASIS = 0.97
"""Share of the sample before that Kaldi takes from each."""


class Feature(NamedTuple):
    """What the network sees of a clip, and what it takes to get the dB back: ``z * std_db + mean_db``."""

    z_FT: NDArray[np.float16]
    """The scaled log-Mel spectrogram [shape=spec.shape, dtype="<f2"]."""
    mean_db: float
    """Mean of the spectrogram in dB; of ``log1p`` always -40, the level of its floor, of ``kaldi`` AudioSet's mean."""
    std_db: float
    """Standard deviation of the spectrogram in dB, 0 for digital silence; of ``log1p`` always 10, of ``kaldi`` twice
    AudioSet's."""


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
        Scaled spectrogram [shape=spec.shape, dtype="<f2"], mean and standard deviation in dB.

    Examples
    --------
    >>> z_FT, mean_db, std_db = feature(np.zeros(22_050, np.float32), LogMelSpec())
    >>> z_FT.shape, mean_db, std_db
    ((128, 1288), -100.0, 0.0)
    """
    if spec.scaling == "log1p":
        # 10 log10(power + 10⁻⁴) dB, plus 40, over 10; float16 first, as musicnn was trained
        power_FT = np.minimum(mel_power(samples_N, spec).T, np.finfo(np.float16).max).astype(np.float16)
        return Feature(np.log10(1 + 1e4 * power_FT.astype(np.float32)).astype("<f2"), -40.0, 10.0)
    if spec.scaling == "kaldi":
        log_FT = np.log(np.maximum(mel_power(samples_N, spec), spec.amin)).T
        mean, scale = AUDIOSET_MEAN, 2 * AUDIOSET_STD
        return Feature(((log_FT - mean) / scale).astype("<f2", order="C"), mean * DECIBELS, scale * DECIBELS)
    z_FT, mean_db, std_db = standardize(log_mel(samples_N, spec))
    return Feature(z_FT.astype("<f2"), mean_db, std_db)


def log_mel(samples_N: NDArray[np.float32], spec: LogMelSpec) -> NDArray[np.float32]:
    """Compute the log-Mel spectrogram of a clip in dB.

    Parameters
    ----------
    samples_N, spec
        As ``mel_power`` takes them.

    Returns
    -------
    np.ndarray [shape=spec.shape, dtype=float32]
        dB relative to power 1.0, at most ``spec.top_db`` below its maximum.

    See Also
    --------
    librosa.feature.melspectrogram, librosa.power_to_db : the reference implementation.

    Examples
    --------
    >>> spec = LogMelSpec()
    >>> log_mel(np.zeros(spec.n_samples, np.float32), spec).shape
    (128, 1288)
    """
    mel_TF = mel_power(samples_N, spec)
    np.maximum(mel_TF, spec.amin, out=mel_TF)
    db_TF = np.log10(mel_TF, out=mel_TF)
    db_TF *= 10.0
    np.maximum(db_TF, db_TF.max() - spec.top_db, out=db_TF)
    return np.ascontiguousarray(db_TF.T)


def mel_power(samples_N: NDArray[np.float32], spec: LogMelSpec) -> NDArray[np.float32]:
    """Compute the mel spectrogram of a clip, as power.

    Parameters
    ----------
    samples_N : np.ndarray [shape=(n,)]
        Mono signal at ``spec.sample_rate``, of any length: it is zero-padded or cut to ``spec.n_samples``.
    spec
        The parameters.

    Returns
    -------
    np.ndarray [shape=(frames, mel bands), dtype=float32]
        Power. Frames are centred: the signal is padded with ``n_fft / 2`` zeros on both sides. Kaldi's begin with the
        first sample and end before the last one.
    """
    n_mels, n_frames = spec.shape
    padded = np.zeros(spec.n_samples + spec.padding, np.float32)
    kept = min(len(samples_N), spec.n_samples)
    padded[spec.padding // 2 : spec.padding // 2 + kept] = samples_N[:kept]
    frames = np.lib.stride_tricks.sliding_window_view(padded, spec.frame_length)[:: spec.hop_length]
    prepared = _emphasized if spec.scaling == "kaldi" else np.asarray

    window, bands = _window_and_bands(spec)
    mel_TF = np.empty((n_frames, n_mels), np.float32)
    for start in range(0, n_frames, CHUNK_FRAMES):
        stop = min(start + CHUNK_FRAMES, n_frames)
        spectrum = scipy.fft.rfft(prepared(frames[start:stop]) * window, spec.n_fft, axis=1, overwrite_x=True)
        power = np.square(spectrum.real)
        power += np.square(spectrum.imag)
        for mels, bins, weights in bands:
            np.matmul(power[:, bins], weights, out=mel_TF[start:stop, mels])
    return mel_TF


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
    """Triangular filters: on Slaney's mel scale and each of unit area, or Kaldi's, which are 1 at their peak.

    Parameters
    ----------
    spec
        Sample rate, FFT size, number of bands, and whose filters.

    Returns
    -------
    np.ndarray [shape=(n_mels, 1 + n_fft / 2), dtype=float32]
        Weight of each FFT bin in each band.

    Notes
    -----
    The formula is that of M. Slaney's Auditory Toolbox (1998), as in ``librosa.filters.mel``, which is not called here
    because importing it costs a worker two seconds and 85 MB. Kaldi's triangles are straight on its mel scale, that of
    HTK, and not in Hz; the lowest may lie between two bins and be empty (``mel-computations.cc`` of Kaldi).
    """
    top = spec.sample_rate / 2
    bins = np.linspace(0.0, top, 1 + spec.n_fft // 2)
    if spec.scaling == "kaldi":
        bins = _kaldi_mel(bins)
        edges = np.linspace(_kaldi_mel(20.0), bins[-1], spec.n_mels + 2)
    else:
        edges = _mel_to_hz(np.linspace(0.0, _hz_to_mel(top), spec.n_mels + 2))
    width = np.diff(edges)
    ramps = edges[:, None] - bins[None, :]
    rising = -ramps[:-2] / width[:-1, None]
    falling = ramps[2:] / width[1:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)
    heights = np.ones(spec.n_mels) if spec.scaling == "kaldi" else 2.0 / (edges[2:] - edges[:-2])
    return np.asarray(triangles * heights[:, None], np.float32)


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


def _kaldi_mel(hz: Any) -> Any:
    """Kaldi's mel scale."""
    return 1127.0 * np.log1p(hz / 700.0)


def _emphasized(frames_TN: NDArray[np.float32]) -> NDArray[np.float32]:
    """Frames without their mean, and with louder treble: from each sample a share of the one before is taken.

    A frame's first sample stays: the window makes it zero.
    """
    centred_TN: NDArray[np.float32] = frames_TN - frames_TN.mean(axis=1, keepdims=True)
    centred_TN[:, 1:] -= PREEMPHASIS * centred_TN[:, :-1]
    return centred_TN


@lru_cache(maxsize=4)
def _window_and_bands(spec: LogMelSpec) -> tuple[NDArray[np.float32], list[tuple[slice, slice, Any]]]:
    """Hann window, and for each group of mel bands its slice, its FFT bins and its weights [shape=(bins, mels)]."""
    period = spec.frame_length - (spec.scaling == "kaldi")  # Kaldi's window is symmetric
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(spec.frame_length) / period)).astype(np.float32)
    filters = mel_filters(spec)
    bands = []
    for start in range(0, spec.n_mels, BAND_MELS):
        mels = slice(start, min(start + BAND_MELS, spec.n_mels))
        used = np.flatnonzero(filters[mels].any(axis=0))
        bins = slice(int(used[0]), int(used[-1]) + 1)
        bands.append((mels, bins, np.ascontiguousarray(filters[mels, bins].T)))
    return window, bands
