"""A fit's state is whole or refused, and every option of a fit does what it says, resumed and shared too."""

import math
import multiprocessing
import os
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.feature_sets import make_sharded
from helpers.fits import AUGMENT, EVERYTHING, PLAIN, changed, figures, one_thread  # noqa: F401 (a fixture)
from safetensors.torch import load_file, save_file

from mgc.config import AugmentConfig, ModelConfig, OptimConfig, TrainConfig
from mgc.core.errors import InputError
from mgc.core.storage import Folder
from mgc.dataset import augment
from mgc.dataset.batches import batches, order
from mgc.dataset.protocols import learning_set
from mgc.model import checkpoint
from mgc.model.cnn import GenreCNN
from mgc.training.fit_state import STATE, discard, history
from mgc.training.loop import fit


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """43 clips to train on and 11 to validate on: primes, which no number of workers divides."""
    made = make_sharded(tmp_path_factory.mktemp("fit") / "set", training=(20, 23), validation=(11,))
    return learning_set(made, PLAIN)


@pytest.fixture(scope="module")
def contrary(data):
    """Validation clips are labelled so that whoever learns gets them wrong: an early epoch is the best."""
    labels_N = data.clips.labels_N.copy()
    labels_N[data.validation] = (labels_N[data.validation] + 1) % len(data.genres)
    return replace(data, clips=replace(data.clips, labels_N=labels_N))


class Stop(Exception):  # noqa: N818 (no error)
    """What ends a fit from outside."""


def interrupted(config, data, folder, *, after=1):
    """Fit until an epoch is done; the state file."""

    def stop(point):
        if point.epoch == after:
            raise Stop

    with pytest.raises(Stop):
        fit(config, data, folder, on_epoch=stop)
    return folder / STATE


def weights(folder):
    return checkpoint.read(folder)[0].state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# A state that is not whole


def refused(config, data, folder):
    """The one line that a fit of this folder ends with; the state stays as it is."""
    before = (folder / STATE).read_bytes()
    with pytest.raises(InputError) as error:
        fit(config, data, folder)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert str(folder / STATE) in message
    assert (folder / STATE).read_bytes() == before
    return message


@pytest.fixture(scope="module")
def left(data, tmp_path_factory):
    """The bytes of the state that an interrupted fit has left."""
    return interrupted(changed(PLAIN, ema_epochs=1.0), data, tmp_path_factory.mktemp("left")).read_bytes()


@pytest.fixture
def refuse(data, left, tmp_path):
    """Have a fit meet other bytes in place of its state; it goes on when the state is back."""
    config = changed(PLAIN, ema_epochs=1.0)

    def refuse(states):
        messages = []
        for state in states:
            (tmp_path / STATE).write_bytes(state)
            messages.append(refused(config, data, tmp_path))
        assert not (tmp_path / checkpoint.CARD).exists()
        (tmp_path / STATE).write_bytes(left)
        assert len(fit(config, data, tmp_path).history) == config.epochs
        return messages

    return refuse


def test_an_empty_or_truncated_state_is_refused(left, refuse):
    header = 8 + int.from_bytes(left[:8], "little")
    cuts = (0, 1, 8, 9, 100, header - 1, header, header + 1, len(left) - 1)
    assert all("damaged" in message for message in refuse([left[:size] for size in cuts]))


def test_a_state_of_other_bytes_is_refused(left, refuse):
    others = (bytes(len(left)), b"\xff" * len(left), b"{}", os.urandom(500), left + b"\0", left[8:])
    assert all("damaged" in message for message in refuse(others))


def test_a_state_with_a_hole_that_a_power_cut_left_is_refused(left, refuse):
    header = 8 + int.from_bytes(left[:8], "little")
    holes = [left[:start] + bytes(64) + left[start + 64 :] for start in range(header, len(left) - 64, 500)]
    refuse([hole for hole in holes if hole != left])


def test_a_state_with_a_flipped_bit_is_refused(left, refuse):
    flipped = []
    for place in np.random.default_rng(0).integers(0, len(left), 150):
        state = bytearray(left)
        state[place] ^= 1 << int(place % 8)
        flipped.append(bytes(state))
    refuse(flipped)


