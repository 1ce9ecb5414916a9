"""From an audio file to mono samples at one rate.

soundfile (libsndfile, libmpg123) decodes, a dot product mixes down, soxr's HQ mode resamples: what
``librosa.load(path, sr=22050, duration=29.9)`` does when no other backend is installed, without the third of its time
that ``librosa.to_mono`` costs. Whatever is wrong with a file becomes a ``ClipError`` with a reason of the fixed list.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
import soundfile
import soxr

from mgc.audio import mpeg_duration as mpeg
from mgc.core.errors import ClipError, Reason, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO

    from numpy.typing import NDArray

    from mgc.core.storage import Folder

DECODER = f"soundfile {soundfile.__version__} ({soundfile.__libsndfile_version__}), soxr {soxr.__version__}"
"""What turns bytes into samples; part of a feature set's fingerprint, because another version may differ."""
OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors of opening a file that are no fault of the file."""
LOUDEST = 1e6
"""Samples beyond this (120 dB above full scale) are no sound; unscaled 16-bit values, ±32,768, still are."""


class Audio(NamedTuple):
    """Mono samples and how much audio they stand for."""

    samples: NDArray[np.float32]
    """Samples in nominal ±1 [shape=(n,)]; MP3s of loud masters go beyond."""
    seconds: float
    """Length of the audio that was decoded, before resampling."""


class Clip(NamedTuple):
    """The beginning of a file, and whether it is all that the file promises."""

    samples: NDArray[np.float32]
    """As ``Audio``'s [shape=(n,)]."""
    seconds: float
    """Length of the audio that was decoded, before resampling."""
    promised: float
    """Length that the file's headers and size promise, as far as it was asked for."""


def open_clip(folder: Folder, path: str) -> FileIO:
    """Open a clip's file, which lies at ``path`` in ``folder``.

    Raises
    ------
    ClipError
        ``missing``, ``unreadable`` or ``empty``, which libsndfile does not tell apart.
    OSError
        The object store did not answer, or the process has too many open files: no fault of the clip.
    """
    try:
        file = folder.open(path)
    except StoreError:
        raise
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


def load(file: BinaryIO, *, sample_rate: int, seconds: float) -> Clip:
    """Decode the first ``seconds`` of a file to mono at ``sample_rate``.

    Parameters
    ----------
    file
        A real file, open to be read, of any kind that libsndfile reads: MP3, WAV, FLAC, Ogg.
    sample_rate
        Hz of the result.
    seconds
        The most to decode; the result is shorter when the file is, never padded here.

    Raises
    ------
    ClipError
        ``not_audio``, ``decode_error``, ``not_finite`` or ``too_loud``.

    See Also
    --------
    windows : the whole file, piece by piece.
    """
    sound = _sound(file)
    with sound:
        first = next(_pieces(sound, sample_rate, seconds))
        promised = sound.frames / sound.samplerate
        if first.seconds < seconds and sound.format == "MP3":  # of which libsndfile may guess
            promised = mpeg.promised_seconds(file, seconds) or promised
    return Clip(*first, max(first.seconds, min(promised, seconds)))


def native_rate(file: BinaryIO) -> int:
    """The sample rate that a file has, in Hz; ClipError ``not_audio``."""
    with _sound(file) as sound:
        return int(sound.samplerate)


def windows(file: BinaryIO, *, sample_rate: int, seconds: float) -> Iterator[Audio]:
    """Decode a file of any length in successive pieces of ``seconds``, the last one shorter.

    Each piece is resampled by itself, so the first is exactly what ``load`` gives, and memory does not grow with the
    file. A file whose header promises audio but yields none gives one empty piece. Raises as ``load``.
    """
    with _sound(file) as sound:
        yield from _pieces(sound, sample_rate, seconds)


def _sound(file: BinaryIO) -> soundfile.SoundFile:
    file.seek(0)
    try:
        return soundfile.SoundFile(file.fileno(), closefd=False)
    except soundfile.LibsndfileError:  # whose own words are «File does not exist»
        raise ClipError(Reason.NOT_AUDIO, "no decoder recognises these bytes") from None


def _pieces(sound: soundfile.SoundFile, sample_rate: int, seconds: float) -> Iterator[Audio]:
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
