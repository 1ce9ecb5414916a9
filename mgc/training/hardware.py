"""How much memory is free, and the one decision where clips live during a fit: on the GPU, in memory, or in shards."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch

from mgc.core.cluster import check_seen, smallest_object_store
from mgc.core.errors import InputError
from mgc.core.progress import say
from mgc.dataset import clips as clips_of
from mgc.dataset.embeddings import load_embedded, taught_by, weights_of
from mgc.dataset.protocols import splits_of
from mgc.features.layout import MANIFEST
from mgc.model.device import best_device
from mgc.model.inference import BATCH_ON_GPU
from mgc.model.pretrained import check_encoder

if TYPE_CHECKING:
    from mgc.config import TrainConfig
    from mgc.core.storage import Folder
    from mgc.dataset.clips import Clips
    from mgc.features.feature_set import FeatureSet

FeedName: TypeAlias = Literal["device", "memory", "stream"]
"""Where clips live: all on the GPU, all in memory, or in their shards, from which batches are read as they are due."""
SHARE_OF_MEMORY = 0.6
"""Of the free memory: the most that clips may take."""
SHARE_OF_OBJECT_STORE = 0.3
"""Of a node's object store: the most that clips may take; beyond it each worker reads its own from the shards."""
SHARE_OF_GPU = 0.8
"""Of a GPU's free memory: the most that clips and a training step may take together."""
STEP_MAPS = 16
"""What a step takes for each clip, in the values of its first feature map, float32: 5 to 11 were seen on the CPU."""
CPU = torch.device("cpu")
CGROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Where a container's memory limit and use are read, in version 2 and version 1, and which of its use is file cache."""


def feed_for(
    feed: FeedName | None,
    shape: tuple[int, ...],
    config: TrainConfig,
    device: torch.device,
    *,
    copies: int = 1,
    in_memory: bool | None = None,
) -> FeedName:
    """Decide where clips live during a fit.

    Parameters
    ----------
    feed
        What the user asked for, which is taken; None decides by the free memory.
    shape
        (clips, mel bands, frames) of the spectrograms, which are float16.
    config
        Batch size, crops and channels say how much memory a training step takes beside the clips.
    device
        Where the fit runs; a GPU's free memory is asked of this process's current one.
    copies
        How often the clips are in memory: 2 where Ray's object store has a copy besides this process.
    in_memory
        Whether the clips are in memory already (or, False, in their shards); None if they are not loaded yet.

    Returns
    -------
    FeedName
        ``device``, ``memory`` or ``stream``.

    Raises
    ------
    InputError
        ``feed="device"`` without a GPU.
    """
    if feed == "device" and device.type == "cpu":
        raise InputError("`feed=device`: this fit has no GPU; leave it out, or take `feed=memory`")
    if feed:
        return feed
    if device.type != "cpu" and fits_gpu(shape, config, free_gpu_memory(device)):
        return "device"
    if in_memory is None:
        in_memory = copies * clip_bytes(shape) <= SHARE_OF_MEMORY * available_memory()
    return "memory" if in_memory else "stream"


def choose_feed(
    feed: FeedName | None, feature_set: FeatureSet, config: TrainConfig, *, gpu: bool = False, on_ray: bool = False
) -> tuple[FeedName | None, bool]:
    """Decide where the clips of a feature set live during a fit, before they are loaded; and say so.

    Parameters
    ----------
    feed
        What the user asked for; None decides by the free memory.
    feature_set
        Its manifest says how many clips there are.
    config
        Says which splits are used, and how much a training step takes.
    gpu
        The fit is on a GPU.
    on_ray
        The fit, or several of them, are in workers of Ray, which take the clips from its object store if they are a
        small part of it, and else read them from the shards themselves. Ray is up.

    Returns
    -------
    feed, lazily
        For the fit: ``device``, ``memory`` or ``stream``, or None where several workers each ask their own GPU. For
        this process: whether to leave the clips in their shards.

    Raises
    ------
    InputError
        ``feed="device"`` without a GPU; or workers are to read shards, and a node does not see the feature set.
    """
    copies = 2 if on_ray else 1  # here, and in the object store
    spec, splits = feature_set.manifest.spec, splits_of(config)
    shape = (sum(entry.rows for entry in feature_set.manifest.shards if entry.split in splits), *spec.shape)
    here = feed_for(None if feed == "device" else feed, shape, config, CPU, copies=copies)
    if on_ray and feed is None and clip_bytes(shape) > SHARE_OF_OBJECT_STORE * smallest_object_store():
        here = "stream"
    if on_ray and here == "stream":
        check_seen("features", feature_set.folder, MANIFEST)
    free = f"{available_memory() / 1e9:.1f} GB"
    reason = f"{free} of memory are free"
    where = {"device": "on the GPU", "memory": "in memory", "stream": "read from their shards"}
    if gpu and on_ray and feed is None:
        held = "in their shards" if here == "stream" else "in memory"
        chosen, said = None, f"{held}, and on each GPU with room for them"
    else:
        device = torch.device("cuda" if gpu else "cpu")
        chosen = here if feed is None and not gpu else feed_for(feed, shape, config, device, copies=copies)
        said = where[chosen]
        if gpu and not on_ray:
            there = free_gpu_memory(device)
            reason = f"{there / 1e9:.1f} GB are free on the GPU, {free} beside it"
    need = copies * clip_bytes(shape)
    say(f"features: {shape[0]} clips {said} ({need / 1e9:.2f} GB; {reason})")
    return chosen, here == "stream"


