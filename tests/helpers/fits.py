"""Configurations of small fits, and what makes two of them comparable bit by bit."""

from dataclasses import replace

import pytest
import torch

from mgc.config import AugmentConfig, ModelConfig, OptimConfig, TrainConfig

PLAIN = TrainConfig(
    model=ModelConfig(channels=(4,), norm=True, head="avgmax", dropout=0.0), optim=OptimConfig(batch_size=8), epochs=3
)


AUGMENT = AugmentConfig(
    mixup_alpha=0.5, time_masks=1, time_mask_frames=4, band_masks=1, band_mask_bands=3, equalize=0.3
)


EVERYTHING = TrainConfig(
    model=ModelConfig(
        channels=(4,), norm=True, input_norm=True, head="avgmax", dropout=0.3, head_dropout=0.2, window=11
    ),
    augment=AUGMENT,
    optim=OptimConfig(
        lr=0.01,
        schedule="cosine",
        weight_decay=0.01,
        label_smoothing=0.1,
        batch_size=8,
        warmup_epochs=1.5,
        clip_norm=0.5,
        ema_epochs=0.7,
    ),
    epochs=8,
    patience=3,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums are then taken in one order, and two fits can be compared bit by bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def changed(config, **optim):
    return replace(config, optim=replace(config.optim, **optim))


def figures(history):
    return [{k: v for k, v in point.metrics().items() if k != "epoch/seconds"} for point in history]
