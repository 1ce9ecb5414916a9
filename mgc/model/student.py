"""Distillation: a network that learns to guess what a pretrained encoder says of a clip, beside the clip's genre.

The guess is a second linear layer on what the first one sees, and is left behind when the network is kept: predictions
need no teacher. After Ding and Lerch, «Audio embeddings as teachers for music classification» (ISMIR 2023).

Shape suffixes: B clips in a batch, F mel bands, T frames, N clips, K windows of a clip, G genres, D values of a vector.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mgc.model.cnn import GenreCNN
from mgc.model.genre_network import GenreNetwork

NETWORK = "network."
"""How the names of the weights begin that are kept."""


class Student(GenreNetwork):
    """A network with a guess of its teacher's vectors: in training, these come behind the logits.

    Parameters
    ----------
    network
        What is learnt.
    size
        Values of the teacher's vectors, D.
    """

    def __init__(self, network: GenreCNN, size: int) -> None:
        super().__init__(network.window, network.window)
        self.network = network
        self.guess = nn.Linear(network.linear.in_features, size)

    @property
    def linear(self) -> nn.Linear:  # type: ignore[override]
        """The last layer, with an output a genre."""
        return self.network.linear

    def _logits(self, mel_B1FT: Tensor) -> Tensor:
        values_BD = self.network.pooled(mel_B1FT)
        logits_BG: Tensor = self.network.linear(values_BD)
        return torch.cat([logits_BG, self.guess(values_BD)], 1) if self.training else logits_BG


def said_of(taught_BKD: Tensor, starts_B: Tensor, last: int) -> Tensor:
    """Return what the teacher says of the part of each clip that the network hears: of its window nearest to that.

    Parameters
    ----------
    taught_BKD
        The teacher's vectors of K windows that cover each clip evenly.
    starts_B
        First frame of what the network hears.
    last
        The last frame that it can begin at; 0 where it hears whole clips, of which the mean is said.

    Returns
    -------
    torch.Tensor [shape=(B, D), dtype=float32]
    """
    if not last:
        return taught_BKD.float().mean(1)
    nearest_B = (starts_B * (taught_BKD.shape[1] - 1) / last).round().long()
    return taught_BKD[torch.arange(len(taught_BKD), device=taught_BKD.device), nearest_B].float()


def distance(guess_BD: Tensor, said_BD: Tensor) -> Tensor:
    """One minus the cosine of guesses and what the teacher says [shape=(B,)].

    Parameters
    ----------
    guess_BD, said_BD
        Vectors.
    """
    return 1 - functional.cosine_similarity(guess_BD, said_BD)
