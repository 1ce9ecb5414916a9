"""What an MPEG file promises: what libsndfile decodes where the file is sound, and what it held where it is not."""

from __future__ import annotations

import csv
import io
import math
import struct

import numpy as np
import pytest
import soundfile

from mgc.audio.mpeg_duration import BLOCK, SEARCH, promised_seconds

ALL = math.inf
SECONDS = 29.9
WHOLE = 1150 * 1152 / 44_100
"""30 s as most odd files hold it: 1,150 frames, 1,152 samples each."""

ODD = {
    "ok_cbr256_44k_stereo.mp3": WHOLE,
    "ok_mono_48k.mp3": 1251 * 1152 / 48_000,
    "ok_vbr_v2_noxing.mp3": WHOLE,  # of which libsndfile gives 16.2 s
    "ok_digital_silence.mp3": WHOLE,
    "warn_bitflips.mp3": WHOLE,  # of which libsndfile gives 2.3 s
    "warn_middle_zeroed.mp3": WHOLE,
    "short_truncated_half.mp3": WHOLE,  # its Info header counts the clip that was cut
    "short_1s.mp3": 1148 * 1152 / 44_100,  # as well
    "bad_zero_length.mp3": None,
    "bad_text_renamed.mp3": None,
    "bad_id3_only.mp3": None,
    "bad_random_bytes.mp3": None,
    "odd_wav_renamed.mp3": None,
}
WALKED = ODD | {"short_truncated_half.mp3": 15.0, "short_1s.mp3": 1.27}
"""The same where nothing is counted."""

VERSIONS = {1: 0b11, 2: 0b10, 2.5: 0b00}
LAYERS = {1: 0b11, 2: 0b10, 3: 0b01}
HEADER = bytes([0xFF, 0xFB, 9 << 4, 0])
"""MPEG 1, Layer III, 128 kb/s, 44.1 kHz, stereo: frames of 417 bytes."""
FRAME = HEADER + bytes(413)
FRAME_SECONDS = 1152 / 44_100


def promise(content: bytes, enough: float = ALL) -> float | None:
    return promised_seconds(io.BytesIO(content), enough)


def promise_of(path, enough=ALL):
    with path.open("rb") as file:
        return promised_seconds(file, enough)


def decoded(content: bytes) -> float:
    with soundfile.SoundFile(io.BytesIO(content)) as file:
        return len(file.read()) / file.samplerate


def uncounted(content: bytes) -> bytes:
    """The same file, its first frame an audio frame like any other."""
    assert b"Info" in content or b"Xing" in content
    return content.replace(b"Info", bytes(4), 1).replace(b"Xing", bytes(4), 1)


def encoded(rate: int, channels: int, mode: str, seconds: int = 3) -> bytes:
    """Noise with a silent third, by LAME."""
    samples = np.random.default_rng(rate + channels).normal(0, 0.1, (seconds * rate, channels))
    samples[len(samples) // 3 : 2 * len(samples) // 3] = 0
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="MP3", bitrate_mode=mode, compression_level=0.5)
    return file.getvalue()


@pytest.fixture(scope="module")
def clip() -> bytes:
    """12 s of 44.1 kHz stereo VBR whose frames are 104 to 1045 bytes."""
    return encoded(44_100, 2, "VARIABLE", 12)


# Real files


@pytest.mark.parametrize("name", ODD)
def test_every_odd_file_has_its_promise(odd_mp3, name):
    assert promise_of(odd_mp3 / name) == (ODD[name] and pytest.approx(ODD[name], rel=0.001))
    found = promise_of(odd_mp3 / name, SECONDS)
    assert found == (ODD[name] and pytest.approx(ODD[name], rel=0.01))
    assert found is None or found >= SECONDS


@pytest.mark.parametrize("name", [name for name, seconds in ODD.items() if seconds])
def test_an_odd_file_without_its_count_is_as_long_as_its_frames_and_gaps(odd_mp3, name):
    content = (odd_mp3 / name).read_bytes()
    if "noxing" not in name:
        content = uncounted(content)
    assert promise(content) == pytest.approx(WALKED[name], abs=0.06)


def test_the_table_of_promises_names_every_odd_file(odd_mp3):
    with (odd_mp3 / "manifest.csv").open() as file:
        assert {row["file"] for row in csv.DictReader(file)} == set(ODD)


def test_every_sound_clip_promises_what_it_decodes_to(mini, fma_clip, odd_mp3):
    clips = [*sorted(mini.glob("fma_small/*/*.mp3"))[::20], fma_clip, odd_mp3 / "ok_mono_48k.mp3"]
    assert len(clips) >= 8
    for path in clips:
        truth = soundfile.info(path).duration
        assert promise_of(path) == pytest.approx(truth, rel=0.01), path
        assert promise(uncounted(path.read_bytes())) == pytest.approx(truth, rel=0.01), path


