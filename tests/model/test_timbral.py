"""The network of timbral filters: what it hears, what its regularisers do; it is kept and trained like others."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from mgc.audio.logmel import LogMelSpec
from mgc.config import PRESETS, ModelConfig, OptimConfig, TrainConfig
from mgc.core.errors import InputError
from mgc.dataset.protocols import learning_set
from mgc.model import checkpoint
from mgc.model.cnn import Ensemble, GenreCNN, folded, together
from mgc.model.networks import build
from mgc.model.timbral import TimbralCNN
from mgc.training.loop import fit

SMALL = ModelConfig(front="timbral", front_filters=6, channels=(8, 8), head="avgmax", norm=True, input_norm=True)


def network(shape=(128, 100), genres=3, **changes):
    torch.manual_seed(0)
    return TimbralCNN(replace(SMALL, **changes), genres, shape)


def test_the_configuration_says_which_network_is_built():
    assert isinstance(build(SMALL, 3, (128, 100)), TimbralCNN)
    assert isinstance(build(ModelConfig(), 3, (128, 100)), GenreCNN)


def test_the_preset_is_small():
    model = build(PRESETS["timbral"].model, 8, (128, 1288))
    assert isinstance(model, TimbralCNN)
    assert sum(each.numel() for each in model.parameters()) < 1_000_000


@pytest.mark.parametrize("head", ["flatten", "avg", "avgmax", "bands"])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("shape", [(128, 40), (8, 5)])
def test_every_head_gives_a_logit_a_genre(head, norm, shape):
    model = network(shape, 5, head=head, norm=norm, input_norm=norm)
    assert model(torch.randn(3, 1, *shape)).shape == (3, 5)
    norms = [each for each in model.modules() if isinstance(each, nn.BatchNorm1d)]
    assert len(norms) == (5 if norm else 0)


def test_a_window_is_a_crop_and_a_longer_clip_the_mean_vote_of_its_windows():
    model = network(window=32).eval()
    mel = torch.randn(2, 1, 128, 100)
    with torch.inference_mode():
        votes = torch.stack([model(mel[..., start : start + 32]) for start in (0, 23, 45, 68)])
        logits, heard = model.hear(mel)
    assert model.starts(100) == [0, 23, 45, 68]
    assert torch.allclose(heard, votes, atol=1e-5)
    assert torch.allclose(logits, votes.mean(0), atol=1e-5)


def test_clips_too_small_for_it_are_the_users_error():
    with pytest.raises(InputError, match=r"`model\.front=timbral`: needs 8 mel bands"):
        network((7, 100))
    with pytest.raises(InputError, match=r"`model\.window=101`: clips have only 100 frames"):
        network(window=101)


def test_a_timbral_filter_finds_its_timbre_at_any_of_its_places():
    model = network(input_norm=False).eval()
    mel_BFT = torch.zeros(1, 128, 40)
    shape_FT = torch.randn(51, 7)
    low, high = mel_BFT.clone(), mel_BFT.clone()
    low[0, :51, 11:18] = shape_FT
    high[0, 77:, 11:18] = shape_FT
    _, _, shortest = model.timbral
    shortest.weight.data[0] = shape_FT
    with torch.inference_mode():
        found = [model._timbral(mel)[2][0, 0] for mel in (low, high, mel_BFT)]
    assert found[0].amax() == pytest.approx(shape_FT.square().sum().item(), rel=0.01)
    assert torch.allclose(found[0].amax(), found[1].amax())
    assert found[2].amax() < 1


def test_a_temporal_filter_hears_the_energy_and_not_its_pitch():
    model = network(input_norm=False).eval()
    beats = (torch.arange(100) % 20 < 4).float().expand(1, 8, 100)
    low, high = torch.zeros(1, 128, 100), torch.zeros(1, 128, 100)
    low[:, 16:24], high[:, 96:104] = beats, beats
    with torch.inference_mode():
        one, other = model._temporal(low), model._temporal(high)
        silence = model._temporal(torch.zeros(1, 128, 100))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(one, other, strict=True))
    assert not any(torch.allclose(a, b, atol=1e-2) for a, b in zip(one, silence, strict=True))


def test_dropout_is_of_values_or_of_whole_filters_and_of_the_head():
    for spatial, kind in ((False, nn.Dropout), (True, nn.Dropout1d)):
        model = network(dropout=0.3, head_dropout=0.6, spatial_dropout=spatial)
        kinds = [each for each in model.modules() if isinstance(each, nn.Dropout | nn.Dropout1d)]
        assert [each.p for each in kinds if type(each) is kind and each is not model.head_dropout] == [0.3] * 3
        assert model.head_dropout.p == 0.6


def test_folded_and_together_take_it():
    one, other = network(window=32).eval(), network(window=32, channels=(4,)).eval()
    mel = torch.randn(2, 1, 128, 100)
    both = together([folded(one), folded(other)])
    assert isinstance(both, Ensemble)
    with torch.inference_mode():
        assert torch.allclose(folded(one)(mel), one(mel), atol=1e-5)
        assert torch.allclose(both(mel).softmax(1), (one(mel).softmax(1) + other(mel).softmax(1)) / 2, atol=1e-6)


def test_its_checkpoint_comes_back_as_it_was(tmp_path):
    spec = LogMelSpec(seconds=0.75)
    card = checkpoint.Card(TrainConfig(model=SMALL), ("a", "b"), spec, "f" * 64, {"best_epoch": 1})
    before = network(spec.shape, 2)
    checkpoint.write(tmp_path, before.state_dict(), card)
    model, read = checkpoint.read(tmp_path)
    assert read == card
    assert isinstance(model, TimbralCNN)
    assert all(torch.equal(tensor, before.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_it_learns(features, tmp_path):
    config = TrainConfig(model=SMALL, optim=OptimConfig(lr=0.01, batch_size=8, schedule="cosine"), epochs=6)
    data = learning_set(features, config)
    fitted = fit(config, data, tmp_path)
    assert fitted.train_accuracy > 0.8
    assert fitted.val_accuracy > 0.5
    assert np.isclose(fitted.val_probabilities_NG.sum(1), 1).all()
