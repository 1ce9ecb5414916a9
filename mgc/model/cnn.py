"""The network: blocks of convolution over a log-Mel spectrogram and a linear head; and an ensemble of networks.

Shape suffixes: B clips in a batch, C channels, F mel bands, T frames, G genres, D values of a vector.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mgc.config import ModelConfig
from mgc.core.errors import InputError
from mgc.model.genre_network import GenreNetwork

if TYPE_CHECKING:
    from collections.abc import Sequence


class GenreCNN(GenreNetwork):
    """A CNN over log-Mel spectrograms; each of its regularisers is a field of its configuration.

    Parameters
    ----------
    config
        Layers and regularisers; ``ModelConfig()`` is the preset ``plain_cnn``.
    n_genres
        Number of classes.
    shape
        (mel bands, frames) of a whole clip.

    Raises
    ------
    InputError
        The clips have fewer bands or frames than the poolings halve, or fewer frames than ``config.window``.

    Examples
    --------
    >>> model = GenreCNN(ModelConfig(), n_genres=8, shape=(128, 1288))
    >>> sum(p.numel() for p in model.parameters())
    752520
    """

    def __init__(self, config: ModelConfig, n_genres: int, shape: tuple[int, int] = (128, 1288)) -> None:
        super().__init__(config.window, shape[1])
        shrink = 2 ** len(config.channels)
        bands, frames = shape[0] // shrink, (config.window or shape[1]) // shrink
        if not bands or not frames:
            raise InputError(
                f"`model.channels={config.channels}`: {len(config.channels)} poolings leave nothing of {shape}"
            )
        self.head = config.head
        self.input_norm = nn.BatchNorm1d(shape[0]) if config.input_norm else nn.Identity()
        dropout = nn.Dropout2d if config.spatial_dropout else Dropout
        blocks: list[nn.Module] = []
        before = 1
        for filters in config.channels:
            # BatchNorm takes a bias out again: Adam would let it wander on rounding noise
            blocks += [nn.Conv2d(before, filters, 3, padding=1, bias=not config.norm)]
            blocks += [nn.BatchNorm2d(filters)] if config.norm else []
            # ReLU after the pooling is the same function, and gradient, at a quarter of the values
            blocks += [nn.MaxPool2d(2), nn.ReLU(), dropout(config.dropout)]
            before = filters
        self.blocks = nn.Sequential(*blocks)
        pooled = {
            "flatten": before * bands * frames,
            "avg": before,
            "avgmax": 2 * before,
            "bands": 2 * before * bands,
        }[config.head]
        self.head_dropout = nn.Dropout(config.head_dropout)
        self.linear = nn.Linear(pooled, n_genres)

    def pooled(self, mel_B1FT: Tensor) -> Tensor:
        """Compute what the linear layer sees [shape=(B, D)], with dropout in training.

        Parameters
        ----------
        mel_B1FT
            Spectrograms that are heard as one [shape=(B, 1, F, T)].
        """
        mel_BFT = self.input_norm(mel_B1FT.squeeze(1))
        maps_BCFT = self.blocks(mel_BFT.unsqueeze(1))
        if self.head == "flatten":
            pooled = maps_BCFT.flatten(1)
        elif self.head == "avg":
            pooled = maps_BCFT.mean(dim=(2, 3))
        else:
            over = (2, 3) if self.head == "avgmax" else 3
            pooled = torch.cat([maps_BCFT.mean(over), maps_BCFT.amax(over)], dim=1).flatten(1)
        values_BD: Tensor = self.head_dropout(pooled)
        return values_BD

    def _logits(self, mel_B1FT: Tensor) -> Tensor:
        return self.linear(self.pooled(mel_B1FT))  # type: ignore[no-any-return]


def folded(model: GenreNetwork) -> GenreNetwork:
    """Fold the BatchNorm of each block into its convolution, and leave dropout out: a fifth less work in inference.

    Parameters
    ----------
    model
        A trained network in evaluation mode; it stays as it is.

    Returns
    -------
    GenreNetwork
        Gives the same logits up to rounding; it cannot be trained. Of other networks than ``GenreCNN`` a copy.
    """
    model = copy.deepcopy(model).eval()
    if not isinstance(model, GenreCNN):
        return model
    layers: list[nn.Module] = []
    for layer in model.blocks:
        if isinstance(layer, nn.BatchNorm2d):
            layers[-1] = fuse_conv_bn_eval(layers[-1], layer)  # type: ignore[type-var]
        elif not isinstance(layer, nn.Dropout | nn.Dropout2d):
            layers.append(layer)
    model.blocks = nn.Sequential(*layers)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


class Ensemble(GenreNetwork):
    """Networks whose probabilities are averaged: the softmax of its logits is the mean of theirs.

    Parameters
    ----------
    members
        The networks, all of one window.
    """

    def __init__(self, members: Sequence[GenreNetwork]) -> None:
        super().__init__(members[0].window, members[0].window)
        self.members = nn.ModuleList(members)

    def hear(self, mel_B1FT: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the logarithm of the mean probabilities of clips, and of each of their windows.

        Parameters
        ----------
        mel_B1FT
            Z-scored spectrograms [shape=(B, 1, F, T), dtype=float32].

        Returns
        -------
        logits_BG : torch.Tensor [shape=(B, G)]
            What ``forward`` gives.
        logits_KBG : torch.Tensor [shape=(K, B, G)]
            Of the windows.
        """
        whole, windows = zip(*(member.hear(mel_B1FT) for member in self._members()), strict=True)
        return _mean(whole), _mean(windows)

    def _members(self) -> list[GenreNetwork]:
        return list(self.members)  # type: ignore[arg-type]


def _mean(logits: Sequence[Tensor]) -> Tensor:
    """Logits [shape=(…, G)] whose softmax is the mean of the softmax of each of these."""
    return torch.stack([each.log_softmax(-1) for each in logits]).logsumexp(0) - math.log(len(logits))


def together(models: Sequence[GenreNetwork]) -> GenreNetwork | Ensemble:
    """Return one network in evaluation mode: a single model itself, several as their ensemble.

    Parameters
    ----------
    models
        At least one network.
    """
    return (models[0] if len(models) == 1 else Ensemble(models)).eval()


class Dropout(nn.Dropout):
    """Dropout that draws sixteen random bits a value on the CPU, where torch draws 64: it saves 9 to 15 % of a step."""

    def forward(self, values: Tensor) -> Tensor:
        """Values of which a share ``p`` is zero and the others are larger, in training."""
        if not self.training or self.p == 0 or values.is_cuda:
            return super().forward(values)
        count = values.numel()
        bits = torch.randint(-(2**63), 2**63 - 1, ((count + 3) // 4,)).view(torch.int16)[:count]
        kept = bits >= round(self.p * 2**16) - 2**15
        dense = values if values.is_contiguous(memory_format=torch.channels_last) else values.contiguous()
        return dense * (kept.as_strided(dense.size(), dense.stride()) * (1 / (1 - self.p))).to(values.dtype)
