"""The networks by configuration: what a checkpoint holds, and what a fit trains of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgc.model.cnn import GenreCNN
from mgc.model.pretrained import CLASSIFIER, ENCODER, Pretrained
from mgc.model.student import NETWORK, Student

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

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


def to_train(
    config: TrainConfig, n_genres: int, shape: tuple[int, int], encoder: Mapping[str, Tensor] | None, taught: int
) -> GenreNetwork:
    """Build what a fit trains: the network, of one on a frozen encoder the classifier alone; with a teacher its guess.

    Parameters
    ----------
    config
        Of the fit.
    n_genres
        Number of classes.
    shape
        (mel bands, frames) of a whole clip.
    encoder
        Weights of the pretrained encoder, where there is one.
    taught
        Values of a teacher's vectors; 0 without a teacher.

    Returns
    -------
    GenreNetwork
        With fresh weights, and those of a pretrained encoder.

    Raises
    ------
    InputError
        As ``build``.
    """
    model = build(config.model, n_genres, shape)
    if isinstance(model, GenreCNN):
        return Student(model, taught) if taught else model
    assert isinstance(model, Pretrained)
    if config.frozen:
        return model.classifier
    assert encoder is not None
    model.encoder.load_state_dict(encoder)
    return model


def whole(weights: dict[str, Tensor], config: TrainConfig, encoder: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return the weights of a checkpoint from those that a fit has trained.

    A frozen encoder's are added; the guess of a teacher's vectors is left out.

    Parameters
    ----------
    weights
        State dict of ``to_train``'s network.
    config
        Of the fit.
    encoder
        Weights of the pretrained encoder, where there is one.
    """
    if config.optim.teacher != "none":
        return {name.removeprefix(NETWORK): each for name, each in weights.items() if name.startswith(NETWORK)}
    if not config.frozen:
        return weights
    assert encoder is not None
    return {ENCODER + name: tensor for name, tensor in encoder.items()} | {
        CLASSIFIER + name: tensor for name, tensor in weights.items()
    }
