"""Where a fit runs: as the flags say, and nothing impossible."""

from dataclasses import replace

import pytest
import torch
from helpers.feature_sets import make_sharded
from helpers.fits import PLAIN, figures

from mgc.core.errors import InputError
from mgc.core.storage import Folder
from mgc.dataset.protocols import learning_set
from mgc.training import hardware
from mgc.training import placement as places
from mgc.training.loop import fit
from mgc.training.placement import Place

CPU = Place(1, gpu=False)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """60, 20 and 13 clips."""
    return make_sharded(tmp_path_factory.mktemp("places") / "set", training=(30, 30), validation=(20,), test=(13,))


GPU = Place(1, gpu=True)
ROOMY, SHORT = 10**12, 10**3
"""Bytes that are free."""


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
        (0, None, 3, Place(3, False, True, 3), "3 CPU workers"),
        (2, None, 1, Place(1, gpu=True), "1 GPU"),
        (2, None, 3, Place(3, False, True, 3), "3 CPU workers"),
        (2, 0, 1, Place(1, gpu=False), "CPU"),
        (2, 0, 2, Place(2, False, True, 2), "2 CPU workers"),
        (2, 1, 1, Place(1, gpu=True), "1 GPU"),
        (2, 2, 1, Place(2, True, True, 2), "2 GPUs"),
        (2, 2, 2, Place(2, True, True, 2), "2 GPUs"),
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


@pytest.mark.parametrize(
    ("there", "asked", "workers", "least", "place"),
    [
        (0, 1, 1, None, Place(1, True, True, 1)),  # the driver's node has no GPU, a worker's has
        (0, 2, 1, None, Place(2, True, True, 2)),
        (1, 1, 1, None, Place(1, True)),
        (1, 4, 1, 2, Place(4, True, True, 2)),
        (0, None, 3, 1, Place(3, False, True, 1)),
    ],
)
def test_a_cluster_is_asked_for_gpus_that_are_not_here(gpus, monkeypatch, there, asked, workers, least, place):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    gpus(there)
    chosen = Place.choose(asked, workers, least)
    assert chosen == place
    assert chosen.demand.each == ({"CPU": 1, "GPU": 1} if place.gpu else {"CPU": 1})


def test_no_fewer_workers_than_one_and_no_more_than_all_can_be_the_least(gpus):
    for least, words in ((0, "--min-workers 0: must be at least 1"), (3, "--min-workers 3: is more than the 2 that")):
        with pytest.raises(InputError) as error:
            Place.choose(None, 2, least)
        assert words in error.value.for_command_line()


def test_one_worker_is_this_process(small, tmp_path):
    heard = []
    fitted = CPU.fit(PLAIN, learning_set(small, PLAIN), Folder.at(tmp_path / "place"), heard.append)
    assert fitted.checkpoint == Folder.at(tmp_path / "place")
    assert tuple(heard) == fitted.history
    assert figures(heard) == figures(fit(PLAIN, learning_set(small, PLAIN), tmp_path / "plain").history)
