"""A training that takes long enough to be killed."""

from dataclasses import replace

from mgc.config import ModelConfig, OptimConfig, TrainConfig

PLAIN = TrainConfig(
    model=ModelConfig(channels=(4, 8), dropout=0.0, norm=True, head="avgmax"), optim=OptimConfig(batch_size=8), epochs=3
)
LONG = replace(PLAIN, epochs=12, optim=replace(PLAIN.optim, batch_size=2))
