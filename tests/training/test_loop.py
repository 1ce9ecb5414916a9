"""The loop, without Ray: it learns, it is a function of its seed, it goes on where it was killed, ranks are one."""

import multiprocessing
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.ranks import fit_on_ranks

from mgc.config import PRESETS, ModelConfig, OptimConfig, TrainConfig
from mgc.core.errors import InputError, RunError
from mgc.core.storage import Folder
from mgc.dataset.protocols import learning_set
from mgc.model import checkpoint
from mgc.training.fit_state import STATE, discard
from mgc.training.loop import fit, is_kept

SMALL = TrainConfig(
    model=ModelConfig(channels=(4, 8), norm=True, head="avgmax"),
    optim=OptimConfig(lr=0.01, batch_size=8, schedule="cosine"),
    epochs=8,
)


@pytest.fixture(scope="module")
def data(features):
    return learning_set(features, SMALL)


def weights(folder):
    return checkpoint.read(folder)[0].state_dict()


def same(one, other, **tolerance):
    return all(torch.allclose(one[name], other[name], **tolerance) for name in one)


def without_clock(figures):
    return {name: value for name, value in figures.items() if not name.endswith("seconds")}


def figures(history):
    return [without_clock(point.metrics()) for point in history]


def test_it_learns_and_keeps_the_best_validation_epoch(data, tmp_path):
    fitted = fit(SMALL, data, tmp_path)
    assert [point.epoch for point in fitted.history] == list(range(1, SMALL.epochs + 1))
    assert fitted.val_accuracy == max(point.val_accuracy for point in fitted.history) > 0.6
    assert fitted.history[fitted.best_epoch - 1].val_accuracy == fitted.val_accuracy
    assert fitted.history[0].lr > fitted.history[-1].lr
    model, card = checkpoint.read(tmp_path)
    assert card.config == SMALL
    assert card.genres == data.genres
    assert card.figures["val_accuracy"] == fitted.val_accuracy
    with torch.inference_mode():
        logits = model(torch.from_numpy(data.clips.mel_NFT[data.training]).float().unsqueeze(1))
    right = (logits.argmax(1).numpy() == data.clips.labels_N[data.training]).mean()
    assert fitted.train_accuracy == pytest.approx(right)
    assert not is_kept(Folder.at(tmp_path))
    discard(Folder.at(tmp_path))
    assert is_kept(Folder.at(tmp_path))


def test_the_seed_decides_everything(data, tmp_path):
    one, again = fit(SMALL, data, tmp_path / "a"), fit(SMALL, data, tmp_path / "b")
    other = fit(replace(SMALL, seed=1), data, tmp_path / "c")
    assert figures(one.history) == figures(again.history)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"), rtol=0, atol=0)
    assert figures(one.history) != figures(other.history)


class Stop(Exception):  # noqa: N818 (no error)
    """What ends a fit from outside."""


def test_an_interrupted_fit_ends_as_an_undisturbed_one(data, tmp_path):
    config = replace(SMALL, model=replace(SMALL.model, dropout=0.3))
    undisturbed = fit(config, data, tmp_path / "whole")
    seen, times = [], {}

    def stop(point):
        seen.append(point.epoch)
        if len(seen) in (1, 3):
            raise Stop
        times.setdefault(point.epoch, point.ended)
        assert times[point.epoch] == point.ended

    for _ in range(2):
        with pytest.raises(Stop):
            fit(config, data, tmp_path / "parts", on_epoch=stop)
    resumed = fit(config, data, tmp_path / "parts", on_epoch=stop)
    # a resumed fit tells its former epochs again, with their first times: whoever was interrupted misses none
    assert seen == [1, 1, 2, *range(1, SMALL.epochs + 1)]
    assert figures(resumed.history) == figures(undisturbed.history)
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"), rtol=0, atol=0)


def _fit_and_linger(data, folder):
    fit(SMALL, data, folder, on_epoch=lambda point: time.sleep(60) if point.epoch == 2 else None)