def test_a_file_of_somebody_elses_is_refused(data, tmp_path):
    save_file({"last.weight": torch.zeros(3), "thing": torch.ones(2)}, tmp_path / STATE)
    assert "belongs to another configuration" in refused(PLAIN, data, tmp_path)
    save_file({}, tmp_path / STATE, {"format": "pt"})
    assert "belongs to another configuration" in refused(PLAIN, data, tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        replace(PLAIN, seed=1),
        replace(PLAIN, epochs=4),
        replace(PLAIN, keep="last"),
        changed(PLAIN, ema_epochs=1.0),
        replace(PLAIN, model=replace(PLAIN.model, channels=(5,))),
        replace(PLAIN, augment=AUGMENT),
        replace(PLAIN, folds=2, fold=1),
    ],
)
def test_the_state_of_another_configuration_is_refused(data, tmp_path, other):
    interrupted(PLAIN, data, tmp_path)
    assert "belongs to another configuration" in refused(other, data, tmp_path)


def test_the_state_of_another_feature_set_is_refused(data, tmp_path):
    interrupted(PLAIN, data, tmp_path)
    assert "feature set" in refused(PLAIN, replace(data, fingerprint="0" * 64), tmp_path)


def test_a_damaged_state_costs_no_checkpoint_and_can_be_deleted(data, tmp_path):
    fitted = fit(PLAIN, data, tmp_path)
    before = weights(tmp_path)
    state = tmp_path / STATE
    state.write_bytes(state.read_bytes()[:-1])
    assert f"{state}: damaged" in (message := refused(PLAIN, data, tmp_path))
    assert "delete it to begin anew" in message
    assert same(weights(tmp_path), before)
    discard(Folder.at(tmp_path))
    discard(Folder.at(tmp_path))
    assert figures(fit(PLAIN, data, tmp_path).history) == figures(fitted.history)
    assert same(weights(tmp_path), before)


def test_a_state_is_written_anew_each_epoch_and_nothing_else_is_left(data, tmp_path):
    seen = []
    fit(PLAIN, data, tmp_path, on_epoch=lambda _: seen.append((tmp_path / STATE).read_bytes()))
    assert len({*seen}) == PLAIN.epochs
    assert {file.name for file in tmp_path.iterdir()} == {STATE, checkpoint.WEIGHTS, checkpoint.CARD}
    tensors = load_file(tmp_path / STATE)
    assert {name.partition(".")[0] for name in tensors} == {"last", "kept", "optimizer"}


# What the options do, against a plain loop


def plain_loop(config, data):
    """What weights a fit has to come to, clip by clip and step by step; and by what learning rates."""
    torch.manual_seed(config.seed)
    model = GenreCNN(config.model, len(data.genres), data.spec.shape).train()
    optim = config.optim
    adam = torch.optim.AdamW(model.parameters(), weight_decay=optim.weight_decay)
    steps = math.ceil(len(data.training) / optim.batch_size)
    average, rates = None, []
    for epoch in range(1, config.epochs + 1):
        rows = order(data.clips, data.training, config.seed, epoch)
        draws = augment.draw(config, data.spec.shape, len(rows), epoch)
        for places in batches(np.arange(len(rows)), optim.batch_size):
            mel, target = [], []
            for place in places:
                own, partner = rows[place], rows[draws.partners_N[place]]
                share = draws.shares_N[place].item()
                mixed = share * data.clips.mel_NFT[own].astype("f8") + (1 - share) * data.clips.mel_NFT[partner]
                mixed += draws.gains_NF[place].numpy()[:, None]
                for first, end in draws.times_NM2[place]:
                    mixed[:, first:end] = 0
                for first, end in draws.bands_NM2[place]:
                    mixed[first:end] = 0
                mel.append(mixed)
                target.append([(data.clips.labels_N[own], share), (data.clips.labels_N[partner], 1 - share)])
            told = model(torch.from_numpy(np.stack(mel)).float().unsqueeze(1)).log_softmax(1)
            e = optim.label_smoothing
            loss = sum(
                -weight * ((1 - e) * clip[label] + e * clip.mean())
                for clip, pair in zip(told, target, strict=True)
                for label, weight in pair
            ) / len(places)
            adam.zero_grad()
            loss.backward()
            if optim.clip_norm:
                length = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
                for p in model.parameters():
                    p.grad *= min(1.0, optim.clip_norm / length.item())
            step, rise = len(rates), optim.warmup_epochs * steps
            rates.append(optim.lr * (step + 1) / (rise + 1) if step < rise else optim.lr)
            if optim.schedule == "cosine" and step >= rise:
                rates[-1] = optim.lr * (1 + math.cos(math.pi * (step - rise) / (config.epochs * steps - rise))) / 2
            adam.param_groups[0]["lr"] = rates[-1]
            adam.step()
            now = {name: value.detach().double() for name, value in model.state_dict().items()}
            decay = math.exp(-1 / (optim.ema_epochs * steps)) if optim.ema_epochs and average else 0
            average = {name: decay * average[name] + (1 - decay) * now[name] if decay else now[name] for name in now}
    return average, rates