# Sound streams of every kind


@pytest.mark.parametrize("rate", [8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_lames_files_promise_their_length_and_the_encoders_delay(rate, mode):
    for channels in (1, 2):
        content = encoded(rate, channels, mode)
        truth = decoded(content)
        assert truth == 3
        assert 1105 <= (promise(content) - truth) * rate < 2304  # LAME's delay, then up to whole frames
        assert (promise(uncounted(content)) - promise(content)) * rate in (pytest.approx(576), pytest.approx(1152))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("layer", LAYERS)
def test_every_header_says_what_libsndfile_makes_of_it(version, layer):
    """Silent frames of each rate, of the size at which they are taken for a stream, decode to what they promise."""
    for rate in range(3):
        size = 24
        for bit_rate in range(1, 15):
            for padding, no_crc, mode in ((0, 1, 0), (1, 1, 0), (0, 0, 3)) if bit_rate in (1, 5, 9) else ((0, 1, 0),):
                second = 0xE0 | VERSIONS[version] << 3 | LAYERS[layer] << 1 | no_crc
                header = bytes([0xFF, second, bit_rate << 4 | rate << 2 | padding << 1, mode << 6])
                first = max(24, size - 4)  # a byte of padding, or four, less
                size = next(size for size in range(first, 3000) if promise((header + bytes(size - 4)) * 4) is not None)
                stream = (header + bytes(size - 4)) * 20
                assert promise(stream) == pytest.approx(decoded(stream), rel=1e-9), (header.hex(), size)


def test_a_count_may_be_of_xing_info_or_vbri_and_may_be_left_out():
    def counted(*parts: bytes) -> float | None:
        return promise((HEADER + b"".join(parts)).ljust(417, b"\0") + FRAME * 20)

    count = struct.pack(">I", 1000)
    for magic in (b"Xing", b"Info"):
        for side in (9, 17, 32, 34):
            assert counted(bytes(side), magic, b"\0\0\0\1", count) == pytest.approx(1000 * FRAME_SECONDS)
        assert counted(bytes(32), magic, b"\0\0\0\2", count) == pytest.approx(20 * FRAME_SECONDS)
        assert counted(bytes(32), magic, b"\0\0\0\1", bytes(4)) == pytest.approx(20 * FRAME_SECONDS)
    vbri = b"VBRI" + struct.pack(">HHHII", 1, 0, 75, 8_757, 1000)
    assert counted(bytes(32), vbri) == pytest.approx(1000 * FRAME_SECONDS)
    assert counted(bytes(40), b"Xing", b"\0\0\0\1", count) == pytest.approx(21 * FRAME_SECONDS)  # too far in: audio
    too_few = struct.pack(">I", 5)
    assert counted(bytes(32), b"Info", b"\0\0\0\1", too_few) == pytest.approx(20 * FRAME_SECONDS)


def test_frames_with_and_without_crc_are_one_stream():
    assert promise((FRAME + bytes([0xFF, 0xFA]) + FRAME[2:]) * 10) == pytest.approx(20 * FRAME_SECONDS)


def test_the_walk_ends_where_another_stream_begins():
    other = bytes([0xFF, 0xFB, 9 << 4 | 1 << 2, 0]) + bytes(380)  # 48 kHz
    assert promise(FRAME * 10 + other * 20) == pytest.approx(10 * FRAME_SECONDS)


# Tags and garbage


def id3v2(size: int, *, footer: bool = False) -> bytes:
    """A tag that holds headers of its own, as pictures may."""
    syncsafe = bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    body = (FRAME * (size // len(FRAME) + 1))[:size]
    return b"ID3\4\0" + bytes([0x10 * footer]) + syncsafe + body + (b"3DI\4\0\x10" + syncsafe) * footer


def test_leading_tags_promise_nothing(tmp_path, clip):
    truth = promise(clip)
    (tmp_path / "art.mp3").write_bytes(id3v2(8 << 20) + clip)
    assert promise_of(tmp_path / "art.mp3") == truth
    assert promise(id3v2(300) + id3v2(70_000, footer=True) + id3v2(8000) + id3v2(0) + clip) == truth
    assert promise(id3v2(300) + bytes(4000) + clip) == truth  # padding that the tag does not count


def test_trailing_tags_promise_nothing(clip):
    truth = promise(clip)
    junk = np.random.default_rng(0).bytes(200_000)
    ape = b"APETAGEX" + struct.pack("<IIII", 2000, len(junk), 1, 0xA0000000) + bytes(8) + junk
    for tail in (b"TAG" + b" " * 125, ape, b"LYRICSBEGIN" + b"la " * 500 + b"001500LYRICS200", bytes(50_000)):
        assert promise(clip + tail) == truth
        assert promise(uncounted(clip) + tail) == promise(uncounted(clip))


def test_tags_between_two_files_in_one_promise_nothing(clip):
    audio = uncounted(clip)
    assert promise(audio + id3v2(300_000) + audio) == pytest.approx(2 * promise(audio))


def test_a_tag_that_claims_more_than_the_file_is_not_believed(clip):
    assert promise(b"ID3\4\0\0\x7f\x7f\x7f\x7f" + clip) == promise(clip)


def test_leading_garbage_promises_nothing_and_is_searched_so_far(clip):
    garbage = np.random.default_rng(1).bytes(SEARCH + 100)
    for size in (1, 417, 100_000, SEARCH - 100):
        assert promise(garbage[:size] + clip) == promise(clip)
    assert promise(garbage + clip) is None


@pytest.mark.parametrize("size", range(BLOCK - 4, BLOCK + 3))
def test_a_header_across_two_blocks_is_found(size):
    assert promise(bytes(size) + FRAME * 10) == pytest.approx(10 * FRAME_SECONDS)


# Damage


@pytest.mark.parametrize("seed", range(20))
def test_a_stretch_overwritten_inside_promises_what_it_held(odd_mp3, seed):
    """At a constant bit rate any stretch; where it varies, a stretch of 60 kB, of which a mean is good enough."""
    random = np.random.default_rng(seed)
    for name, longest, tolerance in (
        ("ok_cbr256_44k_stereo.mp3", 400_000, 0.002),
        ("ok_vbr_v2_noxing.mp3", 60_000, 0.03),
    ):
        audio = (odd_mp3 / name).read_bytes()
        audio = audio if "noxing" in name else uncounted(audio)
        size = int(random.integers(1, longest))
        at = int(random.integers(5000, len(audio) - size - 5000))
        damage = bytes(size) if seed % 2 else random.bytes(size)
        found = promise(audio[:at] + damage + audio[at + size :])
        assert found == pytest.approx(promise(audio), rel=tolerance), (at, size)


@pytest.mark.parametrize("every", [2003, 500, 100, 30])
def test_bytes_overwritten_everywhere_cost_nothing(odd_mp3, every):
    content = bytearray(uncounted((odd_mp3 / "ok_cbr256_44k_stereo.mp3").read_bytes()))
    places = range(3000, len(content), every)
    content[3000::every] = np.random.default_rng(every).bytes(len(places))
    assert promise(bytes(content)) == pytest.approx(WHOLE, rel=0.01)


def test_a_file_cut_off_promises_the_whole_if_it_was_counted_and_else_what_is_left(clip):
    half = len(clip) // 2
    assert promise(clip[:half]) == promise(clip)
    assert promise(uncounted(clip)[:half]) < 0.7 * promise(clip)
    assert promise(FRAME * 100 + FRAME[:200]) == pytest.approx(100 * FRAME_SECONDS)


# What is no MPEG audio


def test_random_bytes_are_no_mpeg_audio():
    random = np.random.default_rng(0)
    for _ in range(300):
        assert promise(random.bytes(int(random.integers(1, 60_000)))) is None
    assert promise(random.bytes(SEARCH)) is None


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT"])
@pytest.mark.parametrize("level", [0.001, 0.03, 0.3])
def test_wav_is_no_mpeg_audio_at_any_depth_and_level(subtype, level):
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(0).normal(0, level, (150_000, 2)), 44_100, subtype, format="WAV")
    assert promise(file.getvalue()) is None


@pytest.mark.parametrize("format_", ["FLAC", "OGG", "AIFF"])
def test_other_formats_are_no_mpeg_audio(format_):
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(0).normal(0, 0.1, (150_000, 2)), 44_100, format=format_)
    assert promise(file.getvalue()) is None
    assert promise(id3v2(1000) + file.getvalue()) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        HEADER,
        FRAME * 3,
        b"<html>404 Not Found</html>\n" * 1000,
        id3v2(1000),
        id3v2(1000)[:500],
        b"\xff" * 10_000,
        (bytes([0xFF, 0xFB, 0x00, 0]) + bytes(413)) * 50,  # free format
        (bytes([0xFF, 0xFB, 0xF0, 0]) + bytes(413)) * 50,  # forbidden bit rate
        (bytes([0xFF, 0xFB, 0x9C, 0]) + bytes(413)) * 50,  # reserved sampling rate
        (bytes([0xFF, 0xEB, 0x90, 0]) + bytes(413)) * 50,  # reserved version
        (bytes([0xFF, 0xF9, 0x90, 0]) + bytes(413)) * 50,  # reserved layer, AAC's
        (FRAME + bytes([0xFF, 0xF3, 0x90, 0]) + bytes(257)) * 50,  # version changes from frame to frame
        (FRAME + bytes([0xFF, 0xFD, 0x90, 0]) + bytes(518)) * 50,  # layer changes
        (FRAME + bytes([0xFF, 0xFB, 0x94, 0]) + bytes(380)) * 50,  # sampling rate changes
        (FRAME * 3 + bytes([0xFF, 0xFB, 0x00, 0]) + bytes(413)) * 50,  # every fourth is free format
        (FRAME * 3 + bytes([0xFF, 0x1B, 0x90, 0]) + bytes(413)) * 50,  # every fourth lacks sync bits
        b"".join(FRAME + bytes(gap) for gap in range(1, 90)),  # frames that do not chain
    ],
)
def test_what_only_looks_like_mpeg_audio_promises_nothing(content):
    assert promise(content) is None


