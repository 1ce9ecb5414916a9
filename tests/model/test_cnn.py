import pytest
import torch
from torch import nn

from mgc.config import PRESETS, ModelConfig
from mgc.core.errors import InputError
from mgc.model.cnn import Dropout, Ensemble, GenreCNN, folded, together


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("preset", PRESETS)
def test_a_folded_network_gives_the_same_logits_in_less_layers(preset):
    torch.manual_seed(0)
    model = GenreCNN(PRESETS[preset].model, 8, (128, 200))
    with torch.no_grad():  # running statistics and scales that are not those of the start
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                for values, low, high in (
                    (layer.running_mean, -1, 1),
                    (layer.running_var, 0.5, 2),
                    (layer.weight, -2, 2),
                ):
                    values.uniform_(low, high)
    mel_B1FT = torch.randn(2, 1, 128, 200)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    with torch.inference_mode():
        expected = model.eval()(mel_B1FT)
        found = folded(model)(mel_B1FT)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not [layer for layer in folded(model).blocks if isinstance(layer, nn.BatchNorm2d | nn.Dropout)]
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())


def test_the_default_is_the_seeds_baseline_to_the_parameter():
    model = GenreCNN(ModelConfig(), 8, (128, 1288))
    assert parameters(model) == 752_520
    assert parameters(model.linear) == 655_368
    layers = [type(layer) for layer in model.blocks]
    assert layers == [nn.Conv2d, nn.MaxPool2d, nn.ReLU, Dropout] * 4
    assert {layer.p for layer in model.blocks if isinstance(layer, nn.Dropout)} == {0.1}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_baseline_computes_what_the_seed_computes(layout):
    """Its ReLU is before the pooling; ours, after it, gives the same logits and the same gradients."""
    torch.manual_seed(0)
    model = GenreCNN(PRESETS["plain_cnn"].model, 8).eval().to(memory_format=layout)
    convolutions = [layer for layer in model.blocks if isinstance(layer, nn.Conv2d)]
    blocks = [layer for conv in convolutions for layer in (conv, nn.ReLU(), nn.MaxPool2d(2))]
    seed = nn.Sequential(*blocks, nn.Flatten(), model.linear)
    mel = torch.randn(2, 1, 128, 1288)
    gradients = []
    for network in (model, seed):
        model.zero_grad()
        logits = network(mel)
        logits.square().sum().backward()
        gradients.append((logits.detach(), *(p.grad.clone() for p in model.parameters())))
    assert all(torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4) for ours, theirs in zip(*gradients, strict=True))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_drops_its_share_independently_and_keeps_the_mean(layout, p):
    torch.manual_seed(0)
    ones = torch.ones(16, 32, 33, 35).to(memory_format=layout).requires_grad_()
    dropped = Dropout(p)(ones)
    assert dropped.is_contiguous(memory_format=layout)
    kept = (dropped != 0).float()
    n = kept.numel()
    assert abs(kept.mean().item() - (1 - p)) < 5 * (p * (1 - p) / n) ** 0.5
    assert torch.allclose(dropped[dropped != 0], torch.tensor(1 / (1 - p)))
    for axis in range(4):  # neighbours know nothing of each other
        pairs = (kept * kept.roll(1, axis)).mean().item()
        assert abs(pairs - (1 - p) ** 2) < 6 * ((1 - p) ** 2 / n) ** 0.5
    dropped.sum().backward()
    assert torch.equal(ones.grad, dropped.detach())
    assert torch.equal(Dropout(p).eval()(ones), ones)


def test_a_window_is_a_crop_and_a_longer_clip_the_mean_vote_of_its_windows():
    torch.manual_seed(0)
    model = GenreCNN(ModelConfig(window=32, head="flatten", norm=True), 3, (128, 100)).eval()
    mel = torch.randn(2, 1, 128, 100)
    with torch.inference_mode():
        votes = torch.stack([model(mel[..., start : start + 32]) for start in (0, 23, 45, 68)])
        assert torch.allclose(model(mel), votes.mean(0), atol=1e-5)
        assert torch.equal(model(mel[..., :32]), votes[0])
    with pytest.raises(InputError, match=r"`model\.window=101`: clips have only 100 frames"):
        GenreCNN(ModelConfig(window=101), 3, (128, 100))


def test_the_best_preset_is_small():
    assert parameters(GenreCNN(PRESETS["short_chunk"].model, 8)) < 1_000_000


@pytest.mark.parametrize("head", ["flatten", "avg", "avgmax", "bands"])
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


def test_an_ensembles_probabilities_are_the_mean_of_its_members():
    torch.manual_seed(0)
    one, other = (GenreCNN(PRESETS["regularized"].model, 5, (128, 32)).train() for _ in range(2))
    assert together([one]) is one
    both = together([one, other])
    assert isinstance(both, Ensemble)
    assert not any(module.training for module in both.modules())
    mel = torch.randn(3, 1, 128, 32)
    with torch.inference_mode():
        mean = (one(mel).softmax(1) + other(mel).softmax(1)) / 2
        assert torch.allclose(both(mel).softmax(1), mean, atol=1e-6)
        assert not torch.allclose(one(mel).softmax(1), mean, atol=1e-3)
