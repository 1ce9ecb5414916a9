"""Augmentation of training clips: drawn by seed for a whole epoch, applied in batches on the device.

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
    """The random parameters of an epoch's augmentations, for each clip by its place in the order."""

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
        """Return a copy on a device.

        Parameters
        ----------
        device
            Of the fit, so that no step of the epoch sends any.
        """
        return Draws(*(getattr(self, each.name).to(device, copy=True) for each in fields(self)))

    def take_over(self, other: Draws) -> None:
        """Copy another epoch's draws into the same memory, where a recorded step looks for them.

        Parameters
        ----------
        other
            Of the same number of clips.
        """
        for each in fields(self):
            getattr(self, each.name).copy_(getattr(other, each.name))


def draw(config: TrainConfig, shape: tuple[int, int], n: int, epoch: int) -> Draws:
    """Draw the augmentations of an epoch.

    Parameters
    ----------
    config
        Seed, augmentations, crops and batch size (clips are mixed within their batch).
    shape
        (mel bands, frames) of a clip.
    n
        Number of clips.
    epoch
        From 1; with the seed it decides all draws.
    """
    bands, frames = shape
    augment, window = config.augment, config.crop or frames
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
    """Cut a window out of each spectrogram.

    Parameters
    ----------
    mel_BFT
        Spectrograms [shape=(B, F, T)].
    starts_B
        First frame of each window [shape=(B,), dtype=int64].
    window
        Frames of a window, W.

    Returns
    -------
    torch.Tensor [shape=(B, F, W)]
        The windows.
    """
    if mel_BFT.shape[2] == window:
        return mel_BFT
    each_B = torch.arange(len(mel_BFT), device=mel_BFT.device)
    return mel_BFT.unfold(2, window, 1)[each_B, :, starts_B]


def mixup(mel_BFW: Tensor, partners_BFW: Tensor, shares_B: Tensor) -> Tensor:
    """Mix each spectrogram with its partner's (Zhang et al., «mixup», ICLR 2018).

    Parameters
    ----------
    mel_BFW, partners_BFW
        Spectrograms [shape=(B, F, W)].
    shares_B
        Share of the clip itself [shape=(B,)].
    """
    return torch.lerp(partners_BFW, mel_BFW, shares_B[:, None, None])


def blank(mel_BFW: Tensor, times_BM2: Tensor, bands_BM2: Tensor) -> Tensor:
    """Mask stretches of time and ranges of bands with 0, the z-score's mean (Park et al., SpecAugment, 2019).

    Parameters
    ----------
    mel_BFW
        Spectrograms [shape=(B, F, W)].
    times_BM2, bands_BM2
        First frame or band of each mask, and the one behind its last [shape=(B, M, 2), dtype=int64].
    """
    hidden_BFW = _inside(times_BM2, mel_BFW.shape[2])[:, None, :]
    hidden_BFW = hidden_BFW | _inside(bands_BM2, mel_BFW.shape[1])[:, :, None]
    return mel_BFW.masked_fill(hidden_BFW, 0.0)


def equalize(mel_BFW: Tensor, gains_BF: Tensor) -> Tensor:
    """Add a smooth curve over the bands, another recording's frequency response (after Nam et al., FilterAugment).

    Parameters
    ----------
    mel_BFW
        Spectrograms [shape=(B, F, W)].
    gains_BF
        What is added to each band, in units of the z-score [shape=(B, F)].
    """
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
    """Augment one rank's share of a batch, on the device of the clips.

    Parameters
    ----------
    mel_BFT
        Spectrograms [shape=(B, F, T)]: with mixup those of the whole batch, else this rank's alone.
    config
        Which augmentations there are.
    draws
        Of the epoch, on the same device.
    places_B
        Places of the whole batch's clips in the epoch's order [shape=(B,), dtype=int64].
    mine
        Which of them are this rank's.

    Returns
    -------
    mel_BFW, shares_B
        Spectrograms [dtype=float32], and each clip's own share in them.
    """
    mixing = config.augment.mixup_alpha > 0
    own_B = places_B[mine]
    window = config.crop or mel_BFT.shape[2]
    mel_BFW = crops(mel_BFT, draws.starts_N[places_B if mixing else own_B], window).float()
    shares_B = draws.shares_N[own_B]
    if mixing:
        mel_BFW = mixup(mel_BFW[mine], mel_BFW[draws.partners_N[own_B] - places_B[0]], shares_B)
    if config.augment.equalize:
        mel_BFW = equalize(mel_BFW, draws.gains_NF[own_B])
    if config.augment.time_masks or config.augment.band_masks:
        mel_BFW = blank(mel_BFW, draws.times_NM2[own_B], draws.bands_NM2[own_B])
    return mel_BFW, shares_B
