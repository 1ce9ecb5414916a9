"""Decoding: every file gives samples or one reason of the fixed list, on any content whatever its suffix says."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
from itertools import pairwise

import librosa
import numpy as np
import pytest
import soundfile
from helpers.sounds import chirp, stereo, write

from mgc.audio import decode as audio
from mgc.collection.genre_folders import AUDIO_SUFFIXES
from mgc.core.errors import ClipError, Reason
from mgc.core.storage import Folder
from mgc.features import shards
from mgc.features.plan import Recipe

RATE = 22_050
SECONDS = 29.9

OUTCOMES = {
    "ok_cbr256_44k_stereo.mp3": 29.9,
    "ok_mono_48k.mp3": 29.9,
    "ok_digital_silence.mp3": 29.9,
    "odd_wav_renamed.mp3": 29.9,
    "ok_vbr_v2_noxing.mp3": Reason.DAMAGED,  # 16.24 s: without a Xing header libsndfile ends where it guesses the end
    "short_truncated_half.mp3": Reason.DAMAGED,  # 14.97 s; its Xing header promises 30
    "warn_bitflips.mp3": Reason.DAMAGED,  # 2.3 s: libsndfile ends at the damage without an error
    "short_1s.mp3": Reason.DAMAGED,  # 1.2 s; its Xing header promises 30
    "bad_zero_length.mp3": Reason.EMPTY,
    "bad_text_renamed.mp3": Reason.NOT_AUDIO,
    "bad_id3_only.mp3": Reason.NOT_AUDIO,
    "bad_random_bytes.mp3": Reason.NOT_AUDIO,
    "warn_middle_zeroed.mp3": Reason.DECODE_ERROR,
}
"""What becomes of each odd file at ``--min-seconds 5``: the seconds that are decoded, or the reason there are none."""

KEPT_DAMAGED = {
    "ok_vbr_v2_noxing.mp3": 16.24,
    "short_truncated_half.mp3": 14.97,
    "warn_bitflips.mp3": Reason.TOO_SHORT,
    "short_1s.mp3": Reason.TOO_SHORT,
}
"""The same for those that are damaged, with ``--keep-damaged``."""


def load(path, **options):
    with audio.open_clip(Folder.at(path.parent), path.name) as file:
        return audio.load(file, **options)


def windows_of(path, seconds):
    with audio.open_clip(Folder.at(path.parent), path.name) as file:
        return list(audio.windows(file, sample_rate=RATE, seconds=seconds))


def outcome(path, keep_damaged=False):
    """What ``shards.extract`` makes of a file: seconds, or the reason."""
    clip = {"track_id": 1, "split": "test", "genre": "Odd", "label": 0, "artist_id": None, "path": path.name}
    try:
        with audio.open_clip(Folder.at(path.parent), path.name) as file:
            row = shards.extract(clip, file, Recipe(min_seconds=5.0, keep_damaged=keep_damaged))
    except ClipError as error:
        return error.reason
    assert np.isfinite(np.frombuffer(row["logmel"], "<f2")).all()
    return row["seconds"]


@pytest.mark.parametrize("name", OUTCOMES)
def test_every_odd_file_has_its_outcome(odd_mp3, name):
    expected = OUTCOMES[name]
    found = outcome(odd_mp3 / name)
    assert found == (expected if isinstance(expected, Reason) else pytest.approx(expected, abs=0.01))


@pytest.mark.parametrize("name", KEPT_DAMAGED)
def test_a_damaged_clip_is_kept_where_the_flag_allows_it(odd_mp3, name):
    expected = KEPT_DAMAGED[name]
    found = outcome(odd_mp3 / name, keep_damaged=True)
    assert found == (expected if isinstance(expected, Reason) else pytest.approx(expected, abs=0.01))


def test_a_damaged_clip_says_both_lengths(odd_mp3):
    def row(name, **options):
        clip = {"track_id": 1, "split": "test", "genre": "Odd", "label": 0, "artist_id": None, "path": name}
        with audio.open_clip(Folder.at(odd_mp3), name) as file:
            return shards.extract(clip, file, Recipe(**options))

    half = "short_truncated_half.mp3"
    with pytest.raises(ClipError, match=r"14\.97 of 29\.90 s of audio came out") as caught:
        row(half)
    assert caught.value.seconds == pytest.approx(14.97, abs=0.01)
    kept = row(half, keep_damaged=True)
    assert kept["damaged"]
    assert (kept["seconds"], kept["promised_seconds"]) == (pytest.approx(14.97, abs=0.01), pytest.approx(29.9))
    whole = row("ok_cbr256_44k_stereo.mp3")
    assert (whole["damaged"], whole["seconds"], whole["promised_seconds"]) == (False, 29.9, 29.9)


def test_a_flac_that_is_cut_off_is_damaged_by_its_headers_promise(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 20 * RATE)
    soundfile.write(tmp_path / "cut.flac", noise, RATE)
    data = (tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(data[: len(data) // 2])
    assert outcome(tmp_path / "cut.flac") in {Reason.DAMAGED, Reason.DECODE_ERROR}


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".opus", ".aiff", ".au", ".mp3"])
def test_a_file_cut_in_half_is_damaged_and_a_whole_one_is_not(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (20 * 48_000, 2))
    soundfile.write(path, noise, 48_000, **({"format": "OGG", "subtype": "OPUS"} if suffix == ".opus" else {}))
    assert outcome(path) == pytest.approx(20, abs=0.01)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert outcome(path) in ({Reason.DAMAGED, Reason.DECODE_ERROR} if suffix == ".flac" else {Reason.DAMAGED})
    if suffix != ".flac":
        assert outcome(path, keep_damaged=True) == pytest.approx(9.5, abs=0.6)


def from_a_pipe(flac):
    """The bytes of a FLAC file without the number of its samples, as an encoder leaves it that cannot seek."""
    assert flac[:4] == b"fLaC"
    return flac[:21] + bytes([flac[21] & 0xF0, 0, 0, 0, 0]) + flac[26:]


@pytest.mark.parametrize("seconds", [20, 40])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_flac_that_does_not_say_how_long_it_is_is_decoded_as_one_that_does(tmp_path, seconds, channels):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (seconds * 44_100, channels))
    soundfile.write(tmp_path / "file.flac", noise, 44_100)
    flac = (tmp_path / "file.flac").read_bytes()
    (tmp_path / "pipe.flac").write_bytes(from_a_pipe(flac))
    assert soundfile.info(tmp_path / "pipe.flac").frames == audio.UNKNOWN
    expected = load(tmp_path / "file.flac", sample_rate=RATE, seconds=SECONDS)
    found = load(tmp_path / "pipe.flac", sample_rate=RATE, seconds=SECONDS)
    np.testing.assert_array_equal(found.samples, expected.samples)
    assert (found.seconds, found.promised) == (expected.seconds, expected.promised)
    assert outcome(tmp_path / "pipe.flac") == pytest.approx(min(seconds, SECONDS))
    for one, other in zip(*(windows_of(tmp_path / f"{name}.flac", 3.0) for name in ("file", "pipe")), strict=True):
        np.testing.assert_array_equal(one.samples, other.samples)
    (tmp_path / "cut.flac").write_bytes(from_a_pipe(flac)[: len(flac) // 4])
    assert outcome(tmp_path / "cut.flac") == Reason.DECODE_ERROR


def mp3(path, rate, channels, seconds=8):
    noise = np.random.default_rng(rate).uniform(-0.5, 0.5, (seconds * rate, channels))
    soundfile.write(path, noise, rate, format="MP3", bitrate_mode="CONSTANT")
    return path.read_bytes()


@pytest.mark.parametrize("then", [(48_000, 2), (22_050, 1), (32_000, 2), (44_100, 1)])
@pytest.mark.parametrize("first", [(44_100, 2), (24_000, 1)])
def test_joined_mp3s_of_different_rates_are_what_librosa_loads(tmp_path, first, then):
    path = tmp_path / "joined.mp3"
    path.write_bytes(mp3(path, *first) + mp3(path, *then))
    samples, seconds, promised = load(path, sample_rate=RATE, seconds=SECONDS)
    assert_as_librosa(samples, path)
    assert seconds == pytest.approx(8, abs=0.1)
    if promised > 8.1:  # the sample rate is the same
        assert outcome(path) == Reason.DAMAGED
    else:
        assert outcome(path) == seconds


def test_a_joined_mp3_that_is_damaged_says_that_its_parts_differ(odd_mp3, tmp_path):
    long, mono = ((odd_mp3 / name).read_bytes() for name in ("ok_cbr256_44k_stereo.mp3", "ok_mono_48k.mp3"))
    clip = {"track_id": 1, "split": "test", "genre": "Odd", "label": 0, "artist_id": None, "path": "x.mp3"}
    for name, content, said in (
        ("rate.mp3", long[: len(long) // 3] + mono, "44100 Hz stereo, then 48000 Hz mono"),
        (
            "channels.mp3",
            mp3(tmp_path / "1", 44_100, 1) + mp3(tmp_path / "2", 44_100, 2),
            "44100 Hz mono, then 44100 Hz stereo",
        ),
    ):
        (tmp_path / name).write_bytes(content)
        with (tmp_path / name).open("rb") as file, pytest.raises(ClipError) as caught:
            shards.extract(clip, file, Recipe())
        assert caught.value.reason == Reason.DAMAGED
        assert caught.value.detail.endswith(f" s of audio came out; the MP3 is joined of parts that differ, {said}")
    for name in ("short_truncated_half.mp3", "warn_bitflips.mp3", "ok_vbr_v2_noxing.mp3", "bad_text_renamed.mp3"):
        with (odd_mp3 / name).open("rb") as file:
            assert audio.why_short(file, SECONDS) == ""


def test_a_short_clip_that_is_whole_is_too_short_and_not_damaged(tmp_path):
    soundfile.write(tmp_path / "short.mp3", np.zeros(2 * RATE), RATE, format="MP3")
    assert outcome(tmp_path / "short.mp3") == Reason.TOO_SHORT


def test_tags_of_8_mb_and_ten_hours_are_read_no_further_than_a_feature_reaches(odd_mp3, tmp_path):
    frames = (odd_mp3 / "ok_cbr256_44k_stereo.mp3").read_bytes()
    size = 8 << 20
    tag = b"ID3\x04\x00\x00" + bytes((size >> shift) & 0x7F for shift in (21, 14, 7, 0)) + bytes(size)
    (tmp_path / "tagged.mp3").write_bytes(tag + frames)
    (tmp_path / "long.mp3").write_bytes((odd_mp3 / "ok_mono_48k.mp3").read_bytes() * 1200)  # 577 MB
    assert outcome(tmp_path / "tagged.mp3") == pytest.approx(29.9)
    assert outcome(tmp_path / "long.mp3") == pytest.approx(29.9)


def test_samples_that_no_sound_has_are_too_loud(tmp_path):
    samples = np.full(RATE, 1e7, np.float32)
    soundfile.write(tmp_path / "loud.wav", samples, RATE, subtype="FLOAT")
    assert reason_of(tmp_path / "loud.wav") == Reason.TOO_LOUD
    soundfile.write(tmp_path / "unscaled.wav", samples / 1e7 * 32_767, RATE, subtype="FLOAT")
    assert load(tmp_path / "unscaled.wav", sample_rate=RATE, seconds=1).samples.max() > 32_000


def test_a_loop_of_links_and_a_file_without_permission_are_unreadable(tmp_path):
    (tmp_path / "loop.mp3").symlink_to(tmp_path / "loop.mp3")
    assert reason_of(tmp_path / "loop.mp3") == Reason.UNREADABLE
    (tmp_path / "shut.mp3").write_bytes(b"x")
    (tmp_path / "shut.mp3").chmod(0)
    code = f"""
