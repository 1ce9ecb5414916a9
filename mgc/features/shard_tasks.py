"""Writing shards with Ray Data: one block of the plan = one task = one shard = one file.

A task returns the record of its shard, never a spectrogram.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mgc.core.errors import RunError
from mgc.core.progress import Progress
from mgc.features import shards
from mgc.features.plan import ShardPlan
from mgc.features.shards import ShardRecord

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ray.data import Dataset

    from mgc.core.storage import Folder
    from mgc.features.plan import Recipe

KEPT = "finished shards are kept, run it again"
GROUP = 512
"""Shards given to Ray Data at a time, of which one that waits in Ray's queue takes 55 kB of the driver; a cluster of
more CPUs would not have enough to do."""


@dataclass(frozen=True)
class Job:
    """What all tasks of one preprocessing run share."""

    root: Folder
    """The folder that the clips' paths are relative to."""
    out: Folder
    """The folder of the feature set."""
    recipe: Recipe
    clip_timeout: float
    """Seconds that decoding one clip may take."""


@dataclass(frozen=True)
class Written:
    """What one run of Ray Data has written."""

    records: dict[str, ShardRecord]
    """Records by file."""
    seconds: float
    """Duration, from the first block handed to Ray to the last record."""
    nodes: int
    """Nodes that wrote shards."""
    stats: str
    """Ray Data's own statistics, for a person."""


def write_shards(planned: Sequence[ShardPlan], job: Job, workers: int | None) -> Written:
    """Write shards, one Ray Data task each; Ray is up.

    Nobody counts the cluster's CPUs: tasks wait in Ray's own queue, so a node that arrives takes some at once, one
    that leaves gives its own back, and a cluster without CPUs is waited for.

    Parameters
    ----------
    planned
        The shards to write, at least one.
    job
        What the tasks share.
    workers
        Tasks at a time, one CPU each; as many as the cluster has CPUs, at any moment, if None.

    Returns
    -------
    Written
        The records, and how it went.

    Raises
    ------
    RunError
        A task failed; finished shards are kept.
    """
    import ray.data
    from ray.exceptions import RayError

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # the full disk, not Ray's advice on retries
    context.print_on_execution_start = False
    begin = time.monotonic()
    progress = Progress("preprocess", sum(len(shard.clips) for shard in planned), "clips")
    records: dict[str, ShardRecord] = {}
    nodes: set[str] = set()
    datasets: list[Dataset] = []
    try:
        for row in _rows(planned, job, workers, datasets):
            record = ShardRecord.from_json(row["record"])
            records[record.entry.file] = record
            nodes.add(row["node"])
            progress.advance(record.entry.rows + len(record.quarantined))
    except RayError as error:
        raise RunError(f"preprocess: a task failed ({cause(error)}); {KEPT}") from error
    stats = "\n".join(dataset.stats() for dataset in datasets)
    return Written(records, time.monotonic() - begin, len(nodes), stats)


def _rows(
    planned: Sequence[ShardPlan], job: Job, workers: int | None, datasets: list[Dataset]
) -> Iterator[dict[str, Any]]:
    """What the tasks return, some shards at a time, or the driver's memory would grow with them.

    The next group is begun when half of one is done, so that no CPU waits for it, or at its end if ``workers`` says how
    many tasks may run.
    """
    groups = [planned[start : start + GROUP] for start in range(0, len(planned), GROUP)]
    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(_begin, groups[0], job, workers)
        for group, following in pairwise([*groups, None]):
            dataset, rows = begun.result()
            datasets.append(dataset)
            for done, row in enumerate(rows, 1):
                if following and done == (len(group) if workers else -(-len(group) // 2)):
                    begun = pool.submit(_begin, following, job, workers)
                yield row


def _begin(planned: Sequence[ShardPlan], job: Job, workers: int | None) -> tuple[Dataset, Iterator[dict[str, Any]]]:
    """Begin to write shards; the data set and its rows, one a shard."""
    import ray.data

    blocks = [
        shard.clips.append_column("fingerprint", pa.array([shard.fingerprint] * len(shard.clips))) for shard in planned
    ]
    # Of tasks that take a CPU, Ray Data hands out as many as it believes that there are CPUs: it hears of a new node up
    # to 20 s late, and a CPU has nothing to do from a task's end until the driver has sent the next. So Ray Data is told
    # that they take none; and Ray, which queues them where they run, that they take one.
    dataset = ray.data.from_blocks(blocks).map_batches(  # from_arrow would run a task for each block's metadata
        write_shard,
        batch_size=None,  # a batch is a block is a shard
        batch_format="pyarrow",
        fn_kwargs={"job": job},
        num_cpus=0,
        ray_remote_args_fn=lambda: {"num_cpus": 1},
        compute=ray.data.TaskPoolStrategy(size=min(workers or GROUP, len(blocks))),
    )
    rows = iter(dataset.iter_rows())
    return dataset, chain([next(rows)], rows)  # it begins with the first


def write_shard(block: pa.Table, *, job: Job) -> pa.Table:
    """Write one shard: the task.

    Parameters
    ----------
    block
        Rows of the plan of one shard, with the shard's ``fingerprint`` in each.
    job
        What the tasks share.

    Returns
    -------
    pa.Table
        One row: the shard's ``record`` as JSON, and the id of the ``node`` that wrote it.
    """
    import ray

    file, split, fingerprint = (block[name][0].as_py() for name in ("shard", "split", "fingerprint"))
    shard = ShardPlan(file, split, block.drop_columns(["fingerprint"]), fingerprint)
    record = shards.write(shard, job.root, job.out, recipe=job.recipe, clip_timeout=job.clip_timeout)
    return pa.table({"record": [record.to_json()], "node": [ray.get_runtime_context().get_node_id()]})


def cause(error: BaseException) -> str:
    """Say what happened in a task: kind and first line of the innermost error, without Ray's frames."""
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None:
        error = inner
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip()
    return f"{type(error).__name__}: {(text.splitlines() or [''])[0]}"
