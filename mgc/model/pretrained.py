"""A pretrained encoder and a classifier on it; where the encoder's weights stay as they are, the classifier alone.

Shape suffixes: K windows of a clip, B clips in a batch, D values of a vector, F mel bands, T frames, G genres.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mgc.core.errors import InputError
from mgc.encoders.registry import encoder, load
from mgc.model.genre_network import GenreNetwork

if TYPE_CHECKING:
    from mgc.audio.logmel import LogMelSpec
    from mgc.config import ModelConfig

TOGETHER = 64
"""Windows that an encoder hears at a time: on a GPU 0.6 GB a feature map of musicnn."""
ENCODER, CLASSIFIER = "encoder.", "classifier."
"""How the names of their weights begin."""


class Classifier(GenreNetwork):
    """Hidden layers and a linear one on an encoder's vectors, one for each window of a clip; the windows vote.

    Parameters
    ----------
    config
        ``input_norm`` standardises the vectors; ``hidden``, ``norm``, ``dropout`` and ``head_dropout`` are the layers'.
    size
        Values of a vector.
    n_genres
        Number of classes.
    """

    def __init__(self, config: ModelConfig, size: int, n_genres: int) -> None:
        super().__init__(window=1, frames=1)
        layers: list[nn.Module] = [nn.BatchNorm1d(size, affine=False)] if config.input_norm else []
        for units in config.hidden:
            layers += [nn.Dropout(config.dropout), nn.Linear(size, units, bias=not config.norm)]
            layers += [nn.BatchNorm1d(units), nn.ReLU()] if config.norm else [nn.ReLU()]
            size = units
        self.layers = nn.Sequential(*layers, nn.Dropout(config.head_dropout))
        self.linear = nn.Linear(size, n_genres)

    def _logits(self, vectors_B1DK: Tensor) -> Tensor:
        logits_BG: Tensor = self.linear(self.layers(vectors_B1DK.squeeze(1).squeeze(2)))
        return logits_BG


class Pretrained(GenreNetwork):
    """A pretrained encoder and a classifier, over log-Mel spectrograms of the encoder's own recipe.

    Parameters
    ----------
    config
        Names the encoder; the rest is the classifier's.
    n_genres
        Number of classes.
    shape
        (mel bands, frames) of a whole clip.

    Raises
    ------
    InputError
        ``config.window`` is not the encoder's, or clips have fewer frames.
    """

    def __init__(self, config: ModelConfig, n_genres: int, shape: tuple[int, int]) -> None:
        known = encoder(config.encoder)
        if config.window not in (0, known.window):
            raise InputError(f"`model.window={config.window}`: {known.name} hears {known.window} frames at a time")
        super().__init__(known.window, shape[1])
        self.encoder = known.build()
        for name in known.behind:
            self.encoder.get_submodule(name).requires_grad_(False)
        self.classifier = Classifier(config, known.size, n_genres)

    @property
    def linear(self) -> nn.Linear:  # type: ignore[override]
        """The last layer, with an output a genre."""
        return self.classifier.linear

    def train(self, mode: bool = True) -> Pretrained:
        """Set training mode; the encoder keeps the statistics of its BatchNorm, and drops nothing."""
        super().train(mode)
        self.encoder.eval()
        return self

    def _logits(self, mel_B1FT: Tensor) -> Tensor:
        vectors_BD = vectors(self.encoder, mel_B1FT.squeeze(1))
        return self.classifier(vectors_BD[:, None, :, None])  # type: ignore[no-any-return]


def vectors(network: nn.Module, mel_BFT: Tensor) -> Tensor:
    """Compute an encoder's vectors; where nothing is learnt some windows at a time, whose maps fit a small GPU.

    Parameters
    ----------
    network
        The encoder.
    mel_BFT
        Windows of spectrograms [shape=(B, F, T), dtype=float32].

    Returns
    -------
    torch.Tensor [shape=(B, D)]
    """
    if torch.is_grad_enabled():
        return network(mel_BFT)  # type: ignore[no-any-return]
    return torch.cat([network(some_BFT) for some_BFT in mel_BFT.split(TOGETHER)])


def check_encoder(name: str, spec: LogMelSpec) -> None:
    """Refuse an encoder whose weights are not here, or that was trained on spectrograms of another recipe.

    Parameters
    ----------
    name
        Of the encoder; ``none`` is fine with all.
    spec
        Recipe of the spectrograms; clips may have any length.

    Raises
    ------
    InputError
        It cannot be used.
    """
    if name == "none":
        return
    from mgc.audio.logmel import RECIPES  # here, because the training step runs where there is torch alone

    features = encoder(name).features
    if spec != replace(RECIPES[features], seconds=spec.seconds):
        raise InputError(f"`model.encoder={name}`: listens to spectrograms of «mgc preprocess --features {features}»")
    load(name)
