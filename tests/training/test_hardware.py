"""Where clips live: as the user says, else by what is free on the GPU and in memory; and what counts as free."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.fits import PLAIN

from mgc.config import ModelConfig, OptimConfig, TrainConfig
from mgc.core.errors import InputError
from mgc.training import hardware
from mgc.training.hardware import SHARE_OF_MEMORY, available_memory, clip_bytes, feed_for, fits_gpu, free_gpu_memory

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