LAST = replace(PLAIN, keep="last")


@pytest.mark.parametrize(
    "config",
    [
        LAST,
        changed(LAST, ema_epochs=0.5),
        changed(LAST, ema_epochs=3.0),
        changed(LAST, clip_norm=0.2),
        changed(LAST, warmup_epochs=1.5),
        changed(LAST, warmup_epochs=1.3, schedule="cosine", weight_decay=0.1),
        replace(LAST, augment=AugmentConfig(mixup_alpha=0.5)),
        replace(changed(LAST, label_smoothing=0.2, ema_epochs=0.5, clip_norm=0.2), augment=AUGMENT),
    ],
    ids=["plain", "ema", "longer ema", "clip", "warm-up", "warm-up and cosine", "mixup", "together"],
)
def test_a_fit_comes_to_what_a_plain_loop_comes_to(data, tmp_path, config):
    fitted = fit(config, data, tmp_path)
    expected, rates = plain_loop(config, data)
    assert [point.lr for point in fitted.history] == pytest.approx(rates[5::6])  # of each epoch's last step
    if config.optim != LAST.optim or config.augment != LAST.augment:
        without, _ = plain_loop(LAST, data)
        assert max((expected[name] - without[name]).abs().max() for name in expected if "num" not in name) > 1e-3
    for name, value in weights(tmp_path).items():
        if value.is_floating_point():
            assert torch.allclose(value.double(), expected[name], atol=3e-5), name


def test_the_learning_rate_rises_from_nothing_and_falls_to_nothing(data, tmp_path):
    config = changed(replace(PLAIN, epochs=12), batch_size=43, warmup_epochs=4, schedule="cosine", lr=1e-3)
    rates = [point.lr for point in fit(config, data, tmp_path).history]  # a step an epoch
    assert rates[:4] == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4])
    assert rates[4] == 1e-3
    assert rates[8] == pytest.approx(0.5e-3)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.05e-3


@pytest.mark.parametrize("keep", ["best", "last"])
def test_what_is_kept_is_what_was_validated_the_average_where_there_is_one(data, tmp_path, keep):
    config = changed(replace(EVERYTHING, keep=keep, patience=0), ema_epochs=1.0)
    fitted = fit(config, data, tmp_path)
    model, card = checkpoint.read(tmp_path)
    kept = fitted.history[fitted.best_epoch - 1]
    with torch.inference_mode():
        logits = model(torch.from_numpy(data.clips.mel_NFT[data.validation]).float().unsqueeze(1))
    labels = torch.from_numpy(data.clips.labels_N[data.validation])
    assert kept.val_loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), abs=1e-5)
    assert kept.val_accuracy == fitted.val_accuracy == (logits.argmax(1) == labels).double().mean().item()
    assert kept.val_loss == fitted.val_loss
    np.testing.assert_allclose(fitted.val_probabilities_NG, logits.softmax(1).numpy(), atol=1e-5)
    assert (card.figures["best_epoch"], card.figures["epochs"]) == (fitted.best_epoch, config.epochs)
    assert card.figures["val_loss"] == kept.val_loss
    if keep == "last":
        assert fitted.best_epoch == config.epochs
    else:
        best = max((point.val_accuracy, -point.val_loss) for point in fitted.history)
        assert (kept.val_accuracy, -kept.val_loss) == best


def test_the_last_epoch_is_kept_though_another_is_better(contrary, tmp_path):
    fitted = fit(changed(replace(LAST, epochs=6), lr=0.03), contrary, tmp_path)
    assert fitted.best_epoch == 6
    assert fitted.val_accuracy == fitted.history[-1].val_accuracy < max(point.val_accuracy for point in fitted.history)


# Patience


STILL = changed(replace(PLAIN, model=replace(PLAIN.model, norm=False), epochs=9, patience=2), lr=1e-30)
"""Its weights stay as they are: no epoch is better than the first."""


def test_a_fit_that_gets_no_better_stops_after_its_patience(data, tmp_path):
    fitted = fit(STILL, data, tmp_path)
    assert len({(point.val_accuracy, point.val_loss) for point in fitted.history}) == 1
    assert [point.epoch for point in fitted.history] == [1, 2, 3]
    assert fitted.best_epoch == 1
    card = checkpoint.read(tmp_path)[1]
    assert (card.figures["epochs"], card.figures["best_epoch"]) == (3, 1)
    assert len(fit(replace(STILL, patience=0), data, tmp_path / "never").history) == 9


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_fit_interrupted_while_it_is_patient_stops_where_it_would_have(data, tmp_path, after):
    interrupted(STILL, data, tmp_path, after=after)
    heard = []
    assert len(fit(STILL, data, tmp_path, on_epoch=heard.append).history) == 3
    assert [point.epoch for point in heard] == [1, 2, 3]
    assert len(fit(STILL, data, tmp_path).history) == 3  # and once more: it was done


