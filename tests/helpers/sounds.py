"""Synthetic sound for comparisons with librosa: what a checkout without real music can prove."""

from __future__ import annotations

import librosa
import numpy as np
import soundfile


def chirp(rate, seconds):
    """A sine that rises from 20 Hz to nearly half the sample rate, at half of full scale [shape=(n,)]."""
    samples = 0.5 * librosa.chirp(fmin=20, fmax=0.49 * rate, sr=rate, duration=seconds)
    return samples[: round(rate * seconds)].astype(np.float32)


def noise(rate, seconds, level=0.1):
    """White noise, the same each time [shape=(n,)]."""
    return np.random.default_rng(0).normal(0, level, round(rate * seconds)).astype(np.float32)


def click(rate, seconds):
    """Digital silence but for one sample [shape=(n,)]."""
    samples = np.zeros(round(rate * seconds), np.float32)
    samples[len(samples) // 3] = 1
    return samples


def bursts(rate, seconds):
    """Noise in one half of each second, digital silence in the other [shape=(n,)]."""
    samples = noise(rate, seconds)
    samples[np.arange(len(samples)) % rate >= rate // 2] = 0
    return samples


SOUNDS = {
    "chirp": chirp,
    "noise": noise,
    "chirp in noise": lambda rate, seconds: chirp(rate, seconds) + noise(rate, seconds, 0.01),
    "click": click,
    "bursts": bursts,
    "beyond full scale": lambda rate, seconds: 30 * noise(rate, seconds),
    "silence": lambda rate, seconds: np.zeros(round(rate * seconds), np.float32),
}


def stereo(rate, seconds):
    """A chirp on the left, noise on the right [shape=(n, 2)]."""
    return np.stack([chirp(rate, seconds), noise(rate, seconds)], axis=1)


def write(path, samples, rate):
    """An audio file of a format that its suffix names; WAV as float32, which holds the samples as they are."""
    soundfile.write(path, samples, rate, **({"subtype": "FLOAT"} if path.suffix == ".wav" else {}))
    return path
