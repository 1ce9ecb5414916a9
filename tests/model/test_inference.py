"""The one inference loop: evaluation mode, whatever the batches are, and the model as it was afterwards."""

import pytest
import torch

from mgc.config import PRESETS
from mgc.model.cnn import GenreCNN
from mgc.model.inference import BATCH_ON_CPU, BATCH_ON_GPU, batch_size, logits


@pytest.fixture
def model():
    """With norms and dropout, whose training mode would show."""
    torch.manual_seed(0)
    return GenreCNN(PRESETS["regularized"].model, 8, (128, 32)).train()


def test_logits_are_those_of_evaluation_mode_and_do_not_depend_on_the_batches(model):
    mel_NFT = torch.randn(7, 128, 32).half()
    whole, *parts = (torch.cat(list(logits(model, mel_NFT.split(size)))) for size in (7, 1, 2))
    assert model.training
    model.eval()
    with torch.no_grad():
        expected = model(mel_NFT.float().unsqueeze(1))
    for each in (whole, *parts):
        assert each.dtype == torch.float32
        assert torch.allclose(each, expected, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_in_its_mode_again_though_nobody_reads_on(model, training):
    model.train(training)
    reading = logits(model, torch.randn(4, 128, 32).split(2))
    next(reading)
    assert not model.training
    reading.close()
    assert model.training is training


def test_nothing_is_kept_for_a_backward_pass(model):
    assert not any(each.requires_grad for each in logits(model, torch.randn(2, 128, 32).split(1)))


def test_a_gpu_takes_larger_batches():
    assert batch_size(torch.device("cpu")) == BATCH_ON_CPU < BATCH_ON_GPU == batch_size(torch.device("cuda"))
