"""Predict the genre of any audio file, of any length.

A file is cut into windows as long as the clips the model was trained on; the genre probabilities of the windows are
averaged. The first window is exactly what preprocessing would have made of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mgc.audio import decode as audio
from mgc.audio.logmel import feature
from mgc.core.errors import ClipError, InputError, Reason
from mgc.core.storage import Folder
from mgc.model import checkpoint
from mgc.model.checkpoint import Card
from mgc.model.cnn import predict_logits, together

MIN_REST = 0.5
"""A last window with less audio than this share of a full one is left out, unless it is the only one."""


def predict(model: str, clips: Sequence[str | Path]) -> dict[str, Any]:
    """Predict the genres of audio files.

    Parameters
    ----------
    model
        A checkpoint folder, the id of an MLflow run that kept one, that of a parent run of seeds or folds (the mean of
        its models' probabilities), or ``champion`` (what ``mgc crown`` registered).
    clips
        Paths of MP3, WAV, FLAC or Ogg files.

    Returns
    -------
    dict
        ``clips``: for each, in the order given, ``path``, ``genre`` (the most probable) and ``probabilities``.

    Raises
    ------
    InputError
        There is no such model, or a file is not audio; the message names it.
    """
    network, card = load_model(model)
    return {"clips": [_predict_clip(network, card, Path(clip)) for clip in clips]}


def load_model(model: str) -> tuple[nn.Module, Card]:
    """Load a network, or several as one, and the card: ``model`` as ``predict`` takes it."""
    if Path(model).is_dir():
        return checkpoint.read(Path(model))
    from mgc.evaluation.predictions import read_each, read_models
    from mgc.tracking import registry  # a folder needs no MLflow
    from mgc.tracking.runs import Run
    from mgc.tracking.store import existing_store

    uri = existing_store(Folder.at(Path.cwd()))
    if model == registry.CHAMPION:
        version = registry.champion(uri)
        if version is None:
            raise InputError(f"--model {model}: no run is champion yet; «mgc crown RUN» makes an evaluated one it")
        models = read_each([Run.find(uri, run_id) for run_id in version.models])
    else:
        models = read_models(Run.find(uri, model))
    return together([each.model for each in models]), models[0].card


def _predict_clip(network: nn.Module, card: Card, path: Path) -> dict[str, Any]:
    total, count = np.zeros(len(card.genres)), 0
    try:
        for window_FT in _windows(path, card):
            logits_1G = predict_logits(network, torch.from_numpy(window_FT).unsqueeze(0))
            total += logits_1G.softmax(1).numpy()[0]
            count += 1
    except ClipError as error:
        raise InputError(f"{path}: {error}") from None
    mean = total / count
    return {
        "path": str(path),
        "genre": card.genres[int(mean.argmax())],
        "probabilities": {genre: float(p) for genre, p in zip(card.genres, mean, strict=True)},
    }


def _windows(path: Path, card: Card) -> Iterator[Any]:
    """Features of a file, window by window [shape=spec.shape, dtype=float16]."""
    spec = card.spec
    folder, name = Folder.at(path).parent
    with audio.open_clip(folder, name) as file:
        for index, piece in enumerate(audio.windows(file, sample_rate=spec.sample_rate, seconds=spec.seconds)):
            if piece.seconds == 0:
                raise ClipError(Reason.TOO_SHORT, "no audio came out", 0.0)
            if index and piece.seconds < MIN_REST * spec.seconds:
                return
            yield feature(piece.samples, spec).z_FT
