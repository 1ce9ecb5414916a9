"""MSD_musicnn against TensorFlow (``make_reference.py``), and its quick way against the plain one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from encoders.make_reference import patches
from torch.nn import functional

from mgc.audio import decode
from mgc.audio.logmel import RECIPES, feature
from mgc.encoders.minimal_filtering import maximum_over_bands
from mgc.encoders.musicnn import TAGS, WINDOW
from mgc.encoders.registry import ENCODERS, load, untrained

REFERENCE = Path(__file__).parent / "data" / "musicnn.npz"


@pytest.mark.parametrize("gradients", [True, False])
def test_outputs_are_tensorflows(weights, gradients):
    """With gradients by plain convolutions, without them by the quick ones."""
    model, mel_BFT = load("musicnn"), torch.from_numpy(patches())
    with torch.set_grad_enabled(gradients):
        outputs = {"pooled": model(mel_BFT), "penultimate": model.penultimate(mel_BFT), "tags": model.tags(mel_BFT)}
    with np.load(REFERENCE, allow_pickle=False) as reference:
        for name, tolerance in {"pooled": 1e-3, "penultimate": 5e-5, "tags": 2e-6}.items():
            np.testing.assert_allclose(outputs[name].detach(), reference[name], rtol=1e-5, atol=tolerance)
        assert reference["tags"].argmax() == TAGS.index("electronic")


def test_it_hears_that_a_hip_hop_track_is_one(weights, fma_clip):
    spec = RECIPES[ENCODERS["musicnn"].features]
    with fma_clip.open("rb") as file:
        samples = decode.load(file, sample_rate=spec.sample_rate, seconds=spec.seconds).samples
    mel_FT = torch.from_numpy(feature(samples, spec).z_FT.astype(np.float32))
    with torch.inference_mode():
        tags_BK = load("musicnn").tags(mel_FT.unfold(1, WINDOW, WINDOW).transpose(0, 1))
    assert TAGS[tags_BK.mean(0).argmax()] == "Hip-Hop"
    assert tags_BK.mean(0).max() > 0.7


def disturbed(seed: int) -> torch.nn.Module:
    """A network with random weights whose BatchNorms scale and shift, some of them down."""
    model = untrained("musicnn", seed)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean):
                torch.nn.init.normal_(values, generator=generator)
            torch.nn.init.uniform_(module.running_var, 0.5, 2, generator=generator)
    return model


@pytest.mark.parametrize(("patch_count", "frames"), [(1, 187), (7, 187), (2, 20), (1, 301)])
def test_the_quick_way_is_the_plain_one(patch_count, frames):
    model = disturbed(frames)
    mel_BFT = torch.rand(patch_count, 96, frames, generator=torch.Generator().manual_seed(1)) * 4
    with torch.no_grad():
        quick = model(mel_BFT)
    plain = model(mel_BFT).detach()
    torch.testing.assert_close(quick, plain, rtol=1e-4, atol=1e-4)
    assert plain.std() > 0.1


def test_minimal_filtering_rounds_hardly_more_than_the_plain_sum():
    generator = torch.Generator().manual_seed(0)
    mel_BFT = torch.randn(3, 96, 187, generator=generator)
    filters_CFR = torch.randn(8, 67, 7, generator=generator)
    exact = functional.conv2d(mel_BFT.double()[:, None], filters_CFR.double()[:, None], padding=(0, 3)).amax(2)
    plain = functional.conv2d(mel_BFT[:, None], filters_CFR[:, None], padding=(0, 3)).amax(2)
    away = (maximum_over_bands(mel_BFT, filters_CFR) - exact).square().mean().sqrt()
    assert away < 10 * (plain - exact).square().mean().sqrt()
    assert away < 1e-5 * exact.std()


def test_every_weight_is_trained():
    model = untrained("musicnn").train()
    mel_BFT = torch.rand(3, 96, 70, generator=torch.Generator().manual_seed(0)) * 4
    model.tags(mel_BFT).square().mean().backward()
    for name, values in model.named_parameters():
        assert values.grad is not None, name
        assert values.grad.isfinite().all(), name
        assert values.grad.any(), name


def test_a_patch_is_heard_alone_in_evaluation():
    model = disturbed(3)
    mel_BFT = torch.rand(6, 96, 187, generator=torch.Generator().manual_seed(2)) * 4
    with torch.inference_mode():
        torch.testing.assert_close(model(mel_BFT)[4:5], model(mel_BFT[4:5]), rtol=1e-4, atol=1e-4)


def test_no_patches_give_no_vectors():
    with torch.inference_mode():
        assert untrained("musicnn")(torch.zeros(0, 96, 187)).shape == (0, 1506)


def test_it_is_exported_for_any_number_of_patches():
    model, mel_BFT = disturbed(5), torch.rand(5, 96, 187, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        program = torch.export.export(model, (mel_BFT[:2],), dynamic_shapes=({0: torch.export.Dim("patches")},))
        torch.testing.assert_close(program.module()(mel_BFT), model(mel_BFT), rtol=1e-4, atol=1e-4)
