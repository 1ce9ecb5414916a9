"""The log-Mel spectrogram is librosa's, to 0.002 dB and 1e-4 z, on real music."""

from __future__ import annotations

import warnings

import librosa
import numpy as np
import pytest

from mgc.audio import decode as audio
from mgc.audio.logmel import LogMelSpec, log_mel, mel_filters, standardize

SPEC = LogMelSpec()
DB_TOLERANCE, Z_TOLERANCE = 2e-3, 1e-4


def reference(path, spec=SPEC):
    """The seed's way, by librosa: dB [shape=spec.shape]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples, _ = librosa.load(path, sr=spec.sample_rate, duration=spec.seconds)
    return librosa_db(librosa.util.fix_length(samples, size=spec.n_samples), spec)


def librosa_db(samples, spec):
    power = librosa.feature.melspectrogram(
        y=samples, sr=spec.sample_rate, n_fft=spec.n_fft, hop_length=spec.hop_length, n_mels=spec.n_mels
    )
    return librosa.power_to_db(power, top_db=spec.top_db, amin=spec.amin)


def ours(path, spec=SPEC):
    with open(path, "rb") as file:
        return log_mel(audio.load(file, sample_rate=spec.sample_rate, seconds=spec.seconds).samples, spec)


def assert_same(path, spec=SPEC):
    found, expected = ours(path, spec), reference(path, spec)
    assert found.shape == expected.shape == spec.shape
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < DB_TOLERANCE
    z = (expected - expected.mean(dtype=np.float64)) / expected.std(dtype=np.float64)
    assert np.abs(standardize(found)[0] - z).max() < Z_TOLERANCE


@pytest.mark.parametrize("index", range(0, 120, 12))
def test_real_clips_are_within_tolerance_of_librosa(mini, index):
    assert_same(sorted((mini / "fma_small").glob("*/*.mp3"))[index])


def test_the_real_fma_clip_is_within_tolerance_of_librosa(fma_clip):
    assert_same(fma_clip)


@pytest.mark.parametrize("name", ["ok_mono_48k.mp3", "odd_wav_renamed.mp3", "short_1s.mp3", "short_truncated_half.mp3"])
def test_odd_but_readable_files_are_within_tolerance_of_librosa(odd_mp3, name):
    assert_same(odd_mp3 / name)


@pytest.mark.parametrize(
    "spec",
    [
        LogMelSpec(sample_rate=16_000, seconds=10.0, n_fft=1024, hop_length=160, n_mels=64),
        LogMelSpec(sample_rate=44_100, seconds=3.0, n_fft=4096, hop_length=1024, n_mels=100),
        LogMelSpec(seconds=3.0, top_db=60.0, amin=1e-5),
    ],
    ids=["16 kHz", "44.1 kHz", "60 dB"],
)
def test_other_recipes_are_within_tolerance_of_librosa(fma_clip, spec):
    assert_same(fma_clip, spec)


@pytest.mark.parametrize("spec", [SPEC, LogMelSpec(sample_rate=16_000, n_fft=1024, n_mels=40)])
def test_the_filterbank_is_that_of_librosa(spec):
    expected = librosa.filters.mel(sr=spec.sample_rate, n_fft=spec.n_fft, n_mels=spec.n_mels)
    np.testing.assert_allclose(mel_filters(spec), expected, rtol=1e-6, atol=1e-9)


def test_a_clip_of_29_9_seconds_gives_128_by_1288():
    assert SPEC.n_samples == 659_295
    assert SPEC.shape == (128, 1288)


def test_silence_gives_zeros():
    z, mean, std = standardize(log_mel(np.zeros(SPEC.n_samples, np.float32), SPEC))
    assert z.shape == SPEC.shape
    assert not z.any()
    assert (mean, std) == (pytest.approx(-100.0), 0.0)


def test_a_silent_mp3_gives_the_db_of_librosa_and_zeros(odd_mp3):
    silent = ours(odd_mp3 / "ok_digital_silence.mp3")
    np.testing.assert_array_equal(silent, reference(odd_mp3 / "ok_digital_silence.mp3"))
    assert not standardize(silent)[0].any()


def noise(n):
    return np.random.default_rng(0).normal(0, 0.1, n).astype(np.float32)


@pytest.mark.parametrize("n", [0, 1, 1000, SPEC.n_samples - 1])
def test_a_short_clip_is_as_one_followed_by_zeros(n):
    whole = np.zeros(SPEC.n_samples, np.float32)
    whole[:n] = noise(n)
    np.testing.assert_array_equal(log_mel(noise(n), SPEC), log_mel(whole, SPEC))


def test_a_long_clip_is_as_its_beginning():
    long = noise(SPEC.n_samples + 50_000)
    np.testing.assert_array_equal(log_mel(long, SPEC), log_mel(long[: SPEC.n_samples], SPEC))


def test_nothing_is_further_below_the_loudest_value_than_top_db():
    samples = noise(SPEC.n_samples)
    samples[SPEC.n_samples // 2 :] = 0
    db = log_mel(samples, SPEC)
    assert db.min() == pytest.approx(db.max() - SPEC.top_db, abs=1e-4)


def test_the_given_samples_are_left_as_they_are():
    samples = noise(5000)
    log_mel(samples, SPEC)
    np.testing.assert_array_equal(samples, noise(5000))


def test_a_standardized_spectrogram_has_mean_0_and_deviation_1_and_gives_the_db_back():
    db = log_mel(noise(SPEC.n_samples), SPEC)
    z, mean, std = standardize(db)
    assert z.dtype == np.float32
    assert z.mean(dtype=np.float64) == pytest.approx(0, abs=1e-5)
    assert z.std(dtype=np.float64) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(z * std + mean, db, atol=1e-3)
