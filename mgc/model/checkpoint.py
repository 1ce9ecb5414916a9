"""A trained model in storage: weights as safetensors, everything else as readable JSON; no pickle, no code.

model.safetensors    the weights
model.json           the card: configuration, genres, log-Mel recipe, data fingerprint, figures, hash of the weights
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from mgc.audio.logmel import LogMelSpec
from mgc.config import TrainConfig, overlay
from mgc.core.errors import InputError, first_line
from mgc.core.storage import Folder
from mgc.model.networks import build

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from mgc.model.genre_network import GenreNetwork

WEIGHTS = "model.safetensors"
CARD = "model.json"
FORMAT = 1


@dataclass(frozen=True)
class Card:
    """All that a checkpoint holds besides the weights."""

    config: TrainConfig
    """Of the run that trained the model."""
    genres: tuple[str, ...]
    """Logit i is of ``genres[i]``."""
    spec: LogMelSpec
    """The log-Mel recipe of its input."""
    fingerprint: str
    """Of the feature set it was trained on."""
    figures: dict[str, float]
    """epochs, best_epoch (the kept one), train_accuracy, val_accuracy, val_loss, val_clips, seconds (in epochs)."""


def write(folder: str | Path | Folder, weights: dict[str, Tensor], card: Card) -> None:
    """Write a checkpoint: weights first, then the card, which names them by hash.

    A checkpoint that was interrupted in the middle is recognised by ``read``.

    Parameters
    ----------
    folder
        Path or URI; is made if it is not there.
    weights
        State dict of the model, on any device.
    card
        All else that is known of the model.
    """
    folder = Folder.at(folder)
    folder.make()
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})
    tree = {
        "format": FORMAT,
        "weights_sha256": hashlib.sha256(data).hexdigest(),
        "config": card.config.to_dict(),
        "genres": list(card.genres),
        "spec": card.spec.to_dict(),
        "fingerprint": card.fingerprint,
        "figures": card.figures,
    }
    folder.write(WEIGHTS, data)
    folder.write(CARD, (json.dumps(tree, indent=1) + "\n").encode())


def read(folder: str | Path | Folder) -> tuple[GenreNetwork, Card]:
    """Read a model and its card.

    Parameters
    ----------
    folder
        Path or URI; holds ``model.safetensors`` and ``model.json``.

    Returns
    -------
    model, card
        The model is in evaluation mode, on the CPU.

    Raises
    ------
    InputError
        The folder holds no checkpoint, or one that is damaged or of another format.
    StoreError
        The object store does not answer.
    """
    folder = Folder.at(folder)
    card, sha256 = _read_card(folder)
    try:
        data = folder.read(WEIGHTS)
    except OSError as error:
        raise _unreadable(folder, WEIGHTS, error) from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise InputError(f"{folder}/{WEIGHTS}: damaged or half-written (not the weights that {CARD} names)")
    try:
        model = build(card.config.model, len(card.genres), card.spec.shape)
        model.load_state_dict(load(data))
    except (RuntimeError, SafetensorError) as error:
        raise _misfit(folder, error) from None
    return model.eval(), card


def read_card(folder: str | Path | Folder) -> Card:
    """Read a checkpoint's card alone, without its weights.

    Parameters
    ----------
    folder
        Path or URI; holds ``model.json``.

    Raises
    ------
    InputError
        The folder holds no card, or one that is damaged or of another format.
    StoreError
        The object store does not answer.
    """
    return _read_card(Folder.at(folder))[0]


def _read_card(folder: Folder) -> tuple[Card, str]:
    """The card, and the hash of the weights that belong to it."""
    try:
        tree: dict[str, Any] = json.loads(folder.read(CARD))
    except (OSError, ValueError) as error:
        raise _unreadable(folder, CARD, error) from None
    if not isinstance(tree, dict):
        raise InputError(f"{folder}/{CARD}: not a checkpoint's card")
    if tree.get("format") != FORMAT:
        raise InputError(f"{folder}/{CARD}: format {tree.get('format')}, this version reads {FORMAT}")
    try:
        card = Card(
            overlay(TrainConfig(), tree["config"]),
            tuple(tree["genres"]),
            LogMelSpec(**tree["spec"]),
            tree["fingerprint"],
            tree["figures"],
        )
        return card, tree["weights_sha256"]
    except (KeyError, TypeError) as error:
        raise _misfit(folder, error) from None


def _unreadable(folder: Folder, name: str, error: OSError | ValueError) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"{folder}/{name}: no such file; a checkpoint folder holds {WEIGHTS} and {CARD}")
    return InputError(f"{folder}: not a checkpoint ({error})")


def _misfit(folder: Folder, error: Exception) -> InputError:
    return InputError(f"{folder}: card and weights do not fit ({first_line(error)})")
