"""The one inference loop: batches of spectrograms to logits, in evaluation mode, on the device of the model.

Validation in training, ``mgc evaluate`` and ``mgc predict`` all run it.

Shape suffixes: B clips in a batch, F mel bands, T frames, G genres.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor, nn

    from mgc.model.cnn import Ensemble
    from mgc.model.genre_network import GenreNetwork

BATCH_ON_CPU = 2
"""Clips in a batch of inference on the CPU: of more, the cache does not hold what a layer leaves for the next."""
BATCH_ON_GPU = 64
"""Clips in a batch of inference on a GPU: their first feature map, 0.7 GB, keeps it busy for far longer than
launching a kernel takes, so more would take memory and save nothing."""


def batch_size(device: torch.device) -> int:
    """Return the number of clips in a batch of inference on a device.

    Parameters
    ----------
    device
        The CPU or a GPU.
    """
    return BATCH_ON_GPU if device.type == "cuda" else BATCH_ON_CPU


def logits(model: nn.Module, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Compute the logits of batches of spectrograms, in evaluation mode; the model's mode is restored at the end.

    Parameters
    ----------
    model
        Takes spectrograms [shape=(B, 1, F, T)].
    batches
        Spectrograms [shape=(B, F, T), any float dtype, on any device].

    Yields
    ------
    torch.Tensor [shape=(B, G), dtype=float32]
        Logits, on the device of the model.
    """
    return _each(model, lambda mel_B1FT: model(mel_B1FT).float(), batches)


def heard(model: GenreNetwork | Ensemble, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """As ``logits``, with those of each window that the model hears.

    Parameters
    ----------
    model
        The network.
    batches
        Spectrograms [shape=(B, F, T), any float dtype, on any device].

    Yields
    ------
    logits_BG : torch.Tensor [shape=(B, G), dtype=float32]
        Of the clips.
    logits_KBG : torch.Tensor [shape=(K, B, G), dtype=float32]
        Of the windows that ``model.starts`` lists.
    """
    return _each(model, lambda mel_B1FT: tuple(each.float() for each in model.hear(mel_B1FT)), batches)


def _each(model: nn.Module, call: Callable[[Tensor], Any], batches: Iterable[Tensor]) -> Iterator[Any]:
    device, training = next(model.parameters()).device, model.training
    model.eval()
    try:
        for mel_BFT in batches:
            with torch.inference_mode():
                answer = call(mel_BFT.to(device).float().unsqueeze(1))
            yield answer
    finally:
        model.train(training)