def test_four_frames_are_a_stream():
    assert promise(FRAME * 4) == pytest.approx(4 * FRAME_SECONDS)


# Any bytes, bounded work


class Counted(io.BytesIO):
    """A file in memory that counts what is read of it."""

    total = 0

    def read(self, size=-1):
        content = super().read(size)
        self.total += len(content)
        return content


@pytest.mark.parametrize("seed", range(8))
def test_no_bytes_raise(clip, seed):
    random = np.random.default_rng(seed)
    sources = (clip[:9000], id3v2(50) + clip[:9000], uncounted(clip)[:9000], FRAME * 12, FRAME[:24] * 200)
    for _ in range(60):
        content = bytearray(sources[int(random.integers(len(sources)))])
        for _ in range(int(random.integers(1, 30))):
            at, size = (int(number) for number in random.integers(0, (len(content) + 1, 60)))
            piece = (random.bytes(size), bytes([0xFF]) * size, HEADER, b"ID3\4\0\0\0\0\0\1", b"Xing", b"VBRI")
            end = at + (size if random.integers(2) else 0)
            content[at:end] = piece[int(random.integers(len(piece)))]
        content = bytes(content[: int(random.integers(len(content) + 1))])
        for enough in (0, 0.1, SECONDS, ALL):
            found = promise(content, enough)
            assert found is None or (math.isfinite(found) and found >= 0)


