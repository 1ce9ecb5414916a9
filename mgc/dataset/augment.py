"""Varying training clips: drawn by seed for a whole epoch, applied in batches on the device.

What is drawn depends on seed, epoch and a clip's place in the epoch's order, and not on how batches are shared out, so
one worker and several see the same clips.

Shape suffixes: N clips in an epoch's order, B clips in a batch, M masks, F mel bands, T frames, W frames of a window.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch

from mgc.dataset.batches import batches

if TYPE_CHECKING:
    from torch import Tensor

    from mgc.config import TrainConfig

KNOTS = 8
"""Of the random equaliser's curve over the mel bands."""


@dataclass(frozen=True)
class Draws:
    """What chance does to each clip of an epoch, by its place in the order."""

    starts_N: Tensor
    """First frame of the crop."""
    partners_N: Tensor
    """Place of the clip that is mixed in, which is in the same batch."""
    shares_N: Tensor
    """Share of the clip itself, at least a half; 1 without mixup."""
    times_NM2: Tensor
    """Frames to blank out, from and up to."""
    bands_NM2: Tensor
    """Mel bands to blank out, from and up to."""
    gains_NF: Tensor
    """What the equaliser adds to each band, in units of the z-score."""

    def to(self, device: torch.device) -> Draws:
        """A copy on a device, so that no step of the epoch sends any."""
        return Draws(*(getattr(self, each.name).to(device, copy=True) for each in fields(self)))

    def take_over(self, other: Draws) -> None:
        """Hold what another epoch's draws hold, in the same memory."""
        for each in fields(self):
            getattr(self, each.name).copy_(getattr(other, each.name))


def draw(config: TrainConfig, shape: tuple[int, int], n: int, epoch: int) -> Draws:
    """Draw for an epoch of ``n`` clips of ``shape`` (mel bands, frames)."""
    bands, frames = shape
    augment, window = config.augment, config.model.window or frames
    random = np.random.default_rng([config.seed, epoch, 1])
    starts_N = random.integers(0, frames - window + 1, n)
    partners_N = np.concatenate([random.permutation(batch) for batch in batches(np.arange(n), config.optim.batch_size)])
    shares_N = np.ones(n)
    if augment.mixup_alpha:
        beta_N = random.beta(augment.mixup_alpha, augment.mixup_alpha, n)
        shares_N = np.maximum(beta_N, 1 - beta_N)
    knots_NK = random.normal(0, augment.equalize, (n, KNOTS)) if augment.equalize else np.zeros((n, KNOTS))
    place_F = np.linspace(0, KNOTS - 1, bands)
    left_F = np.minimum(place_F.astype(int), KNOTS - 2)
    weight_F = place_F - left_F
    return Draws(
        torch.from_numpy(starts_N),
        torch.from_numpy(partners_N),
        torch.from_numpy(shares_N).float(),
        _spans(random, n, augment.time_masks, min(augment.time_mask_frames, window), window),
        _spans(random, n, augment.band_masks, min(augment.band_mask_bands, bands), bands),
        torch.from_numpy(knots_NK[:, left_F] * (1 - weight_F) + knots_NK[:, left_F + 1] * weight_F).float(),
    )


def crops(mel_BFT: Tensor, starts_B: Tensor, window: int) -> Tensor:
    """A window of each spectrogram [shape=(B, F, W)], from its own first frame."""
    if mel_BFT.shape[2] == window:
        return mel_BFT
    each_B = torch.arange(len(mel_BFT), device=mel_BFT.device)
    return mel_BFT.unfold(2, window, 1)[each_B, :, starts_B]


def mixup(mel_BFW: Tensor, partners_BFW: Tensor, shares_B: Tensor) -> Tensor:
    """Each spectrogram and its partner's, in their shares (Zhang et al., «mixup», ICLR 2018)."""
    return torch.lerp(partners_BFW, mel_BFW, shares_B[:, None, None])


def blank(mel_BFW: Tensor, times_BM2: Tensor, bands_BM2: Tensor) -> Tensor:
    """SpecAugment's masks (Park et al., Interspeech 2019): zero, the z-score's mean, in stretches of time and bands."""
    hidden_BFW = _inside(times_BM2, mel_BFW.shape[2])[:, None, :]
    hidden_BFW = hidden_BFW | _inside(bands_BM2, mel_BFW.shape[1])[:, :, None]
    return mel_BFW.masked_fill(hidden_BFW, 0.0)


def equalize(mel_BFW: Tensor, gains_BF: Tensor) -> Tensor:
    """Another recording's frequency response: a smooth curve added over the bands (after Nam et al., FilterAugment)."""
    return mel_BFW + gains_BF[:, :, None]


def _spans(random: np.random.Generator, n: int, masks: int, longest: int, size: int) -> Tensor:
    """Random spans [shape=(n, masks, 2)]: lengths uniform from 0 to ``longest``, anywhere within ``size``."""
    length_NM = random.integers(0, longest + 1, (n, masks))
    start_NM = (random.random((n, masks)) * (size - length_NM + 1)).astype(np.int64)
    return torch.from_numpy(np.stack([start_NM, start_NM + length_NM], axis=2))


def _inside(spans_BM2: Tensor, size: int) -> Tensor:
    """Whether each place of ``size`` is in one of the spans [shape=(B, size)]."""
    place = torch.arange(size, device=spans_BM2.device)
    return ((place >= spans_BM2[:, :, :1]) & (place < spans_BM2[:, :, 1:])).any(dim=1)


def training_batch(
    mel_BFT: Tensor, config: TrainConfig, draws: Draws, places_B: Tensor, mine: slice
) -> tuple[Tensor, Tensor]:
    """One worker's share of a batch, varied; places and draws are on the device of the clips.

    Parameters
    ----------
    mel_BFT
        The whole batch where clips are mixed, which needs the others'; else the share alone.
    places_B
        Places of the whole batch's clips in the epoch's order, one after the other.
    mine
        Which of them are this worker's.

    Returns
    -------
    mel_BFW, shares_B
        Spectrograms as float32, and each clip's share in its own.
    """
    mixing = config.augment.mixup_alpha > 0
    own_B = places_B[mine]
    window = config.model.window or mel_BFT.shape[2]
    mel_BFW = crops(mel_BFT, draws.starts_N[places_B if mixing else own_B], window).float()
    shares_B = draws.shares_N[own_B]
    if mixing:
        mel_BFW = mixup(mel_BFW[mine], mel_BFW[draws.partners_N[own_B] - places_B[0]], shares_B)
    if config.augment.equalize:
        mel_BFW = equalize(mel_BFW, draws.gains_NF[own_B])
    if config.augment.time_masks or config.augment.band_masks:
        mel_BFW = blank(mel_BFW, draws.times_NM2[own_B], draws.bands_NM2[own_B])
    return mel_BFW, shares_B
