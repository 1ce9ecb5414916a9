"""Where a fit runs: in this process, or in the workers of Ray Train; and how its clips get there."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from mgc.config import TrainConfig
from mgc.core.errors import InputError, MgcError, RunError
from mgc.core.progress import say
from mgc.core.ray_session import connect
from mgc.dataset.batches import fits_device
from mgc.dataset.protocols import LearningSet, splits_of
from mgc.features.feature_set import FeatureSet
from mgc.model.device import free_memory
from mgc.training.fit_state import Epoch
from mgc.training.loop import Fitted, fit

FeedName: TypeAlias = Literal["device", "memory", "stream"]
SHARE_OF_MEMORY = 0.6
"""Of what is free: the most that clips in memory may take."""
CGROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Where a container's limit and use are told, by version 2 and version 1, and what of its use is files' content."""
RESTARTS = 3
"""How often Ray Train starts its workers again after one died; they go on from the last epoch."""


@dataclass(frozen=True)
class Place:
    """Where a fit runs."""

    workers: int
    gpu: bool
    feed: FeedName | None = None
    """Where clips live while they are learnt from; None leaves it to the fit, by what is free there."""
    graphs: bool = False
    """One GPU records a training step and launches it as one."""
    deterministic: bool = False
    """A GPU gives the same figures each time; the CPU does so anyway."""

    @classmethod
    def choose(cls, gpus: int | None, workers: int) -> Place:
        """Take what the flags ask for; without ``--gpus`` one GPU if there is one.

        Raises
        ------
        InputError
            There are fewer GPUs, or the flags contradict each other.
        """
        if workers < 1:
            raise InputError(f"--workers {workers}: must be at least 1")
        if gpus is not None and gpus < 0:
            raise InputError(f"--gpus {gpus}: must be at least 0")
        if gpus is None:
            gpus = 1 if workers == 1 and torch.cuda.is_available() else 0
        there = torch.cuda.device_count()
        if gpus > max(1, there) and os.environ.get("RAY_ADDRESS"):  # the cluster's GPUs count, not this machine's
            connect()
            import ray

            there = int(ray.cluster_resources().get("GPU", 0))
        if gpus and workers not in (1, gpus):
            raise InputError(
                f"--gpus {gpus} --workers {workers}: a worker a GPU; leave --workers out, or --gpus 0 for the CPU"
            )
        if gpus > there:
            raise InputError(
                f"--gpus {gpus}: there {'is' if there == 1 else 'are'} {there} here; ask for fewer, or none"
            )
        return cls(gpus, True) if gpus else cls(workers, False)

    @property
    def device(self) -> str:
        """The device of each worker."""
        return "cuda" if self.gpu else "cpu"

    @property
    def _how(self) -> dict[str, Any]:
        """What ``fit`` is told of the place."""
        return {
            "device": self.device,
            "resident": self.feed == "device" if self.gpu and self.feed else None,
            "graphs": self.graphs,
            "deterministic": self.deterministic,
        }

    def fit(
        self,
        config: TrainConfig,
        data: LearningSet,
        folder: Path,
        on_epoch: Callable[[Epoch], None],
        shared: Any = None,
    ) -> Fitted:
        """Fit a model here, or in every worker; a folder in which a fit was interrupted is gone on with.

        Parameters
        ----------
        shared
            The reference of ``data``, if it is in Ray's object store already.

        Raises
        ------
        RunError
            The loss is no longer finite, the device's memory is too small, or workers died again and again.
        """
        if self.workers == 1:
            return fit(config, data, folder, on_epoch=on_epoch, **self._how)
        return self._fit_on_ray(config, data, folder, on_epoch, shared)

    def _fit_on_ray(
        self, config: TrainConfig, data: LearningSet, folder: Path, on_epoch: Callable[[Epoch], None], shared: Any
    ) -> Fitted:
        """Run ``fit`` in every worker of a TorchTrainer (DDP over gloo or NCCL); rank 0's epochs are heard of here."""
        connect()
        import ray
        import ray.train
        from ray.train.torch import TorchTrainer
        from ray.util.queue import Queue

        logging.getLogger("ray.train").setLevel(logging.ERROR)
        epochs = Queue(actor_options={"num_cpus": 0})
        job = {"config": config, "folder": folder, "epochs": epochs, "how": self._how}
        trainer = TorchTrainer(
            _worker,
            train_loop_config=job | {"data": shared or ray.put(data)},  # one copy a machine, which its workers share
            scaling_config=ray.train.ScalingConfig(num_workers=self.workers, use_gpu=self.gpu),
            run_config=ray.train.RunConfig(
                name=folder.name,
                storage_path=str(folder.parent.parent / "ray_train"),
                failure_config=ray.train.FailureConfig(max_failures=RESTARTS),
            ),
        )

        def listen() -> None:
            for point in iter(epochs.get, None):
                on_epoch(point)

        with ThreadPoolExecutor(1) as executor:
            listening = executor.submit(listen)
            try:
                fitted = trainer.fit().return_value
            except Exception as error:
                raise RunError(f"train: {str(error).strip().splitlines()[-1]}") from error
            finally:
                epochs.put(None)
            listening.result()
        if isinstance(fitted, MgcError):
            raise fitted
        assert isinstance(fitted, Fitted)
        return fitted

    def __str__(self) -> str:
        unit = "GPU" if self.gpu else "CPU worker" if self.workers > 1 else "CPU"
        return f"{self.workers} {unit}{'s' if self.workers > 1 else ''}" if self.workers > 1 or self.gpu else unit