SHORT_HEADER = bytes([0xFF, 0xFF, 0x14, 0])
"""MPEG 1, Layer I, 32 kb/s, 48 kHz: frames of 32 bytes, the shortest of their layer."""
HOSTILE = {
    "ones": b"\xff",
    "zeros": b"\0",
    "sync": b"\xff\xfb",
    "headers that never chain": HEADER,
    "three in a row": (FRAME * 3).ljust(1290, b"\0"),
    "three short ones in a row": (SHORT_HEADER + bytes(28)) * 3 + b"\0",
    "empty tags": b"ID3\4\0\0\0\0\0\0",
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", HOSTILE)
def test_fifty_hostile_megabytes_are_given_up_soon(name):
    file = Counted(HOSTILE[name] * (50_000_000 // len(HOSTILE[name])))
    assert promised_seconds(file, ALL) is None
    assert file.total < 2 * SEARCH


@pytest.mark.timeout(20)
def test_false_headers_amid_a_stream_are_given_up_in_all(tmp_path):
    bait = HEADER * 400
    (tmp_path / "bait.mp3").write_bytes((FRAME * 5 + bait) * 10_000)
    with (tmp_path / "bait.mp3").open("rb") as file:
        assert 0 < promised_seconds(file, ALL) < 100


def test_no_more_is_looked_at_than_is_enough():
    """Ten minutes of 128 kb/s, of which 30 s are half a megabyte."""
    file = Counted(FRAME * 23_000)
    assert promised_seconds(file, SECONDS) == pytest.approx(SECONDS, abs=0.03)
    assert file.total < 1_000_000
    assert promised_seconds(file, ALL) == pytest.approx(23_000 * FRAME_SECONDS)


def test_eight_megabytes_of_tag_are_passed_over(clip):
    file = Counted(id3v2(8 << 20) + clip)
    promised_seconds(file, ALL)
    assert file.total < 2 * len(clip) + 100_000


@pytest.mark.parametrize("position", [0, 1, 10_000_000])
def test_the_files_position_does_not_matter(clip, position):
    file = io.BytesIO(clip)
    file.seek(position)
    assert promised_seconds(file, ALL) == promise(clip)
