"""The command ``mgc predict``: the genre of any audio file, of any length.

A file is cut into windows as long as the clips the model was trained on; the genre probabilities of the windows are
averaged. The first window gives exactly the feature that preprocessing makes of the file.

Shape suffixes: B windows in a batch, F mel bands, T frames, G genres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from mgc.audio import decode as audio
from mgc.audio.logmel import feature
from mgc.audio.quiet import quiet
from mgc.core.errors import ClipError, InputError, Reason, RunError, StoreError
from mgc.core.results import Result
from mgc.core.storage import URI, Folder
from mgc.features.shards import is_damaged
from mgc.model import checkpoint
from mgc.model.cnn import together
from mgc.model.device import best_device, prepare
from mgc.model.inference import batch_size, logits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from mgc.core.errors import MgcError
    from mgc.model.checkpoint import Card
    from mgc.tracking.runs import RunLike

    class HasCheckpoint(Protocol):
        """A result that knows its checkpoint: of a training."""

        @property
        def checkpoint(self) -> str | Path:
            """The checkpoint's folder."""


MIN_REST = 0.5
"""A last window with less audio than this share of a full one is left out, unless it is the only one, which is said."""
NAMED = 5
"""The most files that an error names."""


@dataclass(frozen=True)
class ClipPrediction:
    """The genre of one audio file."""

    path: str
    genre: str
    """The most probable one."""
    probabilities: dict[str, float]
    """Of each genre."""
    warning: str | None = None
    """Why this is worth less than others: the file is much shorter than what the model has learnt from, or damaged."""


@dataclass(frozen=True)
class NoPrediction:
    """An audio file that has no genre."""

    path: str
    why: str
    """Reason and detail, as in a feature set's quarantine; or that its store does not answer."""


@dataclass(frozen=True)
class ClipPredictions(Result):
    """The genres of some audio files, in the order that they were given."""

    clips: tuple[ClipPrediction, ...]
    failed: tuple[NoPrediction, ...] = ()
    """The files among them that give no prediction."""

    def problem(self) -> MgcError | None:
        """A RunError that names the files without a prediction, if there are any."""
        return RunError(self._failures()) if self.failed else None

    def _failures(self) -> str:
        named = "; ".join(f"{each.path}: {each.why}" for each in self.failed[:NAMED])
        more = f"; and {len(self.failed) - NAMED} more" if len(self.failed) > NAMED else ""
        return f"{len(self.failed)} of {len(self.clips) + len(self.failed)} files give no prediction: {named}{more}"

    def __str__(self) -> str:
        """Return a line for each file: its genre, and how probable that is, or why it has none."""
        lines = [
            (
                clip.path,
                f"{clip.genre} ({clip.probabilities[clip.genre]:.0%}){f', {clip.warning}' * bool(clip.warning)}",
            )
            for clip in self.clips
        ]
        lines += [(each.path, f"no prediction: {each.why}") for each in self.failed]
        width = max((len(path) for path, _ in lines), default=0)
        return "\n".join(f"{path:<{width}}  {said}" for path, said in lines)


def predict(model: str | Path | HasCheckpoint | RunLike, clips: Sequence[str | Path]) -> ClipPredictions:
    """Predict the genres of audio files, on the GPU if there is one.

    Parameters
    ----------
    model : str, Path, or object with ``checkpoint`` or ``run_id``
        A checkpoint folder, or the result of a training that has one; the id of an MLflow run with a checkpoint, or of
        a parent run of seeds or folds (the mean of its models' probabilities), or a result that knows it; or
        ``"champion"``, the model that was promoted.
    clips : sequence of str or Path
        MP3, WAV, FLAC or Ogg files, by path or URI.

    Returns
    -------
    ClipPredictions
        ``clips``: for each file ``path``, ``genre`` and ``probabilities``; ``failed``: those that give none, and why.

    Raises
    ------
    InputError
        There is no such model, no file is named, or none gives a prediction; the message names them.
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
    with quiet():
        answers = [_predict_clip(network, card, str(clip), batch_size(device)) for clip in clips]
    result = ClipPredictions(
        tuple(answer for answer in answers if isinstance(answer, ClipPrediction)),
        tuple(answer for answer in answers if isinstance(answer, NoPrediction)),
    )
    if not result.clips:
        raise InputError(str(result.problem()))
    return result


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


def _predict_clip(network: nn.Module, card: Card, clip: str, size: int) -> ClipPrediction | NoPrediction:
    total_G, count = np.zeros(len(card.genres)), 0
    shown = str(Folder(clip)) if URI.match(clip) else clip  # without a password
    warnings: list[str] = []
    try:
        for logits_BG in logits(network, _batches(_windows(clip, card, warnings), size)):
            total_G += logits_BG.softmax(1).sum(0, dtype=torch.float64).cpu().numpy()
            count += len(logits_BG)
    except (ClipError, InputError, StoreError) as error:  # its own, its URI's, its store's: the others are not at fault
        return NoPrediction(shown, str(error))
    mean_G = total_G / count
    probabilities = {genre: float(p) for genre, p in zip(card.genres, mean_G, strict=True)}
    return ClipPrediction(shown, card.genres[int(mean_G.argmax())], probabilities, "; ".join(warnings) or None)


def _batches(windows: Iterator[NDArray[np.float16]], size: int) -> Iterator[Tensor]:
    while taken := list(islice(windows, size)):
        yield torch.from_numpy(np.stack(taken))


def _windows(clip: str, card: Card, warnings: list[str]) -> Iterator[NDArray[np.float16]]:
    """Features of a file, window by window [shape=(F, T)]; at its end ``warnings`` gets what is wrong with it."""
    spec, heard = card.spec, 0.0
    folder, name = Folder.at(clip).parent
    with audio.open_clip(folder, name) as file:
        for index, piece in enumerate(audio.windows(file, sample_rate=spec.sample_rate, seconds=spec.seconds)):
            if piece.seconds == 0:
                raise ClipError(Reason.TOO_SHORT, "no audio came out", 0.0)
            heard += piece.seconds
            if not index or piece.seconds >= MIN_REST * spec.seconds:
                yield feature(piece.samples, spec).z_FT
        if heard < MIN_REST * spec.seconds:
            warnings.append(f"only {heard:.2g} s of audio, the model has learnt from {spec.seconds:g} s")
        promised = audio.promised_seconds(file, heard)
        if is_damaged(heard, promised):
            of = f" of {promised:.1f}" if promised < math.inf else ""
            warnings.append(f"damaged, {heard:.1f}{of} s of audio came out")
            warnings += filter(None, [audio.why_short(file, promised)])
