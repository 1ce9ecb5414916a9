"""A model is known by what it is: genres, recipe, temperature, weights."""

import hashlib
from dataclasses import replace

from mgc.audio.logmel import LogMelSpec
from mgc.config import ModelConfig, TrainConfig
from mgc.evaluation.calibration import NONE
from mgc.library.genre_model import GenreModel
from mgc.model.checkpoint import Card
from mgc.model.cnn import GenreCNN

SPEC = "LogMelSpec(sample_rate=22050, seconds=0.75, n_fft=2048, hop_length=512, n_mels=128, top_db=80.0, amin=1e-10)"


def test_a_model_has_the_fingerprint_that_it_had_before_there_was_another_scaling():
    config = ModelConfig(channels=(4, 8), head="avgmax")
    card = Card(TrainConfig(model=config), ("a", "b"), LogMelSpec(seconds=0.75), "f" * 64, {})
    network = GenreCNN(config, 2, card.spec.shape)
    digest = hashlib.sha256(f"(('a', 'b'), {SPEC}, '{NONE.temperature:.5g}')".encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    assert GenreModel.of([network], card, NONE).fingerprint == digest.hexdigest()
    louder = replace(card, spec=replace(card.spec, scaling="log1p"))
    assert GenreModel.of([network], louder, NONE).fingerprint != digest.hexdigest()
