"""A trained model on disk: weights as safetensors, everything else as readable JSON; no pickle, no code.

model.safetensors    the weights
model.json           the card: configuration, genres, log-Mel recipe, data fingerprint, figures, hash of the weights
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from mgc.audio.logmel import LogMelSpec
from mgc.config import TrainConfig, overlay
from mgc.core.atomic_files import replacing, write_text
from mgc.core.errors import InputError, first_line
from mgc.model.cnn import GenreCNN

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "model.safetensors"
CARD = "model.json"
FORMAT = 1


@dataclass(frozen=True)
class Card:
    """What is known of a model besides its weights."""

    config: TrainConfig
    genres: tuple[str, ...]
    spec: LogMelSpec
    fingerprint: str
    """Of the feature set it was trained on."""
    figures: dict[str, float]
    """epochs, best_epoch (the kept one), train_accuracy, val_accuracy, val_loss, val_clips, seconds (in epochs)."""


def write(folder: Path, weights: dict[str, Tensor], card: Card) -> None:
    """Write a checkpoint; the card goes last and names the weights by hash, so a half-written one is not mistaken."""
    folder.mkdir(parents=True, exist_ok=True)
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})
    tree = {
        "format": FORMAT,
        "weights_sha256": hashlib.sha256(data).hexdigest(),
        "config": card.config.to_dict(),
        "genres": list(card.genres),
        "spec": asdict(card.spec),
        "fingerprint": card.fingerprint,
        "figures": card.figures,
    }
    with replacing(folder / WEIGHTS) as temporary:
        temporary.write_bytes(data)
    write_text(json.dumps(tree, indent=1) + "\n", folder / CARD)


def read(folder: Path) -> tuple[GenreCNN, Card]:
    """Load a model in evaluation mode, on the CPU, and its card.

    Raises
    ------
    InputError
        The folder holds no checkpoint, or one that is damaged or of another format.
    """
    try:
        tree: dict[str, Any] = json.loads((folder / CARD).read_text())
        data = (folder / WEIGHTS).read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{error.filename}: no such file; a checkpoint folder holds {WEIGHTS} and {CARD}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: not a checkpoint ({error})") from None
    if not isinstance(tree, dict):
        raise InputError(f"{folder / CARD}: not a checkpoint's card")
    if tree.get("format") != FORMAT:
        raise InputError(f"{folder / CARD}: format {tree.get('format')}, this version reads {FORMAT}")
    if hashlib.sha256(data).hexdigest() != tree.get("weights_sha256"):
        raise InputError(f"{folder / WEIGHTS}: damaged or half-written (not the weights that {CARD} names)")
    try:
        card = Card(
            overlay(TrainConfig(), tree["config"]),
            tuple(tree["genres"]),
            LogMelSpec(**tree["spec"]),
            tree["fingerprint"],
            tree["figures"],
        )
        model = GenreCNN(card.config.model, len(card.genres), card.spec.shape)
        model.load_state_dict(load(data))
    except (KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder}: card and weights do not fit ({first_line(error)})") from None
    return model.eval(), card
