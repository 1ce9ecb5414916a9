"""The log-Mel spectrogram is librosa's, to 0.002 dB and 1e-4 z, on synthetic sound and on real music."""

from __future__ import annotations

import warnings
from dataclasses import replace

import librosa
import numpy as np
import pytest
from helpers.sounds import SOUNDS, chirp, noise, stereo, write

from mgc.audio import decode as audio
from mgc.audio.logmel import RECIPES, LogMelSpec, feature, log_mel, mel_filters, standardize

OTHER_SPECS = {
    "16 kHz": LogMelSpec(sample_rate=16_000, seconds=10.0, n_fft=1024, hop_length=160, n_mels=64),
    "44.1 kHz": LogMelSpec(sample_rate=44_100, seconds=3.0, n_fft=4096, hop_length=1024, n_mels=100),
    "60 dB": LogMelSpec(seconds=3.0, top_db=60.0, amin=1e-5),
}
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


def assert_close(found, expected, spec):
    """Spectrograms in dB agree, and so do their z-scores."""
    assert found.shape == expected.shape == spec.shape
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < DB_TOLERANCE
    std = expected.std(dtype=np.float64)
    z = (expected - expected.mean(dtype=np.float64)) / (std if std > 0 else 1.0)
    assert np.abs(standardize(found)[0] - z).max() < Z_TOLERANCE


def assert_same(path, spec=SPEC):
    assert_close(ours(path, spec), reference(path, spec), spec)


def test_musicnn_listens_to_librosas_mel_spectrogram_at_its_own_level():
    spec = RECIPES["musicnn"]
    samples = noise(spec.sample_rate, 4.0) * 0.3
    power = librosa.feature.melspectrogram(
        y=librosa.util.fix_length(samples, size=spec.n_samples), sr=16_000, n_fft=512, hop_length=256, n_mels=96
    )
    found = feature(samples, spec)
    assert found.z_FT.dtype == np.float16
    assert found.z_FT.shape == spec.shape == (96, 1869)
    assert np.abs(found.z_FT.astype(float) - np.log10(1 + 1e4 * power)).max() < 4e-3  # half of float16's steps at 4
    decibels = found.z_FT.astype(float) * found.std_db + found.mean_db
    assert np.abs(decibels - 10 * np.log10(power + 1e-4)).max() < 4e-2
    louder = feature(10 * samples, spec).z_FT[:, :200].astype(float) - found.z_FT[:, :200]
    assert np.median(louder) == pytest.approx(2, abs=0.05)  # 20 dB
    assert np.isfinite(feature(np.full(spec.n_samples, 1e4, np.float32), spec).z_FT).all()


def assert_kaldis(samples, spec):
    """The feature is what AST's own feature extractor makes of the samples."""
    extractor = pytest.importorskip("transformers").ASTFeatureExtractor(max_length=spec.shape[1])
    samples = librosa.util.fix_length(samples, size=spec.n_samples)
    (expected_TF,) = extractor(samples, sampling_rate=spec.sample_rate).input_values
    found = feature(samples, spec)
    assert (found.z_FT.dtype.str, found.z_FT.shape) == ("<f2", spec.shape)
    assert np.abs(found.z_FT.astype(float) - expected_TF.T).max() < 2e-3  # half of float16's steps at 1.5 is 5e-4
    log_FT = expected_TF.T * 2 * extractor.std + extractor.mean
    assert np.abs(found.z_FT.astype(float) * found.std_db + found.mean_db - 10 * log_FT / np.log(10)).max() < 0.08


@pytest.mark.filterwarnings("ignore:At least one mel filter")
@pytest.mark.parametrize("name", SOUNDS)
def test_ast_listens_to_kaldis_log_filter_bank(name):
    spec = replace(RECIPES["ast"], seconds=4.0)
    assert_kaldis(SOUNDS[name](spec.sample_rate, spec.seconds), spec)


@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_ast_hears_a_real_clip_as_by_transformers(fma_clip):
    spec = RECIPES["ast"]
    assert spec.shape == (128, 2988)
    with open(fma_clip, "rb") as file:
        assert_kaldis(audio.load(file, sample_rate=spec.sample_rate, seconds=spec.seconds).samples, spec)


# Synthetic sound


@pytest.mark.parametrize("name", SOUNDS)
def test_synthetic_samples_are_within_tolerance_of_librosa(name):
    samples = SOUNDS[name](SPEC.sample_rate, SPEC.seconds)
    assert_close(log_mel(samples, SPEC), librosa_db(samples, SPEC), SPEC)


@pytest.mark.parametrize("name", OTHER_SPECS)
def test_other_parameters_are_within_tolerance_of_librosa(name):
    spec = OTHER_SPECS[name]
    samples = chirp(spec.sample_rate, spec.seconds) + noise(spec.sample_rate, spec.seconds)
    assert_close(log_mel(samples, spec), librosa_db(samples, spec), spec)


