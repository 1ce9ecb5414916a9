"""The network that a configuration describes: the one place where it is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgc.model.cnn import GenreCNN

if TYPE_CHECKING:
    from mgc.config import ModelConfig
    from mgc.model.genre_network import GenreNetwork


def build(config: ModelConfig, n_genres: int, shape: tuple[int, int]) -> GenreNetwork:
    """Build a network with random weights.

    Parameters
    ----------
    config
        Layers and regularisers.
    n_genres
        Number of classes.
    shape
        (mel bands, frames) of a whole clip.

    Raises
    ------
    InputError
        The clips are too small for the layers.
    """
    return GenreCNN(config, n_genres, shape)
