"""Listening to a file of any length, in pieces as long as the clips that the model was trained on.

The first piece gives exactly the feature that preprocessing makes of the file.

Shape suffixes: P pieces, K windows of a piece, F mel bands, T frames, G genres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch

from mgc.audio import decode as audio
from mgc.audio.logmel import feature
from mgc.core.errors import ClipError, Reason
from mgc.features.shards import is_damaged
from mgc.model.inference import batch_size, heard

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import BinaryIO

    from numpy.typing import NDArray
    from torch import Tensor

    from mgc.audio.logmel import LogMelSpec
    from mgc.library.genre_model import GenreModel

MIN_REST = 0.5
"""A last piece with less audio than this share of a full one is left out, unless it is the only one, which is said."""


@dataclass(frozen=True)
class Piece:
    """A stretch of a file, as long as a clip."""

    start: float
    """Seconds from the file's beginning."""
    seconds: float
    """Of audio that is in it; the rest is silence."""
    mel_FT: NDArray[np.float16]
    """Its z-scored log-Mel spectrogram [shape=(F, T)]."""


@dataclass
class Recording:
    """A file while it is listened to."""

    file: BinaryIO
    """Open for reading, with a file descriptor."""
    spec: LogMelSpec
    """The log-Mel recipe of the model."""
    seconds: float = 0.0
    """Of audio that was decoded so far."""
    warnings: list[str] = field(default_factory=list)
    """After the last piece: why what is said of the file is worth less."""

    def pieces(self) -> Iterator[Piece]:
        """Decode the file, piece by piece, so that memory does not grow with it.

        Raises
        ------
        ClipError
            The file gives no audio, or breaks on the way.
        """
        spec = self.spec
        for piece in audio.windows(self.file, sample_rate=spec.sample_rate, seconds=spec.seconds):
            if piece.seconds == 0:
                raise ClipError(Reason.TOO_SHORT, "no audio came out", 0.0)
            start = self.seconds
            self.seconds += piece.seconds
            if not start or piece.seconds >= MIN_REST * spec.seconds:
                yield Piece(start, piece.seconds, feature(piece.samples, spec).z_FT)
        if self.seconds < MIN_REST * spec.seconds:
            self.warnings.append(f"only {self.seconds:.2g} s of audio, the model has learnt from {spec.seconds:g} s")
        promised = audio.promised_seconds(self.file, self.seconds)
        if is_damaged(self.seconds, promised):
            of = f" of {promised:.1f}" if promised < math.inf else ""
            self.warnings.append(f"damaged, {self.seconds:.1f}{of} s of audio came out")
            self.warnings += filter(None, [audio.why_short(self.file, promised)])


@dataclass(frozen=True)
class Window:
    """A stretch of a file that the model hears at a time."""

    start: float
    """Seconds from the file's beginning."""
    end: float
    """Seconds; at most the file's end."""
    probabilities_G: NDArray[np.float64]
    """Calibrated genre probabilities [shape=(G,)]."""


@dataclass(frozen=True)
class Answer:
    """What a model says of a file."""

    probabilities_G: NDArray[np.float64]
    """Calibrated genre probabilities [shape=(G,)]: the mean over the pieces."""
    windows: tuple[Window, ...]
    """The same of each stretch that the model hears at a time: 3 s of ``short_chunk``, a whole piece of others."""


def answer(model: GenreModel, pieces: Iterable[Piece]) -> Answer:
    """Say what genre a file is of, piece by piece.

    Parameters
    ----------
    model
        The model; its network may be on a GPU.
    pieces
        The file's pieces, at least one, for instance from ``Recording.pieces``, whose errors are raised here.
    """
    (found,) = answers(model, [pieces])
    return found


def answers(model: GenreModel, files: Iterable[Iterable[Piece]]) -> list[Answer]:
    """As ``answer``, of several files, whose pieces share the network's batches.

    Parameters
    ----------
    model
        The model; its network may be on a GPU.
    files
        The pieces of each file, at least one.
    """
    network, spec = model.network, model.card.spec
    second = spec.sample_rate / spec.hop_length
    starts = network.starts(spec.shape[1])
    length = (network.window or spec.shape[1]) / second if len(starts) > 1 else spec.seconds
    sums: list[NDArray[np.float64]] = []
    counts: list[int] = []
    windows: list[list[Window]] = []
    queue: list[tuple[int, float, float]] = []

    def flow() -> Iterator[NDArray[np.float16]]:
        for number, pieces in enumerate(files):
            sums.append(np.zeros(len(model.card.genres)))
            counts.append(0)
            windows.append([])
            for piece in pieces:
                queue.append((number, piece.start, piece.start + piece.seconds))
                yield piece.mel_FT

    device = next(network.parameters()).device
    for logits_BG, logits_KBG in heard(network, _batches(flow(), batch_size(device))):
        clips_BG, windows_KBG = (model.calibration(each.softmax(-1).cpu().numpy()) for each in (logits_BG, logits_KBG))
        for row, (number, start, end) in enumerate(queue[: len(clips_BG)]):
            sums[number] += clips_BG[row]
            counts[number] += 1
            for first, probabilities_G in zip(starts, windows_KBG[:, row], strict=True):
                begin = start + first / second
                if begin < end or not first:  # the rest of a piece may be silence
                    windows[number].append(Window(begin, min(begin + length, end), probabilities_G))
        del queue[: len(clips_BG)]
    return [Answer(total_G / count, tuple(its)) for total_G, count, its in zip(sums, counts, windows, strict=True)]


def _batches(mels: Iterator[NDArray[np.float16]], size: int) -> Iterator[Tensor]:
    while taken := list(islice(mels, size)):
        yield torch.from_numpy(np.stack(taken))