def test_patience_counts_epochs_without_a_better_accuracy(data, tmp_path):
    restless = changed(replace(PLAIN, epochs=25), lr=0.02)
    accuracies = [point.val_accuracy for point in fit(restless, data, tmp_path / "whole").history]
    stops = set()
    for patience in (1, 2, 3, 5):
        expected = next(
            epoch for epoch in range(1, 26) if epoch == 25 or epoch - 1 - np.argmax(accuracies[:epoch]) >= patience
        )
        fitted = fit(replace(restless, patience=patience), data, tmp_path / str(patience))
        assert [point.val_accuracy for point in fitted.history] == accuracies[:expected]
        stops.add(expected)
    assert len(stops) > 1


def test_a_falling_loss_is_no_better_accuracy(data, tmp_path):
    slow = changed(STILL, lr=1e-5)
    fitted = fit(slow, data, tmp_path)
    losses = [point.val_loss for point in fitted.history]
    assert len({point.val_accuracy for point in fitted.history}) == 1
    assert losses == sorted(losses, reverse=True)
    assert len({*losses}) == len(losses) == 3


# Resumed


@pytest.mark.parametrize("patience", [0, 3])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_fit_of_everything_interrupted_ends_as_an_undisturbed_one_bit_for_bit(contrary, tmp_path, patience, seed):
    config = replace(EVERYTHING, patience=patience, seed=seed)
    undisturbed = fit(config, contrary, tmp_path / "whole")
    assert (len(undisturbed.history) < config.epochs) == bool(patience)
    for after in (1, 3, len(undisturbed.history)):
        interrupted(config, contrary, tmp_path / "parts", after=after)
    resumed = fit(config, contrary, tmp_path / "parts")
    assert figures(resumed.history) == figures(undisturbed.history)
    assert resumed.best_epoch == undisturbed.best_epoch
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    assert same(load_file(tmp_path / "parts" / STATE), load_file(tmp_path / "whole" / STATE))


# Taken up by another


def test_the_epochs_behind_a_fit_are_those_it_told(data, tmp_path):
    assert history(Folder.at(tmp_path / "nowhere")) == history(Folder.at(tmp_path)) == []
    told = []

    def hear(point):
        told.append(point)
        assert history(Folder.at(tmp_path)) == told

    fitted = fit(PLAIN, data, tmp_path, on_epoch=hear)
    assert history(Folder.at(tmp_path)) == told == list(fitted.history)
    discard(Folder.at(tmp_path))
    assert history(Folder.at(tmp_path)) == []


# Shared


def _one_rank(rank, world, port, config, data, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    fitted = fit(config, data, folder)
    assert len(fitted.history) == config.epochs
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads now and then abort a process that takes the group down at its end


def test_three_ranks_reach_what_one_process_reaches_with_clips_varied_and_weights_averaged(data, tmp_path):
    """43 clips in batches of 2 and 1: shares of 1, 1 and 0, and of 1, 0 and 0; 11 to validate on."""
    model = ModelConfig(channels=(4,), norm=True, input_norm=True, head="avgmax", dropout=0.0, window=11)
    optim = OptimConfig(batch_size=2, ema_epochs=1.0, clip_norm=2.0)  # some are shortened
    config = TrainConfig(model, AUGMENT, optim, epochs=2)
    fit(config, data, tmp_path / "one")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mgc.training.loop"])  # torch is imported once for all three
    ranks = [
        context.Process(target=_one_rank, args=(rank, 3, port, config, data, tmp_path / "three")) for rank in range(3)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0, 0, 0]
    (alone, card), (together, other) = (checkpoint.read(tmp_path / name) for name in ("one", "three"))
    assert {**other.figures, "seconds": 0} == pytest.approx({**card.figures, "seconds": 0}, abs=1e-4)
    for name, value in together.state_dict().items():
        assert torch.allclose(value, alone.state_dict()[name], atol=1e-4), name


def test_the_history_of_a_damaged_state_is_refused_in_one_line(tmp_path):
    (tmp_path / STATE).write_bytes(b"not a state")
    with pytest.raises(InputError, match=r"state\.safetensors: damaged .*; delete it to begin anew"):
        history(Folder.at(tmp_path))
