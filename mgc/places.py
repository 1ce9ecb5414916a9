"""Where a fit runs: in this process, or in the workers of Ray Train; and how its clips get there."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from mgc.config import TrainConfig
from mgc.console import say
from mgc.errors import InputError, MgcError, RunError
from mgc.features import FeatureSet
from mgc.fit import Fitted, fit
from mgc.fit_state import Epoch
from mgc.learning import LearningSet
from mgc.ray_session import connect

FeedName: TypeAlias = Literal["memory", "stream"]
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
            The loss is no longer finite, or workers died again and again.
        """
        if self.workers == 1:
            return fit(config, data, folder, on_epoch=on_epoch, device=self.device)
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
        job = {"config": config, "folder": folder, "epochs": epochs, "device": self.device}
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
        return fit(job["config"], ray.get(job["data"]), job["folder"], on_epoch=tell, device=job["device"])
    except MgcError as error:
        return error


def lazily(feed: FeedName | None, feature_set: FeatureSet, splits: tuple[str, ...], place: Place) -> bool:
    """Whether clips stay in their shards: as ``--feed`` says, or where they do not fit into memory; says so.

    With several workers there is a copy in Ray's object store besides this process's own.
    """
    manifest = feature_set.manifest
    clips = sum(entry.rows for entry in manifest.shards if entry.split in splits)
    need = 2 * clips * manifest.spec.shape[0] * manifest.spec.shape[1] * (2 if place.workers > 1 else 1)
    free = available_memory()
    stream = feed == "stream" if feed else need > SHARE_OF_MEMORY * free
    where = "read from their shards" if stream else "in memory"
    say(f"features: {clips} clips {where} ({need / 1e9:.2f} GB; {free / 1e9:.1f} GB of memory are free)")
    return stream


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
