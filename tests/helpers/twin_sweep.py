"""The sweep that is interrupted again and again, and its undisturbed twin."""

from pathlib import Path

from mgc.config import ModelConfig, OptimConfig, SweepConfig, TrainConfig
from mgc.sweep import tune

TWIN = SweepConfig(trials=3, concurrent=2, asha=False, top=1, seeds=2, without=())


def tune_twin(features, name, *resume):
    """The sweep that is interrupted again and again, and its undisturbed twin."""
    base = TrainConfig(model=ModelConfig(channels=(4, 8)), optim=OptimConfig(batch_size=2), epochs=12)
    Path("rate.yaml").write_text("optim.lr: {log_uniform: [0.001, 0.01]}")
    if resume:
        return tune.tune(features, base, resume=name)
    return tune.tune(features, base, TWIN, space=Path("rate.yaml"), name=name)
