"""What WAV, AIFF, AU and Ogg files announce, against what is there of them; written by libsndfile, and cut off."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import soundfile

from mgc.audio.announced import OGG_PAGE, announced_share

RATE = 22_050
CHUNKED = {
    "wav": {"format": "WAV"},
    "wav of floats": {"format": "WAV", "subtype": "FLOAT"},
    "wav of ADPCM": {"format": "WAV", "subtype": "IMA_ADPCM"},
    "wav of big numbers": {"format": "WAV", "endian": "BIG"},
    "wavex": {"format": "WAVEX"},
    "rf64": {"format": "RF64"},
    "w64": {"format": "W64"},
    "aiff": {"format": "AIFF"},
    "aiff of floats": {"format": "AIFF", "subtype": "FLOAT"},
    "au": {"format": "AU"},
    "au of little numbers": {"format": "AU", "endian": "LITTLE"},
}
OGG = {"vorbis": {"format": "OGG", "subtype": "VORBIS"}, "opus": {"format": "OGG", "subtype": "OPUS"}}


def written(options, seconds=20, channels=2):
    rate = 48_000 if options.get("subtype") == "OPUS" else RATE
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (seconds * rate, channels))
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **options)
    return file.getvalue()


def share(content):
    return announced_share(io.BytesIO(content))


@pytest.mark.parametrize("name", CHUNKED)
def test_a_cut_file_announces_as_much_more_as_was_cut_off(name):
    content = written(CHUNKED[name])
    assert share(content) == 1
    assert share(content + b"ID3 or any other tag" * 100) == 1
    for part in (0.9, 0.5, 0.2):
        cut = content[: round(part * len(content))]
        assert share(cut) == pytest.approx(1 / part, rel=1e-2)
        assert share(cut) * soundfile.info(io.BytesIO(cut)).frames == pytest.approx(20 * RATE, rel=2e-2)


@pytest.mark.parametrize("name", ["wav", "wavex", "rf64", "aiff"])
def test_chunks_before_the_samples_are_passed(name, tmp_path):
    with soundfile.SoundFile(tmp_path / "x", "w", RATE, 1, **CHUNKED[name]) as file:
        file.title, file.artist = "An odd title", "A long name " * 20
        file.write(np.zeros(20 * RATE))
    content = (tmp_path / "x").read_bytes()
    assert share(content) == 1
    assert share(content[: len(content) // 2]) == pytest.approx(2, rel=1e-2)


@pytest.mark.parametrize("length", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x7FFFF000])
def test_a_wav_from_a_pipe_does_not_say_how_long_it_is(length):
    content = bytearray(written(CHUNKED["wav"]))
    content[4:8] = content[40:44] = length.to_bytes(4, "little")
    assert share(content) == 1


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", OGG)
def test_an_ogg_file_without_its_last_page_announces_no_end(name, channels):
    content = written(OGG[name], channels=channels)
    assert share(content) == 1
    assert share(content + bytes(100)) == 1
    assert share(content + content) == 1
    for missing in (1, 1000, len(content) // 2, len(content) - 100, OGG_PAGE):
        assert share(content[:-missing]) == math.inf, missing


def test_other_files_announce_nothing(fma_clip, odd_mp3):
    assert announced_share(fma_clip.open("rb")) == 1
    for content in (b"", b"RIFF", b"OggS"[:3], b"FORM" + bytes(8), b".snd", bytes(5000), b"fLaC" + bytes(100)):
        assert share(content) == 1, content
    rng = np.random.default_rng(0)
    for magic in (b"RIFF", b"RF64", b"RIFX", b"FORM", b"riff", b".snd", b"dns.", b"OggS"):
        for _ in range(200):
            assert share(magic + rng.bytes(int(rng.integers(0, 5000)))) >= 1
