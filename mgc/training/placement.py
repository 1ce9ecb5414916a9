"""Where a fit runs: in this process, or in the workers of Ray Train on one machine or many."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mgc.core.errors import InputError, MgcError, RunError
from mgc.core.progress import say
from mgc.core.ray_session import connect
from mgc.dataset.protocols import splits_of
from mgc.training import hardware
from mgc.training.hardware import FeedName, feed_for
from mgc.training.loop import Fitted, fit

if TYPE_CHECKING:
    from pathlib import Path

    from mgc.config import TrainConfig
    from mgc.dataset.protocols import LearningSet
    from mgc.features.feature_set import FeatureSet
    from mgc.training.fit_state import Epoch

CPU = torch.device("cpu")
RESTARTS = 3
"""How often Ray Train starts its workers again after one died; they resume from the last epoch."""


@dataclass(frozen=True)
class Place:
    """The processes and devices of a fit."""

    workers: int
    """1 is this process; 2 or more are workers of Ray Train, which share each batch."""
    gpu: bool
    """Each worker has a GPU."""
    feed: FeedName | None = None
    """Where clips live during the fit; None has each process decide by what is free there."""
    graphs: bool = False
    """On one GPU: record the training step as a CUDA graph."""
    deterministic: bool = False
    """On a GPU: the same figures each time, bit for bit. The CPU's are so anyway."""

    @classmethod
    def choose(cls, gpus: int | None, workers: int) -> Place:
        """Choose processes and devices.

        Parameters
        ----------
        gpus
            Number of GPUs, a worker each; None takes one if there is one and ``workers`` is 1.
        workers
            Number of CPU workers where there are no GPUs.

        Raises
        ------
        InputError
            There are fewer GPUs, or the numbers contradict each other.
        """
        if workers < 1:
            raise InputError(f"`workers={workers}`: must be at least 1")
        if gpus is not None and gpus < 0:
            raise InputError(f"`gpus={gpus}`: must be at least 0")
        if gpus is None:
            gpus = 1 if workers == 1 and torch.cuda.is_available() else 0
        there = torch.cuda.device_count()
        if gpus > max(1, there) and os.environ.get("RAY_ADDRESS"):  # the cluster's GPUs count, not this machine's
            connect()
            import ray

            there = int(ray.cluster_resources().get("GPU", 0))
        if gpus and workers not in (1, gpus):
            raise InputError(
                f"`gpus={gpus}` `workers={workers}`: a worker a GPU; leave `workers` out, or `gpus=0` for the CPU"
            )
        if gpus > there:
            raise InputError(
                f"`gpus={gpus}`: there {'is' if there == 1 else 'are'} {there} here; ask for fewer, or none"
            )
        return cls(gpus, True) if gpus else cls(workers, False)

    @property
    def device(self) -> str:
        """The device of each worker, as PyTorch names it."""
        return "cuda" if self.gpu else "cpu"

    def fit(
        self,
        config: TrainConfig,
        data: LearningSet,
        folder: Path,
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
            The folder holds the state of another fit, or a damaged one.
        """
        if self.workers == 1:
            return self._fit_here(config, data, folder, on_epoch)
        return self._fit_on_ray(config, data, folder, on_epoch, shared)

    def _fit_here(
        self, config: TrainConfig, data: LearningSet, folder: Path, on_epoch: Callable[[Epoch], None]
    ) -> Fitted:
        """Fit in this process, or as one of the workers in theirs."""
        clips, device = data.clips, torch.device(self.device)
        feed = feed_for(self.feed, clips.mel_NFT.shape, config, device, in_memory=clips.in_memory)
        flags = {"graphs": self.graphs, "deterministic": self.deterministic}
        return fit(config, data, folder, on_epoch=on_epoch, device=device, feed=feed, **flags)

    def _fit_on_ray(
        self, config: TrainConfig, data: LearningSet, folder: Path, on_epoch: Callable[[Epoch], None], shared: Any
    ) -> Fitted:
        """Run ``fit`` in every worker of a TorchTrainer (DDP over gloo or NCCL); rank 0's epochs are reported here."""
        connect()
        import ray
        import ray.train
        from ray.train.torch import TorchTrainer
        from ray.util.queue import Queue

        logging.getLogger("ray.train").setLevel(logging.ERROR)
        epochs = Queue(actor_options={"num_cpus": 0})
        job = {"place": self, "config": config, "folder": folder, "epochs": epochs}
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
    """The training function of a Ray Train worker; errors that each restart would meet again are returned."""
    import ray

    report = job["epochs"].put if torch.distributed.get_rank() == 0 else lambda _: None
    try:
        place: Place = job["place"]
        return place._fit_here(job["config"], ray.get(job["data"]), job["folder"], report)
    except MgcError as error:
        return error


def choose_feed(
    feed: FeedName | None,
    feature_set: FeatureSet,
    config: TrainConfig,
    place: Place | None = None,
    *,
    copies: int | None = None,
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
    place
        Processes and devices of the fit; one CPU by default.
    copies
        How often the clips would be in memory: by default once, or twice where several workers take them from Ray's
        object store.

    Returns
    -------
    feed, lazily
        For the fit: ``device``, ``memory`` or ``stream``, or None where several workers each ask their own GPU. For
        this process: whether to leave the clips in their shards.

    Raises
    ------
    InputError
        ``feed="device"`` without a GPU.
    """
    place = place or Place(1, gpu=False)
    copies = copies or (2 if place.workers > 1 else 1)
    spec, splits = feature_set.manifest.spec, splits_of(config)
    shape = (sum(entry.rows for entry in feature_set.manifest.shards if entry.split in splits), *spec.shape)
    here = feed_for(None if feed == "device" else feed, shape, config, CPU, copies=copies)
    free = f"{hardware.available_memory() / 1e9:.1f} GB"
    reason = f"{free} of memory are free"
    where = {"device": "on the GPU", "memory": "in memory", "stream": "read from their shards"}
    if place.gpu and place.workers > 1 and feed is None:
        held = "in their shards" if here == "stream" else "in memory"
        chosen, said = None, f"{held}, and on each GPU with room for them"
    else:
        device = torch.device(place.device)
        chosen = feed_for(feed, shape, config, device, copies=copies)
        said = where[chosen]
        if place.gpu and place.workers == 1:
            there = hardware.free_gpu_memory(device)
            reason = f"{there / 1e9:.1f} GB are free on the GPU, {free} beside it"
    need = copies * hardware.clip_bytes(shape)
    say(f"features: {shape[0]} clips {said} ({need / 1e9:.2f} GB; {reason})")
    return chosen, here == "stream"