def _worker(job: dict[str, Any]) -> Fitted | MgcError:
    """The training function of one Ray Train worker; what would end every attempt alike is given back, not raised."""
    import ray

    tell = job["epochs"].put if torch.distributed.get_rank() == 0 else lambda _: None
    try:
        return fit(job["config"], ray.get(job["data"]), job["folder"], on_epoch=tell, **job["how"])
    except MgcError as error:
        return error


def choose_feed(
    feed: FeedName | None, feature_set: FeatureSet, config: TrainConfig, place: Place
) -> tuple[FeedName | None, bool]:
    """Where clips live during a fit, and whether this process leaves them in their shards; says so.

    As ``--feed`` says, else as they fit: on the GPU, in memory, in their shards. With several workers there is a copy
    in Ray's object store besides this process's own, and each looks at its own GPU: the feed is then None.

    Raises
    ------
    InputError
        They are to live on a GPU, and there is none.
    """
    if feed == "device" and not place.gpu:
        raise InputError("--feed device: this fit has no GPU; leave it out, or take --feed memory")
    spec, splits = feature_set.manifest.spec, splits_of(config)
    shape = (sum(entry.rows for entry in feature_set.manifest.shards if entry.split in splits), *spec.shape)
    size = 2 * math.prod(shape)
    free = available_memory()
    fits_here = (2 if place.workers > 1 else 1) * size <= SHARE_OF_MEMORY * free
    told = f"{free / 1e9:.1f} GB of memory are free"
    if place.gpu and place.workers == 1:
        there = free_memory(torch.device(place.device))
        told = f"{there / 1e9:.1f} GB are free on the GPU, {free / 1e9:.1f} GB beside it"
        feed = feed or ("device" if fits_device(shape, config, there) else None)
    lazily = feed == "stream" or (feed != "memory" and not fits_here)
    if place.gpu and place.workers > 1 and feed is None:
        where = f"{'in their shards' if lazily else 'in memory'}, and on each GPU with room for them"
    else:
        feed = feed or ("stream" if lazily else "memory")
        where = {"device": "on the GPU", "memory": "in memory", "stream": "read from their shards"}[feed]
    need = size * (2 if place.workers > 1 else 1)
    say(f"features: {shape[0]} clips {where} ({need / 1e9:.2f} GB; {told})")
    return feed, lazily


def available_memory() -> int:
    """Bytes that a process may still take, by the kernel's account and the container's limit."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # where neither is told
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        rows = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = 1024 * int(rows["MemAvailable"].split()[0])
    for folder, limit, used, files in CGROUPS:
        if (Path(folder) / limit).exists() and (most := (Path(folder) / limit).read_text().strip()) != "max":
            stat = dict(line.split() for line in _lines(Path(folder) / "memory.stat"))
            # files that were read or written count as used, but make way
            taken = int((Path(folder) / used).read_text()) - int(stat.get(files, 0))
            free = min(free, int(most) - taken)
    return free


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []
