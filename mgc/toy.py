"""A synthetic set in FMA's layout: eight invented genres, MP3s, ``tracks.csv``, and a few broken files.

It shows the whole pipeline at work where FMA itself is not at hand. Genres differ in metre, tempo, rhythm, chords,
timbre and register; artists differ in key, tone, level, echo and hiss, and no artist is in two splits, so that
knowing a training artist by ear does not help. Logistic regression on the mean and deviation of the log-Mel over
time gets every training clip of the default set right and .59 to .84 of the 32 others (seeds 0 to 3; chance .125).

Nearly all of the time is LAME's, at any bit rate: about 0.5 s for 30 s of silence, 0.7 to 0.9 s for music, up to 1.7
times that where left and right differ, so here they are equal. Synthesis takes less than 0.1 s.
"""

from __future__ import annotations

import csv
import math
import os
import shutil
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile

from mgc.console import Progress
from mgc.errors import InputError, Reason, RunError

Signal: TypeAlias = npt.NDArray[np.floating[Any]]

SAMPLE_RATE = 44100
CLIP_SECONDS = 30.0
SHORT_SECONDS = 1.5
KBPS_256 = 0.2
"""libsndfile's compression level for 256 kb/s: it maps 0–1 to LAME's 320–32 kb/s."""
BARS = 4
TABLE = 2048
"""Samples of the one period from which notes are read; a power of two, so that wrapping is a bit mask."""

SPLITS = ("training", "validation", "test")
BREAKAGE = (Reason.TOO_SHORT, Reason.EMPTY, Reason.NOT_AUDIO, Reason.MISSING)
OTHER_SUBSETS = (("medium", "Choral"), ("medium", "Techno"), ("large", "Waltz"), ("large", ""), ("large", "")) * 2
"""Subset and genre of the rows without audio; FMA's larger subsets hold more genres, and rows without one."""

# fmt: off
COLUMNS = tuple((group, name) for group, names in {
    "album": "comments date_created date_released engineer favorites id information listens producer tags title "
             "tracks type",
    "artist": "active_year_begin active_year_end associated_labels bio comments date_created favorites id latitude "
              "location longitude members name related_projects tags website wikipedia_page",
    "set": "split subset",
    "track": "bit_rate comments composer date_created date_recorded duration favorites genre_top genres genres_all "
             "information interest language_code license listens lyricist number publisher tags title",
}.items() for name in names.split())
"""The 52 columns of FMA's tracks.csv: the first two of its three header rows."""
# fmt: on


@dataclass(frozen=True)
class Genre:
    """How a genre sounds. A pattern has a sign a sixteenth, ``x`` strikes, and repeats until the bar is full."""

    name: str
    bpm: float
    bar: int  # sixteenths: 16 in common time, 12 in a waltz
    scale: str  # semitones above the root
    degrees: str  # of the chord of each bar
    root: int  # MIDI note; the bass lies an octave below, the lead an octave above
    chords: str  # patterns from here ...
    bass: str
    kick: str
    snare: str
    hat: str  # ... to here
    lead: float  # probability that a note starts at an eighth
    rolloff: float  # harmonic h has amplitude h ** -rolloff
    attack: float  # seconds
    decay: float  # seconds
    drive: float = 0.0  # gain into a tanh; 0 is clean
    odd: bool = False  # odd harmonics only: hollow, as a square wave


MAJOR, MINOR, PENTATONIC, PHRYGIAN = "0 2 4 5 7 9 11", "0 2 3 5 7 8 10", "0 3 5 7 10", "0 1 3 5 7 8 10"
ONCE, BACK, OFF = "x---------------", "----x---", "--x-"  # a bar's first beat, the even beats, between beats

