"""From an audio file to mono samples at one rate.

soundfile (libsndfile, libmpg123) decodes, a dot product mixes down, soxr's HQ mode resamples: what
``librosa.load(path, sr=22050, duration=29.9)`` does when no other backend is installed, without the third of its time
that ``librosa.to_mono`` costs. Whatever is wrong with a file becomes a ``ClipError`` with a reason of the fixed list.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import soundfile
import soxr

from mgc.errors import ClipError, Reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

DECODER = f"soundfile {soundfile.__version__} ({soundfile.__libsndfile_version__}), soxr {soxr.__version__}"
"""What turns bytes into samples; part of a feature set's fingerprint, because another version may differ."""


class Audio(NamedTuple):
    """Mono samples and how much audio they stand for."""

    samples: NDArray[np.float32]
    """Samples in nominal ±1 [shape=(n,)]; MP3s of loud masters go beyond."""
    seconds: float
    """Length of the audio that was decoded, before resampling."""


def load(path: str | Path, *, sample_rate: int, seconds: float) -> Audio:
    """Decode the first ``seconds`` of a file to mono at ``sample_rate``.

    Parameters
    ----------
    path
        Any file that libsndfile reads: MP3, WAV, FLAC, Ogg; the content decides, not the suffix.
    sample_rate
        Hz of the result.
    seconds
        The most to decode; the result is shorter when the file is, never padded here.

    Raises
    ------
    ClipError
        ``missing``, ``unreadable``, ``empty``, ``not_audio``, ``decode_error`` or ``not_finite``.

    See Also
    --------
    windows : the whole file, piece by piece.
    """
    return next(windows(path, sample_rate=sample_rate, seconds=seconds))


def windows(path: str | Path, *, sample_rate: int, seconds: float) -> Iterator[Audio]:
    """Decode a file of any length in successive pieces of ``seconds``, the last one shorter.

    Each piece is resampled by itself, so the first is exactly what ``load`` gives, and memory does not grow with the
    file. A file whose header promises audio but yields none gives one empty piece. Raises as ``load``.
    """
    _require_bytes(path)
    try:
        file = soundfile.SoundFile(path)
    except soundfile.LibsndfileError:  # whose own words are «File does not exist»
        raise ClipError(Reason.NOT_AUDIO, "no decoder recognises these bytes") from None
    with file:
        frames = int(seconds * file.samplerate)
        first = True
        while True:
            try:
                block_TC = file.read(frames, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                detail = f"{error.error_string} after {file.tell() / file.samplerate:.1f} s"
                raise ClipError(Reason.DECODE_ERROR, detail, file.tell() / file.samplerate) from None
            if len(block_TC) == 0 and not first:
                return
            yield _mono(block_TC, file.samplerate, sample_rate)
            first = False
            if len(block_TC) < frames:
                return


def _mono(block_TC: NDArray[np.float32], source_rate: int, sample_rate: int) -> Audio:
    channels = block_TC.shape[1]
    mono = block_TC[:, 0] if channels == 1 else block_TC @ np.full(channels, 1 / channels, np.float32)
    seconds = len(mono) / source_rate
    if not np.isfinite(mono).all():
        raise ClipError(Reason.NOT_FINITE, "decoded samples hold NaN or infinity", seconds)
    return Audio(soxr.resample(mono, source_rate, sample_rate, quality="HQ"), seconds)


def _require_bytes(path: str | Path) -> None:
    """Tell the plain reasons apart, which libsndfile calls «File does not exist» or «System error» alike."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise ClipError(Reason.MISSING, "no such file") from None
    except OSError as error:
        raise ClipError(Reason.UNREADABLE, error.strerror or str(error)) from None
    if not stat.S_ISREG(status.st_mode):
        raise ClipError(Reason.UNREADABLE, "not a regular file")
    if status.st_size == 0:
        raise ClipError(Reason.EMPTY, "0 bytes")
    if not os.access(path, os.R_OK):
        raise ClipError(Reason.UNREADABLE, "reading is not permitted")