@pytest.mark.parametrize(
    ("suffix", "rate", "seconds"),
    [
        (".wav", 44_100, SPEC.seconds),
        (".wav", 48_000, SPEC.seconds),
        (".wav", 22_050, 3.0),
        (".wav", 8_000, 40.0),
        (".flac", 48_000, 31.0),
        (".ogg", 44_100, 3.0),
        (".mp3", 44_100, 30.0),
        (".mp3", 48_000, 3.0),
    ],
)
def test_a_stereo_file_of_any_rate_and_length_is_decoded_and_transformed_as_by_librosa(tmp_path, suffix, rate, seconds):
    """Shorter than a clip or longer, resampled or not, its channels different from one another."""
    assert_same(write(tmp_path / f"x{suffix}", stereo(rate, seconds), rate))


def test_a_silent_file_is_as_by_librosa(tmp_path):
    path = write(tmp_path / "x.mp3", np.zeros((44_100 * 5, 2), np.float32), 44_100)
    np.testing.assert_array_equal(ours(path), reference(path))
    assert not feature(np.zeros(5, np.float32), SPEC).z_FT.any()


def test_a_feature_is_the_z_scores_as_little_endian_float16_and_gives_the_db_back():
    samples = chirp(SPEC.sample_rate, SPEC.seconds)
    db_FT = librosa_db(samples, SPEC)
    z_FT, mean, std = feature(samples, SPEC)
    assert (z_FT.dtype.str, z_FT.shape) == ("<f2", SPEC.shape)
    assert z_FT.flags.c_contiguous
    np.testing.assert_array_equal(z_FT, standardize(log_mel(samples, SPEC))[0].astype(np.float16))
    half_step = std * np.abs(z_FT.astype(np.float64)).max() * 2**-11  # of a float16
    np.testing.assert_allclose(z_FT.astype(np.float64) * std + mean, db_FT, atol=half_step + DB_TOLERANCE)


# Real music


@pytest.mark.parametrize("index", range(0, 120, 12))
def test_real_clips_are_within_tolerance_of_librosa(mini, index):
    assert_same(sorted((mini / "fma_small").glob("*/*.mp3"))[index])


def test_the_real_fma_clip_is_within_tolerance_of_librosa(fma_clip):
    assert_same(fma_clip)


@pytest.mark.parametrize("name", ["ok_mono_48k.mp3", "odd_wav_renamed.mp3", "short_1s.mp3", "short_truncated_half.mp3"])
def test_odd_but_readable_files_are_within_tolerance_of_librosa(odd_mp3, name):
    assert_same(odd_mp3 / name)


@pytest.mark.parametrize("name", OTHER_SPECS)
def test_a_real_clip_with_other_parameters_is_within_tolerance_of_librosa(fma_clip, name):
    assert_same(fma_clip, OTHER_SPECS[name])


def test_a_silent_mp3_gives_the_db_of_librosa_and_zeros(odd_mp3):
    silent = ours(odd_mp3 / "ok_digital_silence.mp3")
    np.testing.assert_array_equal(silent, reference(odd_mp3 / "ok_digital_silence.mp3"))
    assert not standardize(silent)[0].any()


# Its parts


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


def n_noise(n):
    return noise(1, n)


@pytest.mark.parametrize("n", [0, 1, 1000, SPEC.n_samples - 1])
def test_a_short_clip_is_as_one_followed_by_zeros(n):
    whole = np.zeros(SPEC.n_samples, np.float32)
    whole[:n] = n_noise(n)
    np.testing.assert_array_equal(log_mel(n_noise(n), SPEC), log_mel(whole, SPEC))


def test_a_long_clip_is_as_its_beginning():
    long = n_noise(SPEC.n_samples + 50_000)
    np.testing.assert_array_equal(log_mel(long, SPEC), log_mel(long[: SPEC.n_samples], SPEC))


def test_nothing_is_further_below_the_loudest_value_than_top_db():
    samples = n_noise(SPEC.n_samples)
    samples[SPEC.n_samples // 2 :] = 0
    db = log_mel(samples, SPEC)
    assert db.min() == pytest.approx(db.max() - SPEC.top_db, abs=1e-4)


def test_the_given_samples_are_left_as_they_are():
    samples = n_noise(5000)
    log_mel(samples, SPEC)
    np.testing.assert_array_equal(samples, n_noise(5000))


def test_a_standardized_spectrogram_has_mean_0_and_deviation_1_and_gives_the_db_back():
    db = log_mel(n_noise(SPEC.n_samples), SPEC)
    z, mean, std = standardize(db)
    assert z.dtype == np.float32
    assert z.mean(dtype=np.float64) == pytest.approx(0, abs=1e-5)
    assert z.std(dtype=np.float64) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(z * std + mean, db, atol=1e-3)
