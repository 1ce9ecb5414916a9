"""Where a fit runs and where its clips are kept: as the flags say, else as it fits; and nothing impossible."""

from dataclasses import replace

import pytest
import torch
from helpers.feature_sets import SHARDED_SPEC, make_sharded
from helpers.fits import PLAIN, figures

from mgc.core.errors import InputError
from mgc.dataset.protocols import learning_set
from mgc.training import hardware
from mgc.training import placement as places
from mgc.training.loop import fit
from mgc.training.placement import Place, choose_feed

CPU = Place(1, gpu=False)
CLIP = 2 * SHARDED_SPEC.shape[0] * SHARDED_SPEC.shape[1]
"""Bytes in memory."""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """60, 20 and 13 clips."""
    return make_sharded(tmp_path_factory.mktemp("places") / "set", training=(30, 30), validation=(20,), test=(13,))


@pytest.fixture
def memory(monkeypatch):
    """Set how much memory is free."""
    return lambda free: monkeypatch.setattr(hardware, "available_memory", lambda: free)


# Clips in memory or in their shards


@pytest.mark.parametrize(("config", "clips"), [(PLAIN, 80), (replace(PLAIN, split="random"), 93)])
@pytest.mark.parametrize("workers", [1, 3])
def test_clips_that_fit_go_into_memory_and_others_stay_in_their_shards(small, memory, capsys, config, clips, workers):
    place = Place(workers, gpu=False)
    need = clips * CLIP * (1 if workers == 1 else 2)  # beside this process's own, a copy for the workers
    memory(round(need / hardware.SHARE_OF_MEMORY) + 10)
    assert choose_feed(None, small, config, place) == ("memory", False)
    assert f"features: {clips} clips in memory" in capsys.readouterr().err
    memory(round(need / hardware.SHARE_OF_MEMORY) - 10)
    assert choose_feed(None, small, config, place) == ("stream", True)
    assert f"features: {clips} clips read from their shards" in capsys.readouterr().err


@pytest.mark.parametrize("free", [0, 10**12])
def test_the_flag_wins_whatever_is_free(small, memory, free):
    memory(free)
    assert choose_feed("stream", small, PLAIN, CPU) == ("stream", True)
    assert choose_feed("memory", small, PLAIN, CPU) == ("memory", False)


def test_what_was_decided_is_one_line_with_its_reason_on_standard_error(small, memory, capsys):
    memory(2_345_000_000)
    choose_feed(None, small, PLAIN, CPU)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "features: 80 clips in memory (0.00 GB; 2.3 GB of memory are free)\n"
    memory(0)
    choose_feed("memory", small, PLAIN, CPU)
    assert "80 clips in memory (0.00 GB; 0.0 GB of memory are free)" in capsys.readouterr().err


GPU = Place(1, gpu=True)
ROOMY, SHORT = 10**12, 10**3
"""Bytes that are free."""


@pytest.mark.parametrize(
    ("asked", "on_gpu", "beside", "chosen", "said"),
    [
        (None, ROOMY, ROOMY, ("device", False), "on the GPU"),
        (None, ROOMY, SHORT, ("device", True), "on the GPU"),  # from the shards to the GPU
        (None, SHORT, ROOMY, ("memory", False), "in memory"),
        (None, SHORT, SHORT, ("stream", True), "read from their shards"),
        ("device", SHORT, ROOMY, ("device", False), "on the GPU"),
        ("memory", ROOMY, SHORT, ("memory", False), "in memory"),
        ("stream", ROOMY, ROOMY, ("stream", True), "read from their shards"),
    ],
)
def test_clips_live_on_a_gpu_with_room_for_them_and_a_step(
    small, memory, monkeypatch, capsys, asked, on_gpu, beside, chosen, said
):
    memory(beside)
    monkeypatch.setattr(hardware, "free_gpu_memory", lambda _: on_gpu)
    assert choose_feed(asked, small, PLAIN, GPU) == chosen
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"features: 80 clips {said} (0.00 GB; {on_gpu / 1e9:.1f} GB are free on the GPU, ")


def test_several_gpus_are_looked_at_by_their_workers(small, memory, monkeypatch, capsys):
    monkeypatch.setattr(hardware, "free_gpu_memory", None)  # the driver may have no GPU
    for free, lazily, where in ((ROOMY, False, "in memory"), (SHORT, True, "in their shards")):
        memory(free)
        assert choose_feed(None, small, PLAIN, Place(2, gpu=True)) == (None, lazily)
        assert f"80 clips {where}, and on each GPU with room for them (" in capsys.readouterr().err
    assert choose_feed("device", small, PLAIN, Place(2, gpu=True)) == ("device", True)


