"""What moves the weights. Whole fits against a plain loop, with all its options, are in ``test_fit_state``."""

from dataclasses import replace

import pytest
import torch
from helpers.fits import EVERYTHING, PLAIN, changed
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mgc.model.cnn import GenreCNN
from mgc.training.optim import learning_rate, steps_per_epoch, update_average


def test_an_average_moves_as_torchs_own():
    model = GenreCNN(EVERYTHING.model, 4, (12, 18))
    ours, theirs = (AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.7), use_buffers=True) for _ in range(2))
    for step in range(5):
        for each in (*model.parameters(), *model.buffers()):
            each.data += torch.ones_like(each) * (step + 1)
        update_average(ours, model, first=step == 0)
        theirs.update_parameters(model)
        for one, other in zip(ours.module.state_dict().values(), theirs.module.state_dict().values(), strict=True):
            assert torch.equal(one, other)


def test_an_epoch_has_a_step_for_each_batch():
    assert [steps_per_epoch(PLAIN, clips) for clips in (1, 8, 9, 43)] == [1, 1, 2, 6]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_rate_rises_to_its_height_and_stays_or_falls_to_zero(schedule):
    config = changed(replace(PLAIN, epochs=10), lr=0.5, warmup_epochs=2, schedule=schedule)
    rates = [learning_rate(config, step, steps=7) for step in range(70)]
    assert rates[:14] == pytest.approx([0.5 * (step + 1) / 15 for step in range(14)])
    assert rates[14] == max(rates) == 0.5
    if schedule == "constant":
        assert set(rates[14:]) == {0.5}
    else:
        assert rates[14:] == sorted(rates[14:], reverse=True)
        assert rates[14 + 28] == pytest.approx(0.25)
        assert 0 < rates[-1] < 0.001