# fmt: off
GENRES = (
    Genre("Ambient", 70, 16, PENTATONIC, "0320", 57, ONCE, "", "", "", "", 0.25, 2.2, 0.7, 3.0),
    Genre("Chiptune", 140, 16, MAJOR, "0453", 60, "x-", "x-", "x-------", BACK, OFF, 0.8, 1.0, 0.002, 0.12, odd=True),
    Genre("Drone", 60, 16, PHRYGIAN, "0010", 45, ONCE, ONCE, "", "", "", 0.05, 1.4, 0.9, 5.0, drive=1.5),
    Genre("Dub", 74, 16, MINOR, "0033", 55, BACK, "x--x--x-x--x----", "--------x-------", "--------x-------", OFF,
          0.15, 1.6, 0.005, 0.15),
    Genre("March", 112, 16, MAJOR, "0350", 58, BACK, "x-------", "x-------", "x---x-xx", "", 0.6, 1.3, 0.03, 0.35),
    Genre("Metal", 160, 16, PHRYGIAN, "0015", 45, "x-xx", "x-xx", "x-", BACK, "x---", 0.3, 1.0, 0.003, 0.15, drive=5.0),
    Genre("Techno", 128, 16, MINOR, "0000", 52, "--x--x--", OFF, "x---", BACK, OFF, 0.2, 1.2, 0.004, 0.14, drive=1.2),
    Genre("Waltz", 150, 12, MAJOR, "0341", 58, "----x---x---", ONCE, ONCE, "----x---x---", "", 0.5, 1.5, 0.03, 0.4),
)
# fmt: on
GENRE_IDS = {name: number for number, name in enumerate(("", *(genre.name for genre in GENRES), "Choral"), start=1)}


@dataclass(frozen=True)
class Clip:
    """One row of subset small and the file it stands for."""

    track_id: int
    genre: Genre
    artist_id: int
    split: str
    seconds: float
    broken: Reason | None = None

    @property
    def path(self) -> str:
        """Relative to the root of the set."""
        return f"fma_small/{self.track_id // 1000:03d}/{self.track_id:06d}.mp3"


@dataclass(frozen=True)
class ToySummary:
    """What was made: number of clips (rows of subset small), genres, reason → path of broken clips, folder."""

    clips: int
    genres: list[str]
    broken: dict[str, str]
    root: str


def make(out: Path, *, clips_per_genre: int = 12, seed: int = 0) -> ToySummary:
    """Generate the set in a new folder: ``OUT/fma_small/NNN/NNNNNN.mp3`` and ``OUT/fma_metadata/tracks.csv``.

    Parameters
    ----------
    out
        A folder that is not there yet, or is empty. It appears under its name only when it is complete.
    clips_per_genre
        At least 3, one for each split; with 3, the genre of the broken clip has no sound training clip.
    seed
        The same seed and number of clips give the same bytes in every file.

    Returns
    -------
    ToySummary
        Clips, genres, broken clips and folder; ``dataclasses.asdict`` of it is plain JSON.

    Raises
    ------
    InputError
        An argument cannot be used; nothing was written.
    RunError
        Writing failed on the way, as on a full disk; nothing is left behind.
    """
    if not 3 <= clips_per_genre <= 10_000:
        raise InputError(f"--clips-per-genre {clips_per_genre}: give 3 (one for each split) to 10000")
    if seed < 0:
        raise InputError(f"--seed {seed} is negative: give 0 or more")
    root, partial = _claim(out)
    clips = plan(clips_per_genre, seed)
    try:
        _write_audio(clips, partial, seed)
        _write_tracks(clips, partial / "fma_metadata" / "tracks.csv", seed)
        partial.rename(root)
    except (OSError, soundfile.SoundFileError, BrokenExecutor) as error:
        raise RunError(f"{out}: cannot write the set: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    broken = {str(reason): clip.path for reason in BREAKAGE for clip in clips if clip.broken is reason}
    return ToySummary(len(clips), [genre.name for genre in GENRES], broken, str(root))


def _claim(out: Path) -> tuple[Path, Path]:
    """Check that ``out`` can be made; return its resolved path and a fresh folder beside it to work in."""
    try:
        root = out.resolve()
        if root.exists() and not root.is_dir():
            raise InputError(f"{out} is a file; choose another folder")
        if root.exists() and any(root.iterdir()):
            raise InputError(f"{out} is not empty; choose another folder")
        if root == Path.cwd():
            raise InputError(f"{out} is the current folder, which would be replaced; name a new one inside it")
        partial = root.with_name(f".{root.name}.{os.getpid()}.partial")
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}; choose another folder") from error
    return root, partial


