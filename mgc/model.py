"""The network: blocks of convolution over a log-Mel spectrogram, and a linear head.

Shape suffixes: B clips in a batch, C channels, F mel bands, T frames, G genres.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mgc.config import ModelConfig
from mgc.errors import InputError


class GenreCNN(nn.Module):
    """A plain CNN whose every regulariser is a field of its configuration.

    Parameters
    ----------
    config
        The network; ``ModelConfig()`` is the seed's baseline.
    n_genres
        Classes to tell apart.
    shape
        (mel bands, frames) of the input; only a ``flatten`` head depends on it.

    Examples
    --------
    >>> model = GenreCNN(ModelConfig(), n_genres=8, shape=(128, 1288))
    >>> sum(p.numel() for p in model.parameters())
    752520
    """

    def __init__(self, config: ModelConfig, n_genres: int, shape: tuple[int, int] = (128, 1288)) -> None:
        super().__init__()
        shrink = 2 ** len(config.channels)
        bands, frames = shape[0] // shrink, shape[1] // shrink
        if not bands or not frames:
            raise InputError(
                f"model.channels={config.channels}: {len(config.channels)} poolings leave nothing of {shape}"
            )
        self.head = config.head
        self.input_norm = nn.BatchNorm1d(shape[0]) if config.input_norm else nn.Identity()
        blocks: list[nn.Module] = []
        before = 1
        for filters in config.channels:
            # BatchNorm takes a bias out again: Adam would let it wander on rounding noise
            blocks += [nn.Conv2d(before, filters, 3, padding=1, bias=not config.norm)]
            blocks += [nn.BatchNorm2d(filters)] if config.norm else []
            blocks += [nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(config.dropout)]
            before = filters
        self.blocks = nn.Sequential(*blocks)
        pooled = {"flatten": before * bands * frames, "avg": before, "avgmax": 2 * before}[config.head]
        self.head_dropout = nn.Dropout(config.head_dropout)
        self.linear = nn.Linear(pooled, n_genres)

    def forward(self, mel_B1FT: Tensor) -> Tensor:
        """Logits [shape=(B, G)] of z-scored spectrograms [shape=(B, 1, F, T)]."""
        mel_BFT = self.input_norm(mel_B1FT.squeeze(1))
        maps_BCFT = self.blocks(mel_BFT.unsqueeze(1))
        if self.head == "flatten":
            pooled = maps_BCFT.flatten(1)
        elif self.head == "avg":
            pooled = maps_BCFT.mean(dim=(2, 3))
        else:
            pooled = torch.cat([maps_BCFT.mean(dim=(2, 3)), maps_BCFT.amax(dim=(2, 3))], dim=1)
        logits_BG: Tensor = self.linear(self.head_dropout(pooled))
        return logits_BG


@torch.inference_mode()
def predict_logits(model: nn.Module, mel_NFT: Tensor, batch_size: int = 64) -> Tensor:
    """Logits [shape=(N, G), dtype=float32, on the CPU] in evaluation mode, batch by batch on the model's device."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    batches = [model(batch.to(device).float().unsqueeze(1)).float().cpu() for batch in mel_NFT.split(batch_size)]
    model.train(training)
    return torch.cat(batches)
