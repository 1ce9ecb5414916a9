"""Where a fit runs: in this process, or in the workers of Ray Train on one machine or many.

Workers share nothing but storage: each epoch's state is there, from which the workers resume when one of them or its
node has died, and from which this process learns of the epochs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mgc.core.cluster import Demand, check_shared, working_nodes
from mgc.core.errors import InputError, MgcError, RunError, StoreError, last_line
from mgc.core.ray_session import connect, mute, on_cluster
from mgc.training.fit_state import history
from mgc.training.hardware import FeedName, feed_for
from mgc.training.loop import Fitted, fit

if TYPE_CHECKING:
    from mgc.config import TrainConfig
    from mgc.core.storage import Folder
    from mgc.dataset.protocols import LearningSet
    from mgc.training.fit_state import Epoch

RESTARTS = 3
"""How often Ray Train starts its workers again after one died; they resume from the last epoch.

Nodes that are preempted with notice do not count.
"""
RAY_FILES = "ray_train"
"""Ray Train's own files, in the folder of the fit, of which nothing is read."""
FOLLOW_SECONDS = 2.0


@dataclass(frozen=True)
class Place:
    """The processes and devices of a fit."""

    workers: int
    """2 or more share each batch."""
    gpu: bool
    """Each worker has a GPU."""
    on_ray: bool = False
    """The workers are Ray Train's; else there is one, and it is this process."""
    min_workers: int = 1
    """With how many to go on where nodes were lost."""
    minutes: float = 15.0
    """How long to wait for their CPUs and GPUs."""
    feed: FeedName | None = None
    """Where clips live during the fit; None has each process decide by what is free there."""
    graphs: bool = False
    """On one GPU: record the training step as a CUDA graph."""
    deterministic: bool = False
    """On a GPU: the same figures each time, bit for bit. The CPU's are so anyway."""

    @classmethod
    def choose(cls, gpus: int | None, workers: int, min_workers: int | None = None, minutes: float = 15.0) -> Place:
        """Choose processes and devices; a cluster's are asked for, not counted, for they may come yet.

        Parameters
        ----------
        gpus
            Number of GPUs, a worker each; None takes one if this machine has one and ``workers`` is 1.
        workers
            Number of CPU workers where there are no GPUs.
        min_workers
            With how many workers or GPUs to go on where nodes were lost; all by default.
        minutes
            How long to wait for the CPUs and GPUs of a cluster.

        Raises
        ------
        InputError
            This machine has fewer GPUs, or the numbers contradict each other.
        """
        for name, value, least in (("workers", workers, 1), ("gpus", gpus, 0), ("min_workers", min_workers, 1)):
            if value is not None and value < least:
                raise InputError(f"`{name}={value}`: must be at least {least}")
        there = torch.cuda.device_count()
        if gpus is None:
            gpus = 1 if workers == 1 and there else 0
        if gpus and workers not in (1, gpus):
            raise InputError(
                f"`gpus={gpus}` `workers={workers}`: a worker a GPU; leave `workers` out, or `gpus=0` for the CPU"
            )
        if gpus > there and not on_cluster():
            raise InputError(
                f"`gpus={gpus}`: there {'is' if there == 1 else 'are'} {there} here; ask for fewer, or none"
            )
        count = gpus or workers
        if min_workers is not None and min_workers > count:
            raise InputError(f"`min_workers={min_workers}`: is more than the {count} that are asked for")
        return cls(count, bool(gpus), count > 1 or gpus > there, min_workers or count, minutes)

    @property
    def device(self) -> str:
        """The device of each worker, as PyTorch names it."""
        return "cuda" if self.gpu else "cpu"

    @property
    def demand(self) -> Demand:
        """What the workers ask Ray for."""
        what = "GPU workers" if self.gpu else "workers"
        return Demand(what, self.min_workers, {"CPU": 1, "GPU": 1} if self.gpu else {"CPU": 1}, self.minutes)

    @property
    def nodes(self) -> int:
        """How many machines can do work now."""
        return len(working_nodes()) if self.on_ray else 1

    def prepare(self, storage: Folder) -> None:
        """Join Ray, wait until there is room for the workers, and ask the nodes whether they see where state lives.

        Parameters
        ----------
        storage
            Where the folders of fits are.

        Raises
        ------
        InputError
            There was no room in time, or a node does not see the storage.
        """
        if self.on_ray:
            connect()
            self.demand.wait()
            check_shared("storage", storage)

    def fit(
        self,
        config: TrainConfig,
        data: LearningSet,
        folder: Folder,
        on_epoch: Callable[[Epoch], None],
        shared: Any = None,
    ) -> Fitted:
        """Fit a model in this process, or in every worker; an interrupted fit of the folder is resumed.

        Parameters
        ----------
        config
            Of the fit.
        data
            Training and validation clips.
        folder
            For state and checkpoint; all workers must see it.
        on_epoch
            Called in this process after each epoch.
        shared
            Reference of ``data``, if it is in Ray's object store already.

        Returns
        -------
        Fitted
            As ``mgc.training.loop.fit`` gives it.

        Raises
        ------
        RunError
            The loss is no longer finite, the device's memory is too small, or workers died again and again.
        InputError
            The folder holds the state of another fit, or a damaged one; or nodes were lost and none came instead.
        """
        if not self.on_ray:
            return self._fit_here(config, data, folder, on_epoch)
        return self._fit_on_ray(config, data, folder, on_epoch, shared)

    def _fit_here(
        self, config: TrainConfig, data: LearningSet, folder: Folder, on_epoch: Callable[[Epoch], None]
    ) -> Fitted:
        """Fit in this process, or as one of the workers in theirs."""
        clips, device = data.clips, torch.device(self.device)
        feed = feed_for(self.feed, clips.mel_NFT.shape, config, device, in_memory=clips.in_memory)
        flags = {"graphs": self.graphs, "deterministic": self.deterministic}
        return fit(config, data, folder, on_epoch=on_epoch, device=device, feed=feed, **flags)

    def _fit_on_ray(
        self, config: TrainConfig, data: LearningSet, folder: Folder, on_epoch: Callable[[Epoch], None], shared: Any
    ) -> Fitted:
        """Run ``fit`` in every worker of a TorchTrainer (DDP over gloo or NCCL); epochs are read from the state."""
        connect()
        import ray
        import ray.train
        from ray.train.torch import TorchTrainer

        mute("ray.train")
        filesystem, path = folder.filesystem
        trainer = TorchTrainer(
            _worker,
            # one copy of the data a machine, which its workers share
            train_loop_config={"place": self, "config": config, "folder": folder, "data": shared or ray.put(data)},
            scaling_config=ray.train.ScalingConfig(
                num_workers=self.workers if self.min_workers == self.workers else (self.min_workers, self.workers),
                use_gpu=self.gpu,
            ),
            run_config=ray.train.RunConfig(
                name=RAY_FILES,
                storage_path=path,
                storage_filesystem=filesystem,
                failure_config=ray.train.FailureConfig(max_failures=RESTARTS),
            ),
        )
        with _followed(folder, on_epoch), self.demand.watched(), _interrupts():
            try:
                fitted = trainer.fit().return_value
            except Exception as error:
                raise RunError(f"train: {last_line(str(error))}") from error
        folder.remove_folder(RAY_FILES)
        if isinstance(fitted, MgcError):
            raise fitted
        assert isinstance(fitted, Fitted)
        return fitted

    def __str__(self) -> str:
        unit = "GPU" if self.gpu else "CPU worker" if self.workers > 1 else "CPU"
        return f"{self.workers} {unit}{'s' if self.workers > 1 else ''}" if self.workers > 1 or self.gpu else unit