import os
from pathlib import Path
from mgc.audio import decode as audio
from mgc.collection.genre_folders import AUDIO_SUFFIXES
from mgc.core.errors import ClipError
from mgc.core.storage import Folder
if os.geteuid() == 0:
    os.seteuid(65534)
try:
    audio.open_clip(Folder({str(tmp_path)!r}), "shut.mp3")
except ClipError as error:
    print(error.reason)
"""
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["unreadable"]


def test_the_table_of_outcomes_names_every_odd_file(odd_mp3):
    with (odd_mp3 / "manifest.csv").open() as file:
        assert {row["file"] for row in csv.DictReader(file)} == set(OUTCOMES)


def test_a_short_clip_is_a_feature_where_the_limit_allows_it(odd_mp3):
    samples, seconds, _ = load(odd_mp3 / "short_1s.mp3", sample_rate=RATE, seconds=SECONDS)
    assert seconds == pytest.approx(54_767 / 44_100)
    assert len(samples) == pytest.approx(seconds * RATE, abs=1)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
@pytest.mark.parametrize("rate", [44_100, 48_000, RATE, 8_000])
@pytest.mark.parametrize("sound", [stereo, chirp], ids=["stereo", "mono"])
@pytest.mark.parametrize("seconds", [2.0, 6.0], ids=["shorter", "longer"])
def test_synthetic_samples_are_those_of_librosa_at_any_rate_and_channel_count(tmp_path, suffix, rate, sound, seconds):
    path = write(tmp_path / f"x{suffix}", sound(rate, seconds), rate)
    samples, decoded, promised = load(path, sample_rate=RATE, seconds=5.0)
    reference, _ = librosa.load(path, sr=RATE, duration=5.0)
    assert samples.dtype == np.float32
    assert decoded == pytest.approx(min(seconds, 5.0), abs=1e-3)
    assert promised == pytest.approx(decoded, abs=0.2)  # an MP3's frames count its encoder's padding too
    assert len(samples) == len(reference) == pytest.approx(decoded * RATE, abs=1)
    np.testing.assert_allclose(samples, reference, atol=2e-6)
    assert np.abs(samples).max() > 0.1


LAYER_2 = b"\xff\xfd\x80\x04" + bytes(413)
"""A silent frame of MPEG 1, Layer II, 128 kb/s, 44.1 kHz; 1,152 samples."""
FORMATS = {
    ".oga": ("OGG", "VORBIS"), ".opus": ("OGG", "OPUS"), ".aif": ("AIFF", None), ".aifc": ("AIFF", "FLOAT"),
    ".snd": ("AU", None),
}  # fmt: skip
"""Those that soundfile does not know by their ending."""


@pytest.mark.parametrize("suffix", sorted(AUDIO_SUFFIXES))
def test_every_ending_that_counts_as_audio_is_of_a_format_that_is_decoded(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    if suffix == ".mp2":
        path.write_bytes(LAYER_2 * 250)
    else:
        file_format, subtype = FORMATS.get(suffix, (suffix[1:].upper(), None))
        soundfile.write(path, np.zeros(6 * 48_000), 48_000, format=file_format, subtype=subtype)
    assert outcome(path) == pytest.approx(6, abs=0.6)


@pytest.mark.parametrize("name", ["ok_cbr256_44k_stereo.mp3", "ok_mono_48k.mp3", "odd_wav_renamed.mp3"])
def test_samples_are_those_of_librosa_at_any_rate_and_channel_count(odd_mp3, name):
    samples, seconds, _ = load(odd_mp3 / name, sample_rate=RATE, seconds=5.0)
    reference, _ = librosa.load(odd_mp3 / name, sr=RATE, duration=5.0)
    assert samples.dtype == np.float32
    assert seconds == pytest.approx(5.0)
    assert len(samples) == len(reference) == 5 * RATE
    np.testing.assert_allclose(samples, reference, atol=2e-6)


def test_samples_beyond_full_scale_are_not_clipped(tmp_path):
    loud = 1.5 * np.sin(np.arange(RATE, dtype=np.float32))
    soundfile.write(tmp_path / "loud.wav", loud, RATE, subtype="FLOAT")
    assert np.abs(load(tmp_path / "loud.wav", sample_rate=RATE, seconds=1).samples).max() > 1.4


def test_mono_is_the_mean_of_all_channels(tmp_path):
    channels = np.random.default_rng(0).uniform(-1, 1, (RATE, 6)).astype(np.float32)
    soundfile.write(tmp_path / "six.wav", channels, RATE, subtype="FLOAT")
    samples = load(tmp_path / "six.wav", sample_rate=RATE, seconds=1).samples
    np.testing.assert_allclose(samples, channels.mean(axis=1), atol=1e-6)


def reason_of(path):
    with pytest.raises(ClipError) as caught:
        load(path, sample_rate=RATE, seconds=SECONDS)
    return caught.value.reason


def test_a_file_that_is_not_there_is_missing(tmp_path):
    assert reason_of(tmp_path / "no.mp3") == Reason.MISSING


def test_what_is_not_a_regular_file_is_unreadable(tmp_path):
    (tmp_path / "x.mp3").mkdir()
    assert reason_of(tmp_path / "x.mp3") == Reason.UNREADABLE
    os.mkfifo(tmp_path / "pipe.mp3")
    assert reason_of(tmp_path / "pipe.mp3") == Reason.UNREADABLE
    (tmp_path / "a_file").write_bytes(b"x")
    assert reason_of(tmp_path / "a_file" / "y.mp3") == Reason.UNREADABLE


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_not_finite(tmp_path, value):
    samples = np.zeros((RATE, 2), np.float32)
    samples[1000, 1] = value
    soundfile.write(tmp_path / "nan.wav", samples, RATE, subtype="FLOAT")
    assert reason_of(tmp_path / "nan.wav") == Reason.NOT_FINITE


def test_a_header_without_samples_is_empty_audio_that_is_too_short(tmp_path):
    soundfile.write(tmp_path / "none.wav", np.zeros(0, np.float32), RATE)
    samples, seconds, _ = load(tmp_path / "none.wav", sample_rate=RATE, seconds=SECONDS)
    assert (len(samples), seconds) == (0, 0.0)
    assert outcome(tmp_path / "none.wav") == Reason.TOO_SHORT


@pytest.mark.parametrize("piece", [4.0, 7.5, 29.9, 60.0])
def test_windows_cover_the_file_and_the_first_is_what_load_gives(fma_clip, piece):
    windows = windows_of(fma_clip, piece)
    frames = soundfile.info(fma_clip).frames
    assert sum(window.seconds for window in windows) == pytest.approx(frames / 44_100, abs=1e-6)
    assert all(window.seconds == pytest.approx(piece) for window, _ in pairwise(windows))
    assert 0 < windows[-1].seconds <= piece
    first = load(fma_clip, sample_rate=RATE, seconds=piece)
    np.testing.assert_array_equal(windows[0].samples, first.samples)
    assert windows[0].seconds == first.seconds


def test_a_file_of_whole_pieces_ends_with_a_whole_piece(tmp_path):
    soundfile.write(tmp_path / "two.wav", np.zeros(2 * RATE, np.float32), RATE)
    windows = windows_of(tmp_path / "two.wav", 1.0)
    assert [len(window.samples) for window in windows] == [RATE, RATE]


TAG = 269
"""Bytes of the real clip's ID3 tag."""
BEFORE = {
    "cut off in the tag": lambda mp3: mp3[100:],
    "cut off in the first frame": lambda mp3: mp3[1000:],
    "cut off in the middle": lambda mp3: mp3[len(mp3) // 3 :],
    "a line end": lambda mp3: b"\r\n" + mp3,
    "zeros": lambda mp3: bytes(5000) + mp3,
    "a web page": lambda mp3: b"<html><body>\n" * 400 + mp3,
    "junk behind the tag": lambda mp3: mp3[:TAG] + np.random.default_rng(0).bytes(4096) + mp3[TAG:],
    "a second tag": lambda mp3: b"APETAGEX" + bytes(2000) + mp3,
    "60 kB": lambda mp3: bytes(60_000) + mp3,
}
"""What may stand before the first whole frame of an MP3."""


def assert_as_librosa(samples, path, seconds=SECONDS):
    reference, _ = librosa.load(path, sr=RATE, duration=seconds)
    assert len(samples) == len(reference) > 0
    np.testing.assert_allclose(samples, reference, atol=2e-6)


@pytest.mark.parametrize("before", BEFORE)
def test_an_mp3_with_something_before_its_first_frame_is_what_librosa_loads(fma_clip, tmp_path, before):
    path = tmp_path / "clip.mp3"
    path.write_bytes(BEFORE[before](fma_clip.read_bytes()))
    samples, seconds, promised = load(path, sample_rate=RATE, seconds=SECONDS)
    assert_as_librosa(samples, path)
    assert promised == pytest.approx(seconds, abs=0.1)
    with tempfile.TemporaryFile(buffering=0) as nameless:  # as a clip of an object store comes
        nameless.write(path.read_bytes())
        np.testing.assert_array_equal(audio.load(nameless, sample_rate=RATE, seconds=SECONDS).samples, samples)
        assert audio.native_rate(nameless) == 44_100
        assert next(audio.windows(nameless, sample_rate=RATE, seconds=SECONDS)).seconds == seconds


def test_an_mp3_cut_off_anywhere_is_what_librosa_loads(fma_clip, tmp_path):
    mp3 = fma_clip.read_bytes()
    for start in np.random.default_rng(0).integers(1, len(mp3) - 50_000, 20):
        (tmp_path / "cut.mp3").write_bytes(mp3[start:])
        assert_as_librosa(load(tmp_path / "cut.mp3", sample_rate=RATE, seconds=3).samples, tmp_path / "cut.mp3", 3)


def test_what_is_decoded_leaves_nothing_behind(fma_clip, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "clip.mp3").write_bytes(b"\r\n" + fma_clip.read_bytes())
    before = os.listdir("/dev/fd")
    load(tmp_path / "clip.mp3", sample_rate=RATE, seconds=1)
    assert os.listdir("/dev/fd") == before
    assert list((tmp_path / "temporary").iterdir()) == []
