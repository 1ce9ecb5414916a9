"""What random convolutions say of a clip: the CNN's blocks without any training, a floor for those that are trained.

The filters are random, the means and maxima of all blocks are kept, and the place on the mel axis with them; a linear
classifier does the rest. That random convolutional networks are a strong floor is known from Pons and Serra, «Randomly
weighted CNNs for (music) audio classification» (ICASSP 2019). Networks of several draws beside each other do better
than a wider one (``docs/log.md``).

Shape suffixes: N clips, B of them, C channels, F mel bands, T frames, K stretches, W frames of a stretch, R ranges of
bands, D statistics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mgc.config import ModelConfig
from mgc.core.errors import InputError
from mgc.core.progress import Progress
from mgc.model.cnn import GenreCNN
from mgc.model.device import best_device, keep_freed_memory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mgc.features.feature_set import FeatureSet

CHANNELS = (16, 32, 64, 128)
"""Filters of each block, as in the presets."""
DRAWS = 4
STRETCH = 256
"""Frames of which maxima are taken; they are averaged over the clip. 6 s at the default recipe."""
RANGES = 8
"""Of mel bands, each with its own statistics."""
TOGETHER = 4
"""Clips that are computed at a time."""
FITTED = 32
"""Clips that BatchNorm's statistics are of."""


class RandomCNN(nn.Module):
    """Blocks of random convolutions whose statistics are the output.

    Parameters
    ----------
    bands
        Mel bands of the spectrograms.
    seed
        Of the filters.

    Raises
    ------
    InputError
        There are fewer bands than the poolings halve.
    """

    def __init__(self, bands: int, seed: int) -> None:
        super().__init__()
        if bands < 2 ** len(CHANNELS):
            raise InputError(f"`kind=random_cnn`: {len(CHANNELS)} poolings leave nothing of {bands} mel bands")
        config = ModelConfig(channels=CHANNELS, norm=True, input_norm=True, dropout=0.0, head="avg")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            cnn = GenreCNN(config, n_genres=1, shape=(bands, STRETCH))
        layers = len(cnn.blocks) // len(CHANNELS)
        self.input_norm = cnn.input_norm
        self.blocks = nn.ModuleList(cnn.blocks[first : first + layers] for first in range(0, len(cnn.blocks), layers))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.momentum = 1.0  # its statistics are those of the last batch
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, mel_BFT: Tensor) -> Tensor:
        """Compute mean and maximum of the input and of each block's channels, in ranges of mel bands.

        Parameters
        ----------
        mel_BFT
            Spectrograms [shape=(B, F, T), dtype=float32].

        Returns
        -------
        torch.Tensor [shape=(B, D)]
        """
        maps_BCFT = self.input_norm(mel_BFT).unsqueeze(1)
        stretches = max(1, mel_BFT.shape[2] // STRETCH)
        statistics = _pooled(maps_BCFT, stretches)
        for block in self.blocks:
            maps_BCFT = block(maps_BCFT)
            bands = min(RANGES, maps_BCFT.shape[2])
            statistics += _pooled(functional.adaptive_avg_pool2d(maps_BCFT, (bands, None)), stretches)
        return torch.cat(statistics, 1)


def random_cnn_of(feature_set: FeatureSet, splits: Sequence[str]) -> NDArray[np.float32]:
    """Compute the statistics of random networks from a feature set.

    Parameters
    ----------
    feature_set
        The feature set. The first clips of its training split give BatchNorm's means and deviations, without labels.
    splits
        Those to take, in this order.

    Returns
    -------
    np.ndarray [shape=(N, D)]
        A row a clip, in the order of ``mgc.dataset.clips.load``; with 128 bands D is 16,384.

    Raises
    ------
    InputError
        A shard is gone or not what the manifest says, there are no training clips, or too few bands.
    """
    keep_freed_memory()
    device, manifest = best_device(), feature_set.manifest
    networks = [RandomCNN(manifest.spec.shape[0], seed).to(device) for seed in range(DRAWS)]
    fitted: list[NDArray[np.float16]] = []
    for entry in manifest.shards_of("training"):
        if entry.rows and sum(len(mel_BFT) for mel_BFT in fitted) < FITTED:
            fitted.append(feature_set.spectrograms(entry))
    if not fitted:
        raise InputError(f"`features={feature_set.folder}`: no clips in split «training»")
    with torch.inference_mode():
        clips_BFT = torch.from_numpy(np.concatenate(fitted)[:FITTED]).to(device, torch.float32)
        for network in networks:
            network.train()(clips_BFT)
            network.eval()
        wanted = [entry for entry in manifest.shards_of(*splits) if entry.rows]
        count, done = sum(entry.rows for entry in wanted), 0
        progress, statistics_ND = Progress("random CNN", count, "clips"), np.empty((0, 0), np.float32)
        for entry in wanted:
            for mel_BFT in torch.from_numpy(feature_set.spectrograms(entry)).split(TOGETHER):
                clips_BFT = mel_BFT.to(device, torch.float32)
                values_BD = torch.cat([network(clips_BFT) for network in networks], 1).cpu().numpy()
                if not done:
                    statistics_ND = np.empty((count, values_BD.shape[1]), np.float32)
                statistics_ND[done : done + len(values_BD)] = values_BD
                done += len(values_BD)
                progress.advance(len(values_BD))
    return statistics_ND


def _pooled(maps_BCFT: Tensor, stretches: int) -> list[Tensor]:
    """Mean and maximum over the frames of each stretch, averaged over the stretches [shape=(B, C × F)]."""
    width = maps_BCFT.shape[3] // stretches
    cut_BCFKW = maps_BCFT[..., : stretches * width].unflatten(3, (stretches, width))
    return [values_BCFK.mean(3).flatten(1) for values_BCFK in (cut_BCFKW.mean(4), cut_BCFKW.amax(4))]