@contextmanager
def _interrupts() -> Iterator[None]:
    """Let Ctrl-C be a KeyboardInterrupt: Ray Train makes it an exit with code 0."""
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None


@contextmanager
def _followed(folder: Folder, on_epoch: Callable[[Epoch], None]) -> Iterator[None]:
    """During the block, read the epochs that workers have done from the state of their fit, and report each once."""
    over, reported = threading.Event(), 0

    def report() -> None:
        nonlocal reported
        for point in history(folder)[reported:]:
            on_epoch(point)
            reported += 1

    def follow() -> None:
        while not over.wait(FOLLOW_SECONDS):
            with suppress(StoreError):  # the next look will tell
                report()

    with ThreadPoolExecutor(1) as executor:
        following = executor.submit(follow)
        try:
            yield
        finally:
            over.set()
        following.result()
    report()


def _worker(job: dict[str, Any]) -> Fitted | MgcError:
    """The training function of a Ray Train worker; errors that each restart would meet again are returned."""
    import ray.train

    try:
        place: Place = job["place"]
        # for the dashboard alone: the state of the fit is what lasts
        report = lambda point: ray.train.report(point.metrics())  # noqa: E731
        return place._fit_here(job["config"], ray.get(job["data"]), job["folder"], report)
    except StoreError:
        raise  # it may answer the next time
    except MgcError as error:
        return error
