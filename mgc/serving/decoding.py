"""From a request's bytes to what the network hears, in a child process that may crash, hang or run out of memory.

Shape suffixes: F mel bands, T frames, W columns of a picture.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

from mgc.audio.logmel import standardize
from mgc.core.errors import ClipError, Reason
from mgc.features import child_process
from mgc.features.decoding import CLIP_MEMORY, outcome_of
from mgc.library.listening import Recording

if TYPE_CHECKING:
    from typing import BinaryIO

    from mgc.audio.logmel import LogMelSpec
    from mgc.library.listening import Piece
    from mgc.serving.limits import Limits

COLUMNS = 1200
"""The most columns of a picture; one has the mean of its frames."""
DEEPEST = 2.5
"""Standard deviations from the mean that a picture's 0 and 255 stand for."""


@dataclass(frozen=True)
class Decoded:
    """A file as the network hears it."""

    pieces: tuple[Piece, ...]
    seconds: float
    """Of audio in it; where it is more than the limit, decoding ended there."""
    warning: str | None
    """Why what is said of it is worth less."""
    spectrogram: dict[str, Any] | None
    """Its picture, if it was asked for: see ``picture``."""


def decode(file: BinaryIO, spec: LogMelSpec, limits: Limits, *, spectrogram: bool) -> Decoded:
    """Decode a file in a child process.

    Parameters
    ----------
    file
        Open for reading, with a file descriptor.
    spec
        The log-Mel recipe of the model.
    limits
        Its ``decode_timeout`` and ``max_seconds``.
    spectrogram
        Whether the picture is wanted.

    Returns
    -------
    Decoded
        Without pieces where it is longer than ``max_seconds``.

    Raises
    ------
    ClipError
        The file gives no audio, or its process crashed or took too long.
    """
    call = partial(_decode, file, spec, limits.max_seconds, spectrogram)
    (outcome,) = child_process.each(outcome_of, [call], seconds=limits.decode_timeout, memory=CLIP_MEMORY)
    if isinstance(outcome, child_process.Lost):
        raise ClipError(Reason(outcome.how), outcome.detail)
    if isinstance(outcome, ClipError):
        raise outcome
    return outcome


def _decode(file: BinaryIO, spec: LogMelSpec, most: float, spectrogram: bool) -> Decoded:
    recording = Recording(file, spec)
    pieces = list(takewhile(lambda _: recording.seconds <= most, recording.pieces()))
    if recording.seconds > most:
        return Decoded((), recording.seconds, None, None)
    warning = "; ".join(recording.warnings) or None
    return Decoded(tuple(pieces), recording.seconds, warning, picture(pieces, spec) if spectrogram else None)


def picture(pieces: list[Piece], spec: LogMelSpec) -> dict[str, Any]:
    """Reduce the spectrogram that the network hears to a small picture.

    Parameters
    ----------
    pieces
        Of a file, at least one.
    spec
        Their log-Mel recipe.

    Returns
    -------
    dict
        ``width`` and ``height`` in pixels; ``end``: seconds at its right edge; ``pixels``: base64 of a byte a pixel,
        row by row, the lowest band last. 0 and 255 are 2.5 standard deviations below and above the mean of a piece.
    """
    frames = [min(math.ceil(each.seconds * spec.sample_rate / spec.hop_length), spec.shape[1]) for each in pieces]
    z_FT = [each.mel_FT.astype(np.float32) for each in pieces]
    if spec.scaling != "zscore":
        z_FT = [standardize(each_FT)[0] for each_FT in z_FT]
    mel_FT = np.concatenate([each_FT[:, :count] for each_FT, count in zip(z_FT, frames, strict=True)], axis=1)
    width = min(mel_FT.shape[1], COLUMNS)
    edges = np.linspace(0, mel_FT.shape[1], width + 1).astype(int)
    mean_FW = np.add.reduceat(mel_FT, edges[:-1], axis=1) / np.diff(edges)
    bytes_FW = np.clip((mean_FW / DEEPEST + 1) * 127.5, 0, 255).astype(np.uint8)[::-1]
    pixels = base64.b64encode(bytes_FW.tobytes()).decode()
    end = pieces[-1].start + pieces[-1].seconds
    return {"width": width, "height": len(bytes_FW), "end": round(end, 3), "pixels": pixels}
