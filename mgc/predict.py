"""Predict the genre of any audio file, of any length.

A file is cut into windows as long as the clips the model was trained on; the genre probabilities of the windows are
averaged. The first window is exactly what preprocessing would have made of the file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mgc import audio, checkpoint
from mgc.checkpoint import Card
from mgc.errors import ClipError, InputError, Reason
from mgc.folder import Folder
from mgc.logmel import log_mel, standardize
from mgc.model import GenreCNN, predict_logits

MIN_REST = 0.5
"""A last window with less audio than this share of a full one is left out, unless it is the only one."""


def predict(model: str, clips: Sequence[str | Path]) -> dict[str, Any]:
    """Predict the genres of audio files.

    Parameters
    ----------
    model
        A checkpoint folder, or the id of an MLflow run that kept one.
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


def load_model(model: str) -> tuple[GenreCNN, Card]:
    """Load a checkpoint by its folder or by its run's id."""
    if Path(model).is_dir():
        return checkpoint.read(Path(model))
    from mgc import store, tracking  # a folder needs no MLflow

    run = tracking.Run.find(store.existing_store(Folder.at(Path.cwd())), model)
    with tempfile.TemporaryDirectory() as folder:
        return checkpoint.read(run.checkpoint(Path(folder)))


def _predict_clip(network: GenreCNN, card: Card, path: Path) -> dict[str, Any]:
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
            yield standardize(log_mel(piece.samples, spec))[0].astype(np.float16)  # as in a shard
