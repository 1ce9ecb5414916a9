"""The networks by configuration: what a checkpoint holds, and what a fit trains of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgc.encoders import registry
from mgc.model.cnn import GenreCNN
from mgc.model.pretrained import CLASSIFIER, ENCODER, Pretrained, check_recipe

if TYPE_CHECKING:
    from torch import Tensor

    from mgc.audio.logmel import LogMelSpec
    from mgc.config import ModelConfig, TrainConfig
    from mgc.model.genre_network import GenreNetwork


def build(config: ModelConfig, n_genres: int, shape: tuple[int, int]) -> GenreNetwork:
    """Build a network with fresh weights: that of a checkpoint.

    Parameters
    ----------
    config
        Says which network, and its layers.
    n_genres
        Number of classes.
    shape
        (mel bands, frames) of a whole clip.

    Raises
    ------
    InputError
        The clips are too short for it, or its window is not the encoder's.
    """
    return (GenreCNN if config.encoder == "none" else Pretrained)(config, n_genres, shape)


def to_train(config: TrainConfig, n_genres: int, spec: LogMelSpec) -> GenreNetwork:
    """Build what a fit trains: the network, or of one on a frozen encoder the classifier alone.

    Parameters
    ----------
    config
        Of the fit.
    n_genres
        Number of classes.
    spec
        The log-Mel recipe of the clips.

    Returns
    -------
    GenreNetwork
        With fresh weights, and those of a pretrained encoder.

    Raises
    ------
    InputError
        The encoder listens to another recipe, or its weights are not here; or as ``build``.
    """
    model = build(config.model, n_genres, spec.shape)
    if not isinstance(model, Pretrained):
        return model
    check_recipe(config.model.encoder, spec)
    if config.frozen:
        return model.classifier
    model.encoder.load_state_dict(registry.load(config.model.encoder).state_dict())
    return model


def whole(weights: dict[str, Tensor], config: TrainConfig) -> dict[str, Tensor]:
    """Return the weights of a checkpoint from those that a fit has trained: a frozen encoder's are added.

    Parameters
    ----------
    weights
        State dict of ``to_train``'s network.
    config
        Of the fit.
    """
    if not config.frozen:
        return weights
    encoder = registry.load(config.model.encoder).state_dict()
    return {ENCODER + name: tensor for name, tensor in encoder.items()} | {
        CLASSIFIER + name: tensor for name, tensor in weights.items()
    }
