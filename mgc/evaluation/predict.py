"""The command ``mgc predict``: the genre of any audio file, of any length.

A file is cut into windows as long as the clips the model was trained on; the genre probabilities of the windows are
averaged. The first window gives exactly the feature that preprocessing makes of the file.

Shape suffixes: B windows in a batch, F mel bands, T frames, G genres.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from mgc.audio import decode as audio
from mgc.audio.logmel import feature
from mgc.core.errors import ClipError, InputError, Reason
from mgc.core.results import Result
from mgc.core.storage import URI, Folder
from mgc.model import checkpoint
from mgc.model.cnn import together
from mgc.model.device import best_device, prepare
from mgc.model.inference import batch_size, logits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from mgc.model.checkpoint import Card
    from mgc.tracking.runs import RunLike

    class HasCheckpoint(Protocol):
        """A result that knows its checkpoint: of a training."""

        @property
        def checkpoint(self) -> str | Path:
            """The checkpoint's folder."""


MIN_REST = 0.5
"""A last window with less audio than this share of a full one is left out, unless it is the only one."""


@dataclass(frozen=True)
class ClipPrediction:
    """The genre of one audio file."""

    path: str
    genre: str
    """The most probable one."""
    probabilities: dict[str, float]
    """Of each genre."""


@dataclass(frozen=True)
class ClipPredictions(Result):
    """The genres of some audio files, in the order that they were given."""

    clips: tuple[ClipPrediction, ...]

    def __str__(self) -> str:
        """Return a line for each file: its genre, and how probable that is."""
        width = max((len(clip.path) for clip in self.clips), default=0)
        return "\n".join(
            f"{clip.path:<{width}}  {clip.genre} ({clip.probabilities[clip.genre]:.0%})" for clip in self.clips
        )


def predict(model: str | Path | HasCheckpoint | RunLike, clips: Sequence[str | Path]) -> ClipPredictions:
    """Predict the genres of audio files, on the GPU if there is one.

    Parameters
    ----------
    model : str, Path, or object with ``checkpoint`` or ``run_id``
        A checkpoint folder, or the result of a training that has one; the id of an MLflow run with a checkpoint, or of
        a parent run of seeds or folds (the mean of its models' probabilities), or a result that knows it; or
        ``"champion"``, the model that was promoted.
    clips : sequence of str or Path
        MP3, WAV, FLAC or Ogg files.

    Returns
    -------
    ClipPredictions
        ``clips``: for each file ``path``, ``genre`` and ``probabilities``.

    Raises
    ------
    InputError
        There is no such model, no file is named, or one is not audio; the message names it.
    RunError
        The MLflow store does not answer.

    Examples
    --------
    >>> predict("champion", ["song.mp3"]).clips[0].genre  # doctest: +SKIP
    'Folk'
    """
    if not clips:
        raise InputError("`clips`: name at least one audio file")
    network, card = load_model(model)
    device = best_device()
    prepare(device)
    network.to(device)
    return ClipPredictions(tuple(_predict_clip(network, card, Path(clip), batch_size(device)) for clip in clips))


def load_model(model: str | Path | HasCheckpoint | RunLike) -> tuple[nn.Module, Card]:
    """Load a network, or several as one, and its card.

    Parameters
    ----------
    model
        As ``predict`` takes it.

    Returns
    -------
    tuple of torch.nn.Module and Card
        The network, on the CPU, in evaluation mode; of several models the first one's card.

    Raises
    ------
    InputError
        There is no such model.
    """
    name = str(getattr(model, "checkpoint", None) or getattr(model, "run_id", None) or model)
    if URI.match(name) or Path(name).is_dir():
        return checkpoint.read(name)
    from mgc.evaluation.trained_models import read_each, read_models
    from mgc.tracking import registry  # a folder needs no MLflow
    from mgc.tracking.runs import Run
    from mgc.tracking.store import existing_store

    uri = existing_store(Folder.at(Path.cwd()))
    if name == registry.CHAMPION:
        version = registry.champion(uri)
        if version is None:
            raise InputError(f"`model={name}`: no run is champion yet; promote an evaluated one («mgc promote RUN»)")
        models = read_each([Run.find(uri, run_id) for run_id in version.models])
    else:
        models = read_models(Run.find(uri, name))
    return together([each.model for each in models]), models[0].card


def _predict_clip(network: nn.Module, card: Card, path: Path, size: int) -> ClipPrediction:
    total_G, count = np.zeros(len(card.genres)), 0
    try:
        for logits_BG in logits(network, _batches(_windows(path, card), size)):
            total_G += logits_BG.softmax(1).sum(0, dtype=torch.float64).cpu().numpy()
            count += len(logits_BG)
    except ClipError as error:
        raise InputError(f"{path}: {error}") from None
    mean_G = total_G / count
    probabilities = {genre: float(p) for genre, p in zip(card.genres, mean_G, strict=True)}
    return ClipPrediction(str(path), card.genres[int(mean_G.argmax())], probabilities)


def _batches(windows: Iterator[NDArray[np.float16]], size: int) -> Iterator[Tensor]:
    while taken := list(islice(windows, size)):
        yield torch.from_numpy(np.stack(taken))


def _windows(path: Path, card: Card) -> Iterator[NDArray[np.float16]]:
    """Features of a file, window by window [shape=(F, T)]."""
    spec = card.spec
    folder, name = Folder.at(path).parent
    with audio.open_clip(folder, name) as file:
        for index, piece in enumerate(audio.windows(file, sample_rate=spec.sample_rate, seconds=spec.seconds)):
            if piece.seconds == 0:
                raise ClipError(Reason.TOO_SHORT, "no audio came out", 0.0)
            if index and piece.seconds < MIN_REST * spec.seconds:
                return
            yield feature(piece.samples, spec).z_FT