# The plan: which clips there are, whose, in which split, and which of them are broken.


def plan(clips_per_genre: int, seed: int) -> list[Clip]:
    """All rows of subset small by track id; broken ones are training clips of different genres."""
    rng = np.random.default_rng([seed, 0])
    track_ids = iter(rng.permutation(np.arange(2, 156_000))[: clips_per_genre * len(GENRES)].tolist())
    seats = _seats(clips_per_genre)
    artists = 1 + max(artist for _, artist in seats)
    clips = [
        Clip(next(track_ids), genre, 1 + number * artists + artist, split, CLIP_SECONDS)
        for number, genre in enumerate(GENRES)
        for split, artist in seats
    ]
    count = min(len(BREAKAGE), max(1, len(clips) * 4 // 100))
    for reason, genre_number in zip(BREAKAGE[:count], rng.permutation(len(GENRES)), strict=False):
        index = int(genre_number) * clips_per_genre  # a genre's first clip is a training clip
        seconds = SHORT_SECONDS if reason is Reason.TOO_SHORT else CLIP_SECONDS
        clips[index] = replace(clips[index], broken=reason, seconds=seconds)
    return sorted(clips, key=lambda clip: clip.track_id)


def _seats(clips: int) -> list[tuple[str, int]]:
    """Split and artist of each clip of one genre: two clips a training artist, one of each held-out artist."""
    held = math.ceil(clips / 10)
    training = clips - 2 * held
    artists = max(math.ceil(training / 2), min(training, 2))
    seats = [("training", index % artists) for index in range(training)]
    return seats + [(SPLITS[1 + index // held], artists + index) for index in range(2 * held)]


# Files.


def _write_audio(clips: list[Clip], root: Path, seed: int) -> None:
    progress = Progress("toy", len(clips), "clips")
    pool = ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn"))
    try:
        for done in as_completed([pool.submit(_write_clip, clip, root, seed) for clip in clips]):
            done.result()
            progress.advance()
    finally:
        pool.shutdown(cancel_futures=True)


def _write_clip(clip: Clip, root: Path, seed: int) -> None:
    if clip.broken is Reason.MISSING:
        return
    path = root / clip.path
    path.parent.mkdir(parents=True, exist_ok=True)
    if clip.broken is Reason.EMPTY:
        path.write_bytes(b"")
    elif clip.broken is Reason.NOT_AUDIO:
        path.write_text("<html><body>404 Not Found</body></html>\n" * 100, encoding="utf-8")
    else:
        mp3 = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT"}
        soundfile.write(path, synthesise(clip, seed), SAMPLE_RATE, compression_level=KBPS_256, **mp3)


def _write_tracks(clips: list[Clip], path: Path, seed: int) -> None:
    rows = {clip.track_id: _row(clip.genre.name, clip.artist_id, clip.split, "small") for clip in clips}
    rng = np.random.default_rng([seed, 1])
    unused = (int(track_id) for track_id in rng.permutation(np.arange(2, 156_000)) if int(track_id) not in rows)
    first_artist = 1 + max(clip.artist_id for clip in clips)
    for number, (track_id, (subset, genre)) in enumerate(zip(unused, OTHER_SUBSETS, strict=False)):
        rows[track_id] = _row(genre, first_artist + number, SPLITS[number % 3], subset)
    path.parent.mkdir()
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["", *(group for group, _ in COLUMNS)])
        writer.writerow(["", *(name for _, name in COLUMNS)])
        writer.writerow(["track_id", *([""] * len(COLUMNS))])
        for track_id in sorted(rows):
            cells = rows[track_id] | {"track title": f"Piece {track_id}"}
            writer.writerow([track_id, *(cells.get(f"{group} {name}", "") for group, name in COLUMNS)])


def _row(genre: str, artist_id: int, split: str, subset: str) -> dict[str, str | int]:
    return {
        "album id": artist_id,
        "album title": f"Pieces, volume {artist_id}",
        "album type": "Album",
        "artist bio": f'<p>Artist {artist_id} is a "function",</p>\n<p>and plays what its seed says.</p>',
        "artist id": artist_id,
        "artist name": f"Artist {artist_id}",
        "artist tags": "[]",
        "set split": split,
        "set subset": subset,
        "track bit_rate": 256000,
        "track duration": round(CLIP_SECONDS),
        "track genre_top": genre,
        "track genres": f"[{GENRE_IDS[genre]}]",
        "track genres_all": f"[{GENRE_IDS[genre]}]",
        "track license": "CC0 1.0",
        "track tags": "[]",
    }


# Sound. A clip is a loop of four bars, repeated; whatever rings past the loop's end goes on at its start.


def synthesise(clip: Clip, seed: int) -> Signal:
    """The clip's audio, its artist's traits and its own notes drawn from the seed.

    Returns
    -------
    np.ndarray [shape=(n, 2), dtype=float32]
        Stereo at 44.1 kHz, within ±1.
    """
    genre = clip.genre
    artist, rng = np.random.default_rng([seed, 2, clip.artist_id]), np.random.default_rng([seed, 3, clip.track_id])
    key, tempo = int(artist.integers(-6, 6)), artist.uniform(0.92, 1.08)
    tone, brightness = artist.uniform(-0.45, 0.45), artist.uniform(-0.25, 0.25)
    hiss, echo = 10 ** artist.uniform(-4.0, -1.7), artist.uniform(0.0, 0.6)
    drum_mix, *mix = (10 ** artist.uniform([-0.45, -0.45, -0.45, -0.6], [0.3, 0.3, 0.3, 0.15])).tolist()
    loudness = 10 ** artist.uniform(-1.4, -0.7) * rng.uniform(0.8, 1.25)

    step = 32 * round(SAMPLE_RATE * 15 / (genre.bpm * tempo * rng.uniform(0.98, 1.02)) / 32)  # for a fast FFT
    genre = replace(genre, root=genre.root + key, rolloff=genre.rolloff + brightness)
    loop = _tones(genre, step, mix, rng)
    if genre.drive:
        loop = 0.5 * np.tanh(genre.drive * loop)
    loop = loop + drum_mix * _drums(genre, step, rng)
    loop = loop + echo * np.roll(loop, 3 * step) + echo**2 * np.roll(loop, 6 * step)
    loop = _tilt(loop, tone)
    loop *= loudness / np.sqrt(np.mean(loop**2))

    length = round(clip.seconds * SAMPLE_RATE)
    mono = np.resize(np.roll(loop, int(rng.integers(len(loop)))), length)
    mono = mono + loudness * hiss * rng.standard_normal(length, dtype=np.float32)
    return np.repeat(np.clip(mono, -1, 1).astype(np.float32)[:, None], 2, axis=1)


def _tones(genre: Genre, step: int, mix: list[float], rng: np.random.Generator) -> Signal:
    """Chords and bass, bar by bar, and a lead that walks up and down the scale."""
    loop: Signal = np.zeros(BARS * genre.bar * step)
    chord_mix, bass_mix, lead_mix = mix
    for bar, degree in enumerate(map(int, genre.degrees)):
        chord = (_note(genre, degree, 0) + _note(genre, degree + 2, 0) + _note(genre, degree + 4, 0)) / 3
        _strike(loop, chord_mix * chord, genre.chords, genre.bar, bar, step)
        _strike(loop, bass_mix * _note(genre, degree, -12), genre.bass, genre.bar, bar, step)
    degree = 0
    for start in range(0, len(loop), 2 * step):
        degree = min(max(degree + int(rng.integers(-2, 3)), -3), 7)
        if rng.random() < genre.lead:
            _add(loop, lead_mix * _note(genre, degree, 12), start)
    return loop


def _drums(genre: Genre, step: int, rng: np.random.Generator) -> Signal:
    loop: Signal = np.zeros(BARS * genre.bar * step)
    t = np.arange(SAMPLE_RATE // 3) / SAMPLE_RATE
    noise = rng.standard_normal(len(t))
    kick = np.sin(2 * np.pi * (50 * t + 4 * (1 - np.exp(-30 * t)))) * np.exp(-t / 0.12)
    snare = (0.4 * noise + 0.5 * np.sin(2 * np.pi * 190 * t)) * np.exp(-t / 0.07)
    hat = 0.2 * np.diff(noise, prepend=0.0) * np.exp(-t / 0.025)
    for bar in range(BARS):
        for sound, pattern in ((kick, genre.kick), (snare, genre.snare), (hat, genre.hat)):
            _strike(loop, sound, pattern, genre.bar, bar, step)
    return loop


def _note(genre: Genre, degree: int, transpose: int) -> Signal:
    """One note of the genre's timbre and envelope, read from a table of one period."""
    scale = [int(semitone) for semitone in genre.scale.split()]
    octave, place = divmod(degree, len(scale))
    hertz = 440 * 2 ** ((genre.root + transpose + 12 * octave + scale[place] - 69) / 12)
    harmonics = np.arange(1, max(2, min(40, int(16000 / hertz))))
    spectrum = np.zeros(TABLE // 2 + 1, np.complex64)
    spectrum[harmonics] = -1j * harmonics**-genre.rolloff * (harmonics % 2 if genre.odd else 1)
    table = np.fft.irfft(spectrum, TABLE) * TABLE / 4
    samples = np.arange(round(SAMPLE_RATE * min(6.0, genre.attack + 4 * genre.decay)))
    t = samples.astype(np.float32) / SAMPLE_RATE
    envelope = (1 - np.exp(-t / genre.attack)) * np.exp(-t / genre.decay) * (1 - t / t[-1])
    wave: Signal = table[(samples * (hertz * TABLE / SAMPLE_RATE)).astype(np.int64) & (TABLE - 1)]
    wave *= envelope
    return wave


def _strike(loop: Signal, sound: Signal, pattern: str, length: int, bar: int, step: int) -> None:
    """Add ``sound`` wherever the pattern, repeated over this bar's ``length`` sixteenths, has an ``x``."""
    for index in range(length if pattern else 0):
        if pattern[index % len(pattern)] == "x":
            _add(loop, sound, (bar * length + index) * step)


def _add(loop: Signal, sound: Signal, start: int) -> None:
    """Add ``sound`` to ``loop`` in place; what goes past the end goes on at the beginning."""
    sound = sound[: len(loop)]
    head = min(len(sound), len(loop) - start)
    loop[start : start + head] += sound[:head]
    loop[: len(sound) - head] += sound[head:]


def _tilt(loop: Signal, exponent: float) -> Signal:
    """Multiply the spectrum by (f / 1 kHz) ** exponent, level below 60 Hz: an exponent of 1 is 6 dB an octave."""
    hertz = np.fft.rfftfreq(len(loop), 1 / SAMPLE_RATE)
    gain = (np.maximum(hertz, 60) / 1000) ** exponent
    tilted: Signal = np.fft.irfft(np.fft.rfft(loop) * gain, len(loop))
    return tilted