def load_clips(
    feature_set: FeatureSet,
    config: TrainConfig,
    storage: Folder,
    feed: FeedName | None = None,
    *,
    gpu: bool = False,
    on_ray: bool = False,
    teacher_features: FeatureSet | None = None,
) -> tuple[FeedName | None, Clips]:
    """Read the clips of a fit, or what its frozen encoder makes of them, which fits anywhere.

    Parameters
    ----------
    feature_set, config, feed, gpu, on_ray
        As ``choose_feed`` takes them.
    storage
        Where the vectors of an encoder are kept.
    teacher_features
        A feature set of the same clips that the teacher listens to, where the network is distilled from one.

    Returns
    -------
    feed, clips
        Where the clips live during the fit, as ``choose_feed`` says; and the clips, in memory or in their shards.

    Raises
    ------
    InputError
        As ``choose_feed``, ``mgc.dataset.clips.load`` and ``mgc.dataset.embeddings``; or a teacher lacks its feature
        set, or a feature set its teacher.
    """
    splits, encoder, teacher = splits_of(config), config.model.encoder, config.optim.teacher
    if (teacher == "none") != (teacher_features is None):
        raise InputError("`optim.teacher` and `teacher_features` need each other: who teaches, and what it listens to")
    check_encoder(encoder, feature_set.manifest.spec)
    if config.frozen:
        here: FeedName | None = None if on_ray else "device" if gpu else "memory"
        device = best_device() if gpu else CPU
        return feed or here, load_embedded(feature_set, splits, encoder, storage, device=device)
    chosen, lazily = choose_feed(feed, feature_set, config, gpu=gpu, on_ray=on_ray)
    clips = clips_of.load(feature_set, *splits, lazily=lazily)
    if teacher_features is not None:
        clips = replace(clips, taught_NKD=taught_by(teacher, teacher_features, clips, storage))
    return chosen, clips if encoder == "none" else replace(clips, encoder=weights_of(encoder))


def clip_bytes(shape: tuple[int, ...]) -> int:
    """Return the bytes of spectrograms in float16.

    Parameters
    ----------
    shape
        (clips, mel bands, frames).
    """
    return 2 * math.prod(shape)


def fits_gpu(shape: tuple[int, ...], config: TrainConfig, free: int) -> bool:
    """Whether clips can live on a GPU beside what a training step or a batch of inference takes.

    Parameters
    ----------
    shape
        (clips, mel bands, frames) of the spectrograms.
    config
        Batch size, crops and channels.
    free
        Bytes that are free on the GPU.
    """
    if config.model.encoder != "none":
        return False  # the maps of an encoder that is trained take what there is
    _, bands, frames = shape
    first_map = 4 * config.model.channels[0] * bands
    training = STEP_MAPS * config.optim.batch_size * first_map * (config.crop or frames)
    inference = 4 * BATCH_ON_GPU * first_map * frames  # nothing is kept for a backward pass
    return clip_bytes(shape) + max(training, inference) <= SHARE_OF_GPU * free


def free_gpu_memory(device: torch.device) -> int:
    """Return the bytes that this process may still take on a GPU, its unused cached memory included.

    Parameters
    ----------
    device
        The GPU.
    """
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def available_memory() -> int:
    """Return the bytes of memory that a process may still take, by the kernel's account and the container's limit."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # where the kernel has no /proc/meminfo
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        rows = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = 1024 * int(rows["MemAvailable"].split()[0])
    for folder, limit, used, files in CGROUPS:
        if (Path(folder) / limit).exists() and (most := (Path(folder) / limit).read_text().strip()) != "max":
            stat = dict(line.split() for line in _lines(Path(folder) / "memory.stat"))
            # the cache of files that were read or written counts as used, but makes way
            taken = int((Path(folder) / used).read_text()) - int(stat.get(files, 0))
            free = min(free, int(most) - taken)
    return free


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []
