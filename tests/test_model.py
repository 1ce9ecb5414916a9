import pytest
import torch
from torch import nn

from mgc.config import PRESETS, ModelConfig
from mgc.errors import InputError
from mgc.model import GenreCNN, predict_logits


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_the_default_is_the_seeds_baseline_to_the_parameter():
    model = GenreCNN(ModelConfig(), 8, (128, 1288))
    assert parameters(model) == 752_520
    assert parameters(model.linear) == 655_368
    layers = [type(layer) for layer in model.blocks]
    assert layers == [nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Dropout] * 4
    assert {layer.p for layer in model.blocks if isinstance(layer, nn.Dropout)} == {0.1}


def test_the_baseline_computes_what_the_seed_computes():
    torch.manual_seed(0)
    model = GenreCNN(PRESETS["baseline"].model, 8).eval()
    seed = nn.Sequential(*[layer for layer in model.blocks if not isinstance(layer, nn.Dropout)], nn.Flatten())
    mel = torch.randn(2, 1, 128, 1288)
    with torch.inference_mode():
        assert torch.equal(model(mel), model.linear(seed(mel)))


@pytest.mark.parametrize("head", ["flatten", "avg", "avgmax"])
@pytest.mark.parametrize("norm", [False, True])
def test_every_head_gives_a_logit_a_genre(head, norm):
    model = GenreCNN(ModelConfig(head=head, norm=norm, input_norm=norm), 5, (128, 40))
    assert model(torch.randn(3, 1, 128, 40)).shape == (3, 5)


def test_pooled_heads_take_any_length_and_few_parameters():
    model = GenreCNN(ModelConfig(head="avgmax"), 8, (128, 1288)).eval()
    assert parameters(model.linear) == 2 * 128 * 8 + 8
    assert model(torch.randn(1, 1, 128, 300)).shape == (1, 8)


def test_input_norm_is_one_scale_a_mel_band():
    model = GenreCNN(ModelConfig(input_norm=True, head="avg"), 2, (128, 32)).train()
    mel = torch.randn(64, 1, 128, 32) * torch.linspace(1, 9, 128)[:, None] + torch.arange(128.0)[:, None]
    normed = model.input_norm(mel.squeeze(1))
    assert torch.allclose(normed.mean(dim=(0, 2)), torch.zeros(128), atol=1e-3)
    assert torch.allclose(normed.std(dim=(0, 2)), torch.ones(128), atol=1e-2)


def test_more_poolings_than_the_input_has_is_the_users_error():
    with pytest.raises(InputError, match=r"model\.channels"):
        GenreCNN(ModelConfig(channels=(4,) * 8), 8, (128, 1288))


def test_prediction_leaves_the_model_in_its_mode_and_does_not_depend_on_the_batch():
    model = GenreCNN(PRESETS["regularized"].model, 8, (128, 32)).train()
    mel = torch.randn(7, 128, 32).half()
    whole = predict_logits(model, mel, batch_size=7)
    assert model.training
    assert torch.allclose(whole, predict_logits(model, mel, batch_size=2), atol=1e-5)
    assert whole.dtype == torch.float32