def test_a_fit_killed_with_sigkill_goes_on(data, tmp_path):
    undisturbed = fit(SMALL, data, tmp_path / "whole")
    context = multiprocessing.get_context("spawn")
    victim = context.Process(target=_fit_and_linger, args=(data, tmp_path / "killed"))
    victim.start()
    deadline = time.monotonic() + 60
    while not (tmp_path / "killed" / STATE).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    with pytest.raises(InputError, match="no such file"):
        checkpoint.read(tmp_path / "killed")
    resumed = fit(SMALL, data, tmp_path / "killed")
    # a fresh process may sum in another order than this one
    for one, other in zip(figures(resumed.history), figures(undisturbed.history), strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_the_state_of_another_fit_is_refused(data, tmp_path):
    def stop(point):
        raise Stop

    with pytest.raises(Stop):
        fit(SMALL, data, tmp_path, on_epoch=stop)
    with pytest.raises(InputError, match="another configuration"):
        fit(replace(SMALL, seed=7), data, tmp_path)


def test_a_loss_that_is_not_finite_ends_the_fit_and_says_where(data, tmp_path):
    broken = replace(data.clips, mel_NFT=np.full_like(data.clips.mel_NFT, np.inf))
    with pytest.raises(RunError, match=r"loss is nan in epoch 1; try a lower `lr`"):
        fit(SMALL, replace(data, clips=broken), tmp_path)


@pytest.mark.parametrize(
    ("feed", "line"),
    [
        ("device", "out of memory on the device with all clips on it; try --feed memory or a --batch-size below 8"),
        ("memory", "out of memory on the device; try a --batch-size below 8"),
    ],
)
def test_too_little_memory_on_a_device_is_one_line_with_the_ways_out(data, tmp_path, monkeypatch, feed, line):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has …\nSee documentation")

    monkeypatch.setattr("mgc.training.loop.Feed", full)  # the first that asks a device for memory
    with pytest.raises(RunError) as error:
        fit(SMALL, data, tmp_path, device="meta", feed=feed)
    assert error.value.for_command_line() == line


def test_memory_that_runs_out_in_a_step_is_told_too(data, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("mgc.training.step.TrainStep._learn", full)
    with pytest.raises(RunError, match="try a `batch_size` below 8"):
        fit(SMALL, data, tmp_path)


def test_weight_decay_zero_is_adam(data, tmp_path):
    config = TrainConfig(model=ModelConfig(channels=(4,), dropout=0.0), optim=OptimConfig(batch_size=44), epochs=1)
    fit(config, data, tmp_path)
    torch.manual_seed(config.seed)
    from mgc.model.cnn import GenreCNN

    model = GenreCNN(config.model, len(data.genres), data.spec.shape)
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    logits = model(torch.from_numpy(data.clips.mel_NFT[data.training]).float().unsqueeze(1))
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(data.clips.labels_N[data.training])).backward()
    adam.step()
    learnt = weights(tmp_path)
    for name, expected in model.named_parameters():
        clear = expected.grad.abs() > 1e-5  # Adam's first step is the gradient's sign: of a zero it is noise
        assert clear.float().mean() > 0.5
        assert torch.allclose(learnt[name][clear], expected[clear], atol=1e-6)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("batch_size", [8, 1])  # 44 clips: batches of 7 and 8; of one, and none for the other rank
def test_two_ranks_reach_what_one_process_reaches(data, tmp_path, batch_size, norm):
    optim = OptimConfig(batch_size=batch_size, label_smoothing=0.1)
    head = "avgmax" if norm else "flatten"
    model = ModelConfig(channels=(4, 8), dropout=0.0, norm=norm, input_norm=norm, head=head)
    config = TrainConfig(model=model, optim=optim, epochs=3)
    fit(config, data, tmp_path / "one")
    fit_on_ranks(2, config, data, tmp_path / "two")
    one, two = checkpoint.read(tmp_path / "one")[1], checkpoint.read(tmp_path / "two")[1]
    assert without_clock(two.figures) == pytest.approx(without_clock(one.figures), abs=1e-5)
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"), atol=5e-5)


def test_the_regularized_preset_learns_too(data, tmp_path):
    preset = PRESETS["regularized"]
    config = replace(preset, epochs=10, optim=replace(preset.optim, batch_size=8))
    assert fit(config, data, tmp_path).val_accuracy > 0.6
