"""A network whose filters see most of the spectrum, or seconds of the energy, pooled over time.

After Pons et al., «End-to-end learning for music audio tagging at scale», ISMIR 2018, and Pons & Serra, «musicnn:
pre-trained convolutional neural networks for music audio tagging», 2019.

Shape suffixes: B clips in a batch, P places along the mel axis, C filters, F mel bands, T frames, U steps of two
frames, G genres.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mgc.config import ModelConfig
from mgc.core.errors import InputError
from mgc.model.genre_network import GenreNetwork

HEIGHTS = (0.9, 0.7, 0.4)
"""Of the timbral filters, as shares of the mel axis."""
PLACES = 5
"""Where on the mel axis a timbral filter is tried, evenly from the lowest band to the highest."""
WIDTH = 7
"""Frames of a timbral filter, and steps of a later one."""
STEP = 2
"""Frames from one place of a filter to the next."""
LENGTHS = (64, 32, 16)
"""Of the temporal filters, in steps: 3, 1.5 and 0.7 s."""
RANGES = 8
"""Ranges of mel bands whose energy the temporal filters follow."""


class TimbralCNN(GenreNetwork):
    """Timbral and temporal filters, layers of 1-D convolution, and the mean and maximum over time of all of them.

    A timbral filter spans 7 frames and 90, 70 or 40 % of the mel bands; the maximum over its places on the mel axis
    makes it deaf to transposition. A temporal filter spans 16 to 64 steps of the mean of some bands. The linear layer
    sees these shallow features beside the later ones (dense connections).

    Parameters
    ----------
    config
        ``front_filters`` filters of each height and a third of them of each length; a later layer of 1-D convolution
        for each of ``channels``, added to what it is given where that has as many channels; and the regularisers.
    n_genres
        Number of classes.
    shape
        (mel bands, frames) of a whole clip.

    Raises
    ------
    InputError
        The clips have fewer than 8 mel bands, or fewer frames than ``config.window``.

    Examples
    --------
    >>> model = TimbralCNN(ModelConfig(front="timbral", head="avgmax"), n_genres=8, shape=(128, 1288))
    """

    def __init__(self, config: ModelConfig, n_genres: int, shape: tuple[int, int] = (128, 1288)) -> None:
        super().__init__(config.window, shape[1])
        bands, filters, short = shape[0], config.front_filters, -(-config.front_filters // 3)
        if bands < RANGES:
            raise InputError(f"`model.front=timbral`: needs {RANGES} mel bands or more, the clips have {bands}")
        self.head = config.head
        # what it could learn at the input, the filters learn; without it no gradient is wanted there
        self.input_norm = nn.BatchNorm1d(bands, affine=False) if config.input_norm else nn.Identity()
        self.heights = [round(share * bands) for share in HEIGHTS]
        self.timbral = nn.ModuleList(nn.Conv1d(each, filters, WIDTH, STEP, WIDTH // 2) for each in self.heights)
        self.temporal = nn.ModuleList(nn.Conv1d(1, short, length + 1, padding=length // 2) for length in LENGTHS)
        before = filters * len(HEIGHTS) + short * len(LENGTHS)
        dropout = nn.Dropout1d if config.spatial_dropout else nn.Dropout
        self.front_norm = nn.Sequential(nn.BatchNorm1d(before) if config.norm else nn.Identity(), nn.ReLU())
        self.dropout = dropout(config.dropout)
        self.layers = nn.ModuleList()
        width = before
        for channels in config.channels:
            layer = nn.Sequential(
                nn.Conv1d(before, channels, WIDTH, padding=WIDTH // 2, bias=not config.norm),
                nn.BatchNorm1d(channels) if config.norm else nn.Identity(),
                nn.ReLU(),
                dropout(config.dropout),
            )
            self.layers.append(layer)
            before = channels
            width += channels
        steps = -(-(config.window or shape[1]) // STEP)
        pooled = {"flatten": width * steps, "avg": width, "avgmax": 2 * width, "bands": 2 * width}[config.head]
        self.head_norm = nn.BatchNorm1d(pooled) if config.norm else nn.Identity()
        self.head_dropout = nn.Dropout(config.head_dropout)
        self.linear = nn.Linear(pooled, n_genres)

    def _logits(self, mel_B1FT: Tensor) -> Tensor:
        mel_BFT = self.input_norm(mel_B1FT.squeeze(1))
        shallow_BCU = self.front_norm(torch.cat([*self._timbral(mel_BFT), *self._temporal(mel_BFT)], dim=1))
        features = [shallow_BCU]
        maps_BCU = self.dropout(shallow_BCU)
        for layer in self.layers:
            deeper_BCU = layer(maps_BCU)
            maps_BCU = maps_BCU + deeper_BCU if maps_BCU.shape == deeper_BCU.shape else deeper_BCU
            features.append(maps_BCU)
        all_BCU = torch.cat(features, dim=1)
        if self.head == "flatten":
            pooled = all_BCU.flatten(1)
        elif self.head == "avg":
            pooled = all_BCU.mean(2)
        else:
            pooled = torch.cat([all_BCU.mean(2), all_BCU.amax(2)], dim=1)
        logits_BG: Tensor = self.linear(self.head_dropout(self.head_norm(pooled)))
        return logits_BG

    def _timbral(self, mel_BFT: Tensor) -> list[Tensor]:
        """For each height the maximum over a filter's places on the mel axis [shape=(B, C, U)]."""
        found = []
        for filters, height in zip(self.timbral, self.heights, strict=True):
            starts = [round(place * (mel_BFT.shape[1] - height) / (PLACES - 1)) for place in range(PLACES)]
            places_BPFT = torch.stack([mel_BFT[:, start : start + height] for start in starts], dim=1)
            found.append(filters(places_BPFT.flatten(0, 1)).unflatten(0, (-1, PLACES)).amax(1))
        return found

    def _temporal(self, mel_BFT: Tensor) -> list[Tensor]:
        """For each length the maximum over the ranges of bands [shape=(B, C, U)]."""
        energy_B1PU = functional.adaptive_avg_pool2d(mel_BFT.unsqueeze(1), (RANGES, -(-mel_BFT.shape[2] // STEP)))
        energy_B1U = energy_B1PU.squeeze(1).flatten(0, 1).unsqueeze(1)
        return [filters(energy_B1U).unflatten(0, (-1, RANGES)).amax(1) for filters in self.temporal]
