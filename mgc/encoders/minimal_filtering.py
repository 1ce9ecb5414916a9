"""Minimal filtering: the maximum over mel bands of a convolution, with a third of the multiplications.

Eight outputs of a filter of seven taps take 56 products. Seen as polynomials that are multiplied, they follow from the
products at 14 points, 17 of real numbers (Winograd, «Arithmetic complexity of computations», 1980; for networks, Lavin
and Gray, «Fast algorithms for convolutional neural networks», CVPR 2016). Real points alone lose digits; with complex
ones on the unit circle the result is within three times the rounding error of the plain sum (after Meng and Brothers,
«Efficient Winograd convolution via integer arithmetic», 2019, who take complex points too).

Shape suffixes: B patches, C filters, F mel bands, T frames, P products, R taps in time, N inputs and M outputs of a
tile, L tiles.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

TAPS = 7
"""Frames that a filter covers."""
OUTPUTS = 8
"""Frames that are computed together: a tile."""
INPUTS = OUTPUTS + TAPS - 1
REAL_POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)
COMPLEX_POINTS = (1j, np.exp(0.25j * np.pi), np.exp(0.75j * np.pi))
"""Each stands for its conjugate too, and takes three products of real numbers."""
PATCHES = 2
"""Patches at a time: what is computed for one band of them fits in the second-level cache (0.7 MB)."""


def maximum_over_bands(mel_BFT: Tensor, filters_CFR: Tensor) -> Tensor:
    """Convolve spectrograms with wide filters, and take the maximum over the bands.

    Parameters
    ----------
    mel_BFT
        Spectrograms [shape=(B, F, T)]; frames before and after them are zero.
    filters_CFR
        Filters [shape=(C, f, 7)] that slide over bands and frames; f is at most F.

    Returns
    -------
    torch.Tensor [shape=(B, C, T)]
        For each frame, the filter's largest response over the F - f + 1 bands that it can start at.
    """
    outputs_MP, taps_PR, inputs_PN = (torch.from_numpy(each).to(mel_BFT) for each in algorithm())
    count, high, products = filters_CFR.shape[0], filters_CFR.shape[1], len(taps_PR)
    bands, frames = mel_BFT.shape[1:]
    tiles, half = -(-frames // OUTPUTS), TAPS // 2
    padded_BFT = functional.pad(mel_BFT, (half, tiles * OUTPUTS - frames + half))
    filters_PCF = torch.einsum("pr,cfr->pcf", taps_PR, filters_CFR).contiguous()
    done = []
    for tiles_bFLN in padded_BFT.unfold(2, INPUTS, OUTPUTS).split(PATCHES):
        patches = len(tiles_bFLN)
        columns = patches * tiles
        tiles_NFL = tiles_bFLN.permute(3, 1, 0, 2).reshape(INPUTS, bands * columns)
        tiles_PFL = (inputs_PN @ tiles_NFL).view(products, bands, columns)
        products_PCL = mel_BFT.new_empty(products, count, columns)
        response_MCL = mel_BFT.new_empty(OUTPUTS, count * columns)
        maximum_MCL = torch.full_like(response_MCL, -torch.inf)
        for band in range(bands - high + 1):
            torch.bmm(filters_PCF, tiles_PFL[:, band : band + high], out=products_PCL)
            torch.mm(outputs_MP, products_PCL.view(products, count * columns), out=response_MCL)
            torch.maximum(maximum_MCL, response_MCL, out=maximum_MCL)
        maximum_MCbL = maximum_MCL.view(OUTPUTS, count, patches, tiles)
        done.append(maximum_MCbL.permute(2, 1, 3, 0).flatten(2)[..., :frames])
    return torch.cat(done)


@cache
def algorithm() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three matrices of minimal filtering: ``y = outputs @ ((taps @ filter) * (inputs @ x))``.

    It is the multiplication of polynomials of degree 7 and 6, transposed: to evaluate one of them at the points is a
    matrix, and the matrix that finds the product's coefficients from its values is that which is right for all pairs
    of monomials.

    Returns
    -------
    outputs_MP : np.ndarray [shape=(8, 17)]
    taps_PR : np.ndarray [shape=(17, 7)]
    inputs_PN : np.ndarray [shape=(17, 14)]

    Examples
    --------
    >>> outputs, taps, inputs = algorithm()
    >>> np.allclose(outputs @ ((taps @ np.ones(7)) * (inputs @ np.arange(14))), 7 * np.arange(3, 11))
    True
    """
    outputs_PM, taps_PR = _values(OUTPUTS), _values(TAPS)
    pairs = np.einsum("pm,pr->mrp", outputs_PM, taps_PR).reshape(OUTPUTS * TAPS, -1)
    degrees = np.add.outer(np.arange(OUTPUTS), np.arange(TAPS)).ravel()
    inputs_PN = np.linalg.lstsq(pairs, np.eye(INPUTS)[degrees], rcond=None)[0]
    return outputs_PM.T, taps_PR, inputs_PN


def _values(terms: int) -> np.ndarray:
    """Matrix from a polynomial's coefficients to its values at the points, and to its highest coefficient."""
    rows = [point ** np.arange(terms) for point in REAL_POINTS]
    for point in COMPLEX_POINTS:
        powers = point ** np.arange(terms)
        rows += [powers.real, powers.imag, powers.real + powers.imag]
    return np.array([*rows, np.eye(terms)[-1]])
