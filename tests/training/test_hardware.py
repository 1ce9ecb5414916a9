"""Where clips live: as the user says, else by what is free on the GPU and in memory; and what counts as free."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.feature_sets import SHARDED_SPEC, make_sharded
from helpers.fits import PLAIN

from mgc.config import ModelConfig, OptimConfig, TrainConfig
from mgc.core.errors import InputError
from mgc.training import hardware
from mgc.training.hardware import (
    SHARE_OF_MEMORY,
    available_memory,
    choose_feed,
    clip_bytes,
    feed_for,
    fits_gpu,
    free_gpu_memory,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SHAPE = (100, 12, 18)
ROOMY, SHORT = 10**12, 10**3
"""Bytes that are free."""


@pytest.fixture
def free(monkeypatch):
    """Set how much is free in memory and on the GPU."""

    def set_free(memory, gpu=0):
        monkeypatch.setattr(hardware, "available_memory", lambda: memory)
        monkeypatch.setattr(hardware, "free_gpu_memory", lambda _: gpu)

    return set_free


# Where clips live


@pytest.mark.parametrize("copies", [1, 2])
def test_on_the_cpu_clips_are_in_memory_if_all_their_copies_fit(free, copies):
    need = round(copies * clip_bytes(SHAPE) / SHARE_OF_MEMORY)
    free(need + 10)
    assert feed_for(None, SHAPE, PLAIN, CPU, copies=copies) == "memory"
    free(need - 10)
    assert feed_for(None, SHAPE, PLAIN, CPU, copies=copies) == "stream"


@pytest.mark.parametrize(
    ("gpu", "memory", "feed"),
    [
        (ROOMY, ROOMY, "device"),
        (ROOMY, SHORT, "device"),
        (SHORT, ROOMY, "memory"),
        (SHORT, SHORT, "stream"),
    ],
)
def test_on_a_gpu_clips_live_there_if_they_fit_else_beside_it(free, gpu, memory, feed):
    free(memory, gpu)
    assert feed_for(None, SHAPE, PLAIN, GPU) == feed


@pytest.mark.parametrize("device", [CPU, GPU])
def test_clips_that_are_loaded_already_stay_where_they_are_beside_a_gpu_without_room(free, device):
    free(SHORT, SHORT)
    assert feed_for(None, SHAPE, PLAIN, device, in_memory=True) == "memory"
    free(ROOMY, SHORT)
    assert feed_for(None, SHAPE, PLAIN, device, in_memory=False) == "stream"
    free(ROOMY, ROOMY)
    assert feed_for(None, SHAPE, PLAIN, GPU, in_memory=False) == "device"


@pytest.mark.parametrize("amount", [SHORT, ROOMY])
@pytest.mark.parametrize("feed", ["device", "memory", "stream"])
def test_what_the_user_asks_for_is_taken_whatever_is_free(free, feed, amount):
    free(amount, amount)
    assert feed_for(feed, SHAPE, PLAIN, GPU) == feed
    assert feed == "device" or feed_for(feed, SHAPE, PLAIN, CPU) == feed


def test_clips_cannot_live_on_a_gpu_that_is_not_there():
    with pytest.raises(InputError) as error:
        feed_for("device", SHAPE, PLAIN, CPU)
    line = "--feed device: this fit has no GPU; leave it out, or take --feed memory"
    assert error.value.for_command_line() == line


def test_clips_fit_a_gpu_beside_what_a_step_takes():
    small_set = (6400, 128, 1288)  # 2.1 GB
    gigabytes = {size: int(size * 1e9) for size in (4, 8, 16, 80)}
    whole, halved = TrainConfig(), TrainConfig(optim=OptimConfig(batch_size=16))
    crops = TrainConfig(model=ModelConfig(window=128))
    assert [fits_gpu(small_set, whole, free) for free in gigabytes.values()] == [False, False, True, True]
    assert [fits_gpu(small_set, halved, free) for free in gigabytes.values()] == [False, True, True, True]
    assert fits_gpu(small_set, crops, gigabytes[8])  # a crop's step is a tenth; validation takes whole clips
    assert not fits_gpu((106_574, 128, 1288), crops, gigabytes[16])
    assert fits_gpu((106_574, 128, 1288), crops, gigabytes[80])
    assert not fits_gpu(small_set, replace(crops, model=ModelConfig(channels=(64,), window=128)), gigabytes[8])


# What is free


def test_what_an_earlier_fit_has_left_counts_as_free(monkeypatch):
    for name, size in (("mem_get_info", (30, 100)), ("memory_reserved", 50), ("memory_allocated", 8)):
        monkeypatch.setattr(torch.cuda, name, lambda _, size=size: size)
    assert free_gpu_memory(torch.device("cuda")) == 72


def test_free_memory_is_some_and_less_than_the_machine_has():
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < available_memory() < physical


AVAILABLE = 4_000_000_000
MEMINFO = f"MemTotal:       8000000 kB\nMemAvailable:    {AVAILABLE // 1024} kB\nHugePages_Total:       0"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A stand-in for the kernel, because no container's limit can be had here: it says what a test has it say."""
    monkeypatch.setattr(hardware, "Path", lambda path: tmp_path / Path(path).relative_to("/"))

    def says(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(f"{text}\n")

    says({"proc/meminfo": MEMINFO})
    return says


def test_free_is_what_the_kernel_says_is_available(machine):
    assert available_memory() == AVAILABLE
    machine({"sys/fs/cgroup/memory.max": "max", "sys/fs/cgroup/memory.current": 123456})
    assert available_memory() == AVAILABLE


def test_a_containers_limit_counts_where_it_is_lower(machine):
    machine({"sys/fs/cgroup/memory.max": 1_000_000_000, "sys/fs/cgroup/memory.current": 600_000_000})
    assert available_memory() == 400_000_000
    machine({"sys/fs/cgroup/memory.max": 900_000_000_000})
    assert available_memory() == AVAILABLE


def test_what_a_container_holds_of_files_is_free(machine):
    """After preprocessing its memory is full of the shards it wrote, which the kernel drops when asked for more."""
    machine({"sys/fs/cgroup/memory.max": 1_000_000_000, "sys/fs/cgroup/memory.current": 990_000_000})
    machine({"sys/fs/cgroup/memory.stat": "anon 190000000\nfile 800000000\ninactive_file 800000000\nactive_file 0"})
    assert available_memory() == 810_000_000


def test_the_limit_of_an_older_container_counts_too(machine):
    folder = "sys/fs/cgroup/memory"
    machine({f"{folder}/memory.limit_in_bytes": 1_000_000_000, f"{folder}/memory.usage_in_bytes": 600_000_000})
    assert available_memory() == 400_000_000
    machine({f"{folder}/memory.limit_in_bytes": 9223372036854771712})  # no limit
    assert available_memory() == AVAILABLE


# Before a feature set is loaded


CLIP = 2 * SHARDED_SPEC.shape[0] * SHARDED_SPEC.shape[1]
"""Bytes in memory."""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """60, 20 and 13 clips."""
    return make_sharded(tmp_path_factory.mktemp("places") / "set", training=(30, 30), validation=(20,), test=(13,))


@pytest.fixture
def memory(monkeypatch):
    """Set how much memory is free, here; a cluster of this node alone has a large object store."""
    monkeypatch.setattr(hardware, "smallest_object_store", lambda: ROOMY)
    monkeypatch.setattr(hardware, "check_seen", lambda *_: None)
    return lambda free: monkeypatch.setattr(hardware, "available_memory", lambda: free)


@pytest.mark.parametrize(("config", "clips"), [(PLAIN, 80), (replace(PLAIN, split="random"), 93)])
@pytest.mark.parametrize("on_ray", [False, True])
def test_clips_that_fit_go_into_memory_and_others_stay_in_their_shards(small, memory, capsys, config, clips, on_ray):
    need = clips * CLIP * (2 if on_ray else 1)  # beside this process's own, a copy for the workers
    memory(round(need / hardware.SHARE_OF_MEMORY) + 10)
    assert choose_feed(None, small, config, on_ray=on_ray) == ("memory", False)
    assert f"features: {clips} clips in memory" in capsys.readouterr().err
    memory(round(need / hardware.SHARE_OF_MEMORY) - 10)
    assert choose_feed(None, small, config, on_ray=on_ray) == ("stream", True)
    assert f"features: {clips} clips read from their shards" in capsys.readouterr().err


@pytest.mark.parametrize("free", [0, 10**12])
def test_the_flag_wins_whatever_is_free(small, memory, free):
    memory(free)
    assert choose_feed("stream", small, PLAIN) == ("stream", True)
    assert choose_feed("memory", small, PLAIN) == ("memory", False)


def test_what_was_decided_is_one_line_with_its_reason_on_standard_error(small, memory, capsys):
    memory(2_345_000_000)
    choose_feed(None, small, PLAIN)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "features: 80 clips in memory (0.00 GB; 2.3 GB of memory are free)\n"
    memory(0)
    choose_feed("memory", small, PLAIN)
    assert "80 clips in memory (0.00 GB; 0.0 GB of memory are free)" in capsys.readouterr().err


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
    assert choose_feed(asked, small, PLAIN, gpu=True) == chosen
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"features: 80 clips {said} (0.00 GB; {on_gpu / 1e9:.1f} GB are free on the GPU, ")


