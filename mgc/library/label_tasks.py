"""Labelling with Ray Data: one shard = one block = one file; a task returns the record of its shard.

On a cluster with GPUs, tasks on CPUs decode, and a pool of actors, one a GPU, runs the network on what they have heard.
Without GPUs one task does both, so that no CPU waits for another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import pyarrow as pa

from mgc.core.cluster import total
from mgc.features.shard_tasks import gathered
from mgc.library import label_shards
from mgc.library.label_shards import LabelRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ray import ObjectRef
    from ray.data import Dataset

    from mgc.audio.logmel import LogMelSpec
    from mgc.core.storage import Folder
    from mgc.features.shard_tasks import Written
    from mgc.library.genre_model import GenreModel
    from mgc.library.label_plan import LabelPlan
    from mgc.library.label_shards import Heard, NotHeard
    from mgc.library.labels import Settings


@dataclass(frozen=True)
class LabelJob:
    """What all tasks of one labelling share."""

    root: Folder
    """The library."""
    out: Folder
    """The folder of the label set."""
    settings: Settings
    spec: LogMelSpec
    """The log-Mel recipe of the model."""
    clip_timeout: float
    """Seconds that decoding one file may take."""
    model: ObjectRef | None = None
    """The ``GenreModel`` in Ray's object store."""


def label_shards_of(
    plan: LabelPlan, files: Sequence[str], job: LabelJob, model: GenreModel, workers: int | None
) -> Written[LabelRecord]:
    """Label the files of some shards; Ray is up.

    Parameters
    ----------
    plan
        The plan of the set.
    files
        The shards to write, at least one.
    job
        What the tasks share.
    model
        The model.
    workers
        Tasks at a time, one CPU each; as many as the cluster has CPUs, at any moment, if None.

    Raises
    ------
    RunError
        A task failed; finished shards are kept.
    """
    import ray

    job, count = replace(job, model=ray.put(model)), sum(len(plan.shards[file]) for file in files)
    dataset = partial(_dataset, plan=plan, job=job, workers=workers)
    return gathered("label", "files", count, files, dataset, LabelRecord.from_json, workers)


def _dataset(files: Sequence[str], plan: LabelPlan, job: LabelJob, workers: int | None) -> Dataset:
    import ray.data

    blocks = [_block(plan, file) for file in files]
    arguments = {"batch_size": None, "batch_format": "pyarrow", "num_cpus": 1, "fn_kwargs": {"job": job}}
    tasks = ray.data.TaskPoolStrategy(size=workers and min(workers, len(blocks)))
    data, gpus = ray.data.from_blocks(blocks), min(int(total("GPU")), len(blocks))
    if not gpus:
        return data.map_batches(label_shard, compute=tasks, **arguments)
    return data.map_batches(listen_shard, compute=tasks, **arguments).map_batches(
        Network,
        batch_size=1,  # a row is a shard
        batch_format="pyarrow",
        num_cpus=0,
        num_gpus=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=gpus),
        fn_constructor_kwargs={"job": job},
    )


def _block(plan: LabelPlan, file: str) -> pa.Table:
    paths = list(plan.shards[file])
    return pa.table({"path": paths, "shard": [file] * len(paths), "fingerprint": [plan.fingerprint(file)] * len(paths)})


def label_shard(block: pa.Table, *, job: LabelJob) -> pa.Table:
    """Listen to the files of one shard and label them: the task where there are no GPUs.

    Parameters
    ----------
    block
        ``path`` of each file; ``shard`` and ``fingerprint`` in each row.
    job
        What the tasks share.

    Returns
    -------
    pa.Table
        One row: the shard's ``record`` as JSON, and the id of the ``node`` that wrote it.
    """
    return _written(block, _heard(block, job), job)


def listen_shard(block: pa.Table, *, job: LabelJob) -> pa.Table:
    """Decode the files of one shard: the task on a CPU.

    Parameters
    ----------
    block
        As of ``label_shard``.
    job
        What the tasks share.

    Returns
    -------
    pa.Table
        One row: ``shard``, ``fingerprint`` and what was ``heard``, for a ``Network``.
    """
    return pa.table(
        {
            "shard": block["shard"][:1],
            "fingerprint": block["fingerprint"][:1],
            "heard": label_shards.packed(_heard(block, job)),
        }
    )


class Network:
    """The model on one device, which labels and writes what tasks have heard.

    Parameters
    ----------
    job
        What the tasks share.
    """

    def __init__(self, job: LabelJob) -> None:
        self.job = job
        _model(job.model)  # now, and not when the first shard comes

    def __call__(self, block: pa.Table) -> pa.Table:
        """Label and write one shard.

        Parameters
        ----------
        block
            What ``listen_shard`` returns.

        Returns
        -------
        pa.Table
            As of ``label_shard``.
        """
        return _written(block, label_shards.unpacked(block["heard"][0], self.job.spec), self.job)


def _heard(block: pa.Table, job: LabelJob) -> list[Heard | NotHeard]:
    return label_shards.listen(block["path"].to_pylist(), job.root, job.spec, job.clip_timeout)


def _written(block: pa.Table, heard: list[Heard | NotHeard], job: LabelJob) -> pa.Table:
    """Label and write a shard: its record, and the node that wrote it."""
    import ray

    file, fingerprint = block["shard"][0].as_py(), block["fingerprint"][0].as_py()
    record = label_shards.write(file, fingerprint, heard, _model(job.model), job.settings, job.out)
    return pa.table({"record": [record.to_json()], "node": [ray.get_runtime_context().get_node_id()]})


@lru_cache(maxsize=1)
def _model(reference: ObjectRef | None) -> GenreModel:
    """The model, on the GPU that Ray gave this process, or on its one CPU; loaded once in a process."""
    import ray
    import torch

    from mgc.model.device import best_device, prepare

    model: GenreModel = ray.get(reference)
    device = best_device()
    prepare(device)
    torch.set_num_threads(1)
    model.network.to(device)
    return model