def test_clips_cannot_live_on_a_gpu_that_is_not_there(small):
    with pytest.raises(InputError, match="this fit has no GPU"):
        choose_feed("device", small, PLAIN, CPU)


def test_a_set_can_be_asked_about_for_two_copies_without_a_place(small, memory):
    memory(round(2 * 80 * CLIP / hardware.SHARE_OF_MEMORY) + 10)
    assert choose_feed(None, small, PLAIN, copies=2) == ("memory", False)
    memory(round(2 * 80 * CLIP / hardware.SHARE_OF_MEMORY) - 10)
    assert choose_feed(None, small, PLAIN, copies=2) == ("stream", True)


@pytest.mark.parametrize(
    ("place", "lazily", "gpu_memory", "feed"),
    [
        (CPU, False, None, "memory"),
        (CPU, True, None, "stream"),
        (replace(CPU, feed="stream"), False, None, "stream"),
        (GPU, False, ROOMY, "device"),
        (GPU, True, ROOMY, "device"),
        (GPU, False, SHORT, "memory"),
        (GPU, True, SHORT, "stream"),
        (replace(GPU, feed="memory"), False, ROOMY, "memory"),
        (replace(GPU, feed="device"), False, SHORT, "device"),
    ],
)
def test_a_fit_is_told_where_the_clips_live(small, monkeypatch, place, lazily, gpu_memory, feed):
    """By each process for its own GPU, where ``train`` has not decided: of clips that are where they are."""
    told = {}
    monkeypatch.setattr(hardware, "free_gpu_memory", lambda _: gpu_memory)
    monkeypatch.setattr(places, "fit", lambda *_, **how: told.update(how))
    data = learning_set(small, PLAIN, lazily=lazily)
    replace(place, graphs=True, deterministic=True).fit(PLAIN, data, None, None)
    del told["on_epoch"]
    assert told == {"device": torch.device(place.device), "feed": feed, "graphs": True, "deterministic": True}
    assert str(replace(place, graphs=True, deterministic=True)) == str(place)  # a part of what a run is known by


# Where


@pytest.fixture
def gpus(monkeypatch):
    """Set how many GPUs there are."""

    def there_are(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    there_are(0)
    return there_are


@pytest.mark.parametrize(
    ("there", "asked", "workers", "place", "name"),
    [
        (0, None, 1, Place(1, gpu=False), "CPU"),
        (0, 0, 1, Place(1, gpu=False), "CPU"),
        (0, None, 3, Place(3, gpu=False), "3 CPU workers"),
        (2, None, 1, Place(1, gpu=True), "1 GPU"),
        (2, None, 3, Place(3, gpu=False), "3 CPU workers"),
        (2, 0, 1, Place(1, gpu=False), "CPU"),
        (2, 0, 2, Place(2, gpu=False), "2 CPU workers"),
        (2, 1, 1, Place(1, gpu=True), "1 GPU"),
        (2, 2, 1, Place(2, gpu=True), "2 GPUs"),
        (2, 2, 2, Place(2, gpu=True), "2 GPUs"),
    ],
)
def test_a_place_is_what_the_flags_ask_for_and_without_them_a_gpu_if_there_is_one(
    gpus, there, asked, workers, place, name
):
    gpus(there)
    chosen = Place.choose(asked, workers)
    assert chosen == place
    assert str(chosen) == name
    assert chosen.device == ("cuda" if place.gpu else "cpu")


@pytest.mark.parametrize(
    ("there", "asked", "workers", "words"),
    [
        (0, None, 0, ["--workers 0", "at least 1"]),
        (0, None, -2, ["--workers -2", "at least 1"]),
        (0, -1, 1, ["--gpus -1", "at least 0"]),
        (0, 1, 1, ["--gpus 1", "there are 0 here"]),
        (1, 2, 1, ["--gpus 2", "there is 1 here"]),
        (2, 3, 3, ["--gpus 3", "there are 2 here"]),
        (4, 2, 3, ["--gpus 2 --workers 3", "a worker a GPU"]),
        (2, 1, 2, ["--gpus 1 --workers 2", "a worker a GPU"]),
    ],
)
def test_a_place_that_cannot_be_is_refused_in_one_line(gpus, there, asked, workers, words):
    gpus(there)
    with pytest.raises(InputError) as error:
        Place.choose(asked, workers)
    message = error.value.for_command_line()
    assert len(message.splitlines()) == 1
    assert all(word in message for word in words)


def test_one_worker_is_this_process(small, tmp_path):
    heard = []
    fitted = CPU.fit(PLAIN, learning_set(small, PLAIN), tmp_path / "place", heard.append)
    assert fitted.checkpoint == tmp_path / "place"
    assert tuple(heard) == fitted.history
    assert figures(heard) == figures(fit(PLAIN, learning_set(small, PLAIN), tmp_path / "plain").history)
