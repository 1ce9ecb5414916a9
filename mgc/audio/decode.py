"""From an audio file to mono samples at one sample rate.

soundfile (libsndfile, libmpg123) decodes, a dot product mixes down, soxr resamples in its HQ mode: the samples of
``librosa.load(path, sr=22050, duration=29.9)`` where librosa has no other backend, in less time (``librosa.to_mono``
alone is a third of it). A file that gives no samples raises ``ClipError`` with a reason of the fixed list.
"""

from __future__ import annotations

import errno
import math
import os
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
import soundfile
import soxr

from mgc.audio import mpeg_duration as mpeg
from mgc.audio.announced import announced_share
from mgc.core.errors import ClipError, Reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO

    from numpy.typing import NDArray

    from mgc.core.storage import Folder

DECODER = f"soundfile {soundfile.__version__} ({soundfile.__libsndfile_version__}), soxr {soxr.__version__}"
"""The decoder and its versions; part of a feature set's fingerprint, because another version may differ."""
OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors of opening a file that are the process's own: too many open files, no memory."""
LOUDEST = 1e6
"""Samples beyond this (120 dB above full scale) are no sound; unscaled 16-bit values, ±32,768, still are."""

UNKNOWN = (1 << 63) - 1
"""Frames of a file that does not say how many it has, by libsndfile: a FLAC that was written into a pipe."""


class Audio(NamedTuple):
    """A piece of decoded audio."""

    samples: NDArray[np.float32]
    """Mono samples, full scale at ±1 [shape=(n,)]; MP3s of loud masters exceed it."""
    seconds: float
    """Length of the piece, before resampling."""


class DecodedClip(NamedTuple):
    """The beginning of a file, decoded, and the length that the file promises."""

    samples: NDArray[np.float32]
    """Mono samples, full scale at ±1 [shape=(n,)]."""
    seconds: float
    """Length that was decoded, before resampling."""
    promised: float
    """Length that the file's headers and size promise, at most the length that was asked for. An Ogg file cut off
    does not say how long it was, and promises all that was asked for."""


