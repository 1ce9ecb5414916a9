"""Small models, as a training leaves them: one hears whole clips of 2 s, one hears half a second at a time."""

import numpy as np
import pytest
import torch

from mgc.audio.logmel import LogMelSpec, feature
from mgc.config import ModelConfig, TrainConfig
from mgc.core.storage import Folder
from mgc.evaluation.calibration import Calibration
from mgc.model import checkpoint
from mgc.model.cnn import GenreCNN

SPEC = LogMelSpec(seconds=2.0)
GENRES = ("Folk", "Jazz", "Rock")


def samples(seconds, seed):
    """A tone in noise, at 22,050 Hz, that differs by seed."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * SPEC.sample_rate)) / SPEC.sample_rate
    tone = np.sin(2 * np.pi * 90 * 1.7 ** (seed % 8) * time * (1 + 0.1 * (seed % 3) * time))
    return (0.3 * tone + generator.normal(0, 0.02 * (1 + seed % 5), len(time))).astype(np.float32)


def make_model(folder, *, seed=0, calibrated=True, **config):
    torch.manual_seed(seed)
    config = TrainConfig(model=ModelConfig(channels=(4, 8), **config))
    network = GenreCNN(config.model, len(GENRES), SPEC.shape)
    with torch.no_grad():  # so that it is of different minds about different sounds
        network.eval()
        mels = [feature(samples(2, index), SPEC).z_FT for index in range(9)]
        network.linear.weight *= 9
        network.linear.bias -= network(torch.from_numpy(np.stack(mels)).float().unsqueeze(1)).mean(0)
    checkpoint.write(folder, network.state_dict(), checkpoint.Card(config, GENRES, SPEC, "f" * 64, {}))
    if calibrated:
        generator = np.random.default_rng(seed)
        probabilities = generator.dirichlet(np.full(len(GENRES), 0.5), 200).astype(np.float32)
        labels = np.array([generator.choice(len(GENRES), p=p / p.sum()) for p in probabilities.astype(float) ** 0.5])
        Calibration.fit(labels, probabilities).write(Folder.at(folder))
    return folder


@pytest.fixture(scope="session")
def whole_clips(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="session")
def half_seconds(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("half"), window=22, head="avgmax", norm=True)
