"""The sound of the synthetic set: eight invented genres, as data, and the synthesis of a clip.

A clip is a loop of four bars, repeated; notes that outlast the loop continue at its start. Genres differ in metre,
tempo, rhythm, chords, timbre and register; artists differ in key, tone, level, echo and hiss.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Signal: TypeAlias = npt.NDArray[np.floating[Any]]

SAMPLE_RATE = 44100
BARS = 4
TABLE = 2048
"""Samples of the wavetable, one period; a power of two, so that wrapping around is a bit mask."""


@dataclass(frozen=True)
class Genre:
    """How a genre sounds. A pattern has one character per sixteenth, ``x`` for a note, and repeats within the bar."""

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


def synthesise(genre: Genre, seconds: float, artist: np.random.Generator, rng: np.random.Generator) -> Signal:
    """Synthesise a clip.

    Parameters
    ----------
    genre
        How it sounds.
    seconds
        Its length.
    artist
        Draws the artist's traits: key, tempo, tone, level, echo, hiss.
    rng
        Draws what is the clip's own: its notes, and where in the loop it begins.

    Returns
    -------
    np.ndarray [shape=(n, 2), dtype=float32]
        Stereo at 44.1 kHz, within ±1.
    """
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

    length = round(seconds * SAMPLE_RATE)
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