def open_clip(folder: Folder, path: str) -> FileIO:
    """Open the file of a clip, and find out why if that fails, which libsndfile does not tell.

    Parameters
    ----------
    folder
        Where the collection's audio is.
    path
        The clip's path, relative to ``folder``.

    Returns
    -------
    FileIO
        Open for reading, with a file descriptor; it is the caller's to close.

    Raises
    ------
    ClipError
        ``missing``, ``unreadable`` or ``empty``.
    StoreError
        The object store did not answer: the clip is not at fault.
    OSError
        The process has too many open files or no memory: neither is it here.
    """
    try:
        file = folder.open(path)
    except FileNotFoundError:
        raise ClipError(Reason.MISSING, "no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        number, what = getattr(error, "errno", None), getattr(error, "strerror", None) or str(error)
        if number in OURS:
            raise
        if number == errno.EACCES:
            what = "reading is not permitted"
        raise ClipError(Reason.UNREADABLE, what.splitlines()[0]) from None
    if not file.read(1):
        file.close()
        raise ClipError(Reason.EMPTY, "0 bytes")
    return file


def load(file: BinaryIO, *, sample_rate: int, seconds: float) -> DecodedClip:
    """Decode the first ``seconds`` of a file to mono at ``sample_rate``.

    Parameters
    ----------
    file
        Open for reading, with a file descriptor, of any format that libsndfile reads: MP3, WAV, FLAC, Ogg …
    sample_rate
        Hz of the result.
    seconds
        The most to decode; of a shorter file the result is shorter (it is not padded here).

    Returns
    -------
    DecodedClip
        Samples [shape=(n,)], seconds decoded, seconds promised.

    Raises
    ------
    ClipError
        ``not_audio``, ``decode_error``, ``not_finite`` or ``too_loud``.

    See Also
    --------
    windows : the whole file, piece by piece.

    Examples
    --------
    >>> with open("song.mp3", "rb") as file:  # doctest: +SKIP
    ...     samples, seconds, promised = load(file, sample_rate=22_050, seconds=29.9)
    """
    sound = _sound(file)
    with sound:
        first = next(_pieces(sound, sample_rate, seconds))
        return DecodedClip(*first, _promised(sound, file, first.seconds, seconds))


def promised_seconds(file: BinaryIO, decoded: float) -> float:
    """Length that a whole file promises by its headers and size.

    Parameters
    ----------
    file
        As for ``load``.
    decoded
        Seconds that came out of it.

    Returns
    -------
    float
        Seconds, at least ``decoded``; infinity for an Ogg file that breaks off, which does not say how long it was.

    Raises
    ------
    ClipError
        ``not_audio``.
    """
    with _sound(file) as sound:
        return _promised(sound, file, decoded, math.inf)


def _promised(sound: _Sound, file: BinaryIO, decoded: float, most: float) -> float:
    promised = sound.frames / sound.samplerate if sound.frames < UNKNOWN else decoded
    if decoded < most and sound.format == "MP3":  # of which libsndfile may guess
        promised = mpeg.promised_seconds(file, most) or promised
    elif decoded < most:  # of which it may count what is there
        promised *= announced_share(file)
    return max(decoded, min(promised, most))


def why_short(file: BinaryIO, seconds: float) -> str:
    """Why decoding ended before the audio did, as far as the file shows.

    Parameters
    ----------
    file
        As for ``load``.
    seconds
        The most that was asked for.

    Returns
    -------
    str
        Empty where nothing is known. The decoder ends where an MP3 goes on at another sample rate or with other
        channels, as one that was joined of several does.
    """
    change = mpeg.change_of_format(file, seconds)
    return f"the MP3 is joined of parts that differ, {change}" if change else ""


def native_rate(file: BinaryIO) -> int:
    """The sample rate of a file in Hz; raises ``ClipError`` of reason ``not_audio``."""
    with _sound(file) as sound:
        return int(sound.samplerate)


def windows(file: BinaryIO, *, sample_rate: int, seconds: float) -> Iterator[Audio]:
    """Decode a file of any length in successive pieces of ``seconds``, the last one shorter.

    Each piece is resampled on its own, so that the first is exactly that of ``load`` and memory does not grow with the
    file.

    Parameters
    ----------
    file
        As for ``load``.
    sample_rate
        Hz of the pieces.
    seconds
        Length of each piece but the last.

    Yields
    ------
    Audio
        Samples [shape=(n,)] and seconds decoded; a single empty piece for a file whose header promises audio and which
        holds none.

    Raises
    ------
    ClipError
        As ``load``.
    """
    with _sound(file) as sound:
        yield from _pieces(sound, sample_rate, seconds)


class _Sound(soundfile.SoundFile):  # type: ignore[misc]
    """A file that is read in order."""

    def seekable(self) -> bool:
        """As soundfile says, which seeks after each read; where the length is unknown, that fails at the end."""
        return super().seekable() and self.frames < UNKNOWN  # type: ignore[no-any-return]


def _sound(file: BinaryIO) -> _Sound:
    file.seek(0)
    with suppress(soundfile.LibsndfileError):  # its message is «File does not exist»
        return _Sound(file.fileno(), closefd=False)
    if mpeg.begins(file):
        with suppress(soundfile.LibsndfileError):
            return _named_mp3(file)
    raise ClipError(Reason.NOT_AUDIO, "no decoder recognises these bytes")


def _named_mp3(file: BinaryIO) -> _Sound:
    """Open by a name: only behind ``.mp3`` libsndfile looks for MPEG frames that do not begin the file."""
    file.seek(0)  # on macOS the named file and this one have one position
    with tempfile.TemporaryDirectory() as folder:
        name = os.path.join(folder, "clip.mp3")
        os.symlink(f"/dev/fd/{file.fileno()}", name)
        return _Sound(name)


def _pieces(sound: _Sound, sample_rate: int, seconds: float) -> Iterator[Audio]:
    frames = int(seconds * sound.samplerate)
    first = True
    while True:
        try:
            block_TC = sound.read(frames, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            after = sound.tell() / sound.samplerate
            raise ClipError(Reason.DECODE_ERROR, f"{error.error_string} after {after:.1f} s", after) from None
        if len(block_TC) == 0 and not first:
            return
        yield _mono(block_TC, sound.samplerate, sample_rate)
        first = False
        if len(block_TC) < frames:
            return


def _mono(block_TC: NDArray[np.float32], source_rate: int, sample_rate: int) -> Audio:
    channels = block_TC.shape[1]
    mono = block_TC[:, 0] if channels == 1 else block_TC @ np.full(channels, 1 / channels, np.float32)
    seconds = len(mono) / source_rate
    loudest = float(np.abs(mono).max(initial=0.0))
    if not np.isfinite(loudest):
        raise ClipError(Reason.NOT_FINITE, "decoded samples hold NaN or infinity", seconds)
    if loudest > LOUDEST:
        raise ClipError(Reason.TOO_LOUD, f"samples of ±{loudest:.2g}, where ±1 is full scale", seconds)
    return Audio(soxr.resample(mono, source_rate, sample_rate, quality="HQ"), seconds)