def test_several_gpus_are_looked_at_by_their_workers(small, memory, monkeypatch, capsys):
    monkeypatch.setattr(hardware, "free_gpu_memory", None)  # the driver may have no GPU
    for free, lazily, where in ((ROOMY, False, "in memory"), (SHORT, True, "in their shards")):
        memory(free)
        assert choose_feed(None, small, PLAIN, gpu=True, on_ray=True) == (None, lazily)
        assert f"80 clips {where}, and on each GPU with room for them (" in capsys.readouterr().err
    assert choose_feed("device", small, PLAIN, gpu=True, on_ray=True) == ("device", True)


def test_a_set_cannot_live_on_a_gpu_that_is_not_there(small):
    with pytest.raises(InputError, match="this fit has no GPU"):
        choose_feed("device", small, PLAIN)


def test_clips_beyond_a_share_of_the_object_store_are_read_by_each_worker(small, memory, monkeypatch):
    memory(ROOMY)
    enough = 80 * CLIP / hardware.SHARE_OF_OBJECT_STORE
    monkeypatch.setattr(hardware, "smallest_object_store", lambda: enough + 10)
    assert choose_feed(None, small, PLAIN, on_ray=True) == ("memory", False)
    monkeypatch.setattr(hardware, "smallest_object_store", lambda: enough - 10)
    assert choose_feed(None, small, PLAIN, on_ray=True) == ("stream", True)
    assert choose_feed("memory", small, PLAIN, on_ray=True) == ("memory", False)
