"""Writing shards with Ray Data: one block of the plan = one task = one shard = one file.

A task returns the record of its shard, never a spectrogram.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from mgc.core.cluster import total
from mgc.core.errors import RunError
from mgc.core.progress import Progress
from mgc.core.ray_session import mute
from mgc.features import shards
from mgc.features.plan import ShardPlan
from mgc.features.shards import ShardRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ray.data import Dataset

    from mgc.core.storage import Folder
    from mgc.features.layout import ShardEntry
    from mgc.features.recipe import Recipe

T = TypeVar("T")

KEPT = "finished shards are kept, run it again"
GROUP = 128
"""Shards given to Ray Data at a time, at least; of each that waits in Ray's queue the driver holds 55 kB."""
POLICIES = "backpressure_policies.enabled"
"""Key of Ray Data's configuration: what keeps it from handing out tasks."""


class HasEntry(Protocol):
    """A record of a shard: of features, or of labels."""

    @property
    def entry(self) -> ShardEntry:
        """File, rows, bytes and hash."""

    @property
    def quarantined(self) -> list[dict[str, Any]]:
        """What gave no row."""


Record = TypeVar("Record", bound=HasEntry)


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
class Written(Generic[Record]):
    """What one run of Ray Data has written."""

    records: dict[str, Record]
    """Records by file."""
    seconds: float
    """Duration, from the first block handed to Ray to the last record."""
    nodes: int
    """Nodes that wrote shards."""
    stats: str
    """Ray Data's own statistics, for a person."""


def warm_up() -> None:
    """Let the workers of the CPUs that are there import what a task needs, which takes a second; Ray is up."""
    import ray

    task = ray.remote(num_cpus=1)(_import)
    for _ in range(int(total("CPU"))):
        task.remote()


def _import() -> None:
    import ray.data  # noqa: F401


def write_shards(planned: Sequence[ShardPlan], job: Job, workers: int | None) -> Written[ShardRecord]:
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
    planned = sorted(planned, key=lambda shard: -shard.count)  # the smallest last, so that all CPUs end together
    count, dataset = sum(shard.count for shard in planned), partial(_dataset, job=job, workers=workers)
    return gathered("preprocess", "clips", count, planned, dataset, ShardRecord.from_json, workers)


def gathered(
    step: str,
    unit: str,
    count: int,
    shards: Sequence[T],
    dataset: Callable[[Sequence[T]], Dataset],
    parse: Callable[[str], Record],
    workers: int | None,
) -> Written[Record]:
    """Let Ray Data work on shards, show progress, and gather their records; Ray is up.

    Parameters
    ----------
    step, unit
        For progress and errors: ``"preprocess"``, ``"clips"``.
    count
        Units in all shards.
    shards, dataset, workers
        As ``over`` takes them; a row has a shard's ``record`` as JSON, and the ``node`` that wrote it.
    parse
        Decodes a record.

    Raises
    ------
    RunError
        A task failed; finished shards are kept.
    """
    from ray.exceptions import RayError

    begin = time.monotonic()
    progress = Progress(step, count, unit)
    records: dict[str, Record] = {}
    nodes: set[str] = set()
    stats: list[str] = []
    try:
        for row in over(shards, dataset, workers, stats):
            record = parse(row["record"])
            records[record.entry.file] = record
            nodes.add(row["node"])
            progress.advance(record.entry.rows + len(record.quarantined))
    except RayError as error:
        raise RunError(f"{step}: a task failed ({cause(error)}); {KEPT}") from error
    return Written(records, time.monotonic() - begin, len(nodes), "\n".join(stats))


def over(
    shards: Sequence[T], dataset: Callable[[Sequence[T]], Dataset], workers: int | None, stats: list[str]
) -> Iterator[dict[str, Any]]:
    """Let Ray Data work on shards, some of them at a time, or the driver's memory would grow with them; Ray is up.

    The next group is begun when half of one is done, so that no CPU waits for it, or at its end if ``workers`` says how
    many tasks may run.

    Parameters
    ----------
    shards
        The shards.
    dataset
        Makes the data set of some of them, whose rows are one a shard.
    workers
        Tasks at a time; as many as the cluster has CPUs, at any moment, if None.
    stats
        Gets Ray Data's own statistics of each group, for a person.

    Yields
    ------
    dict
        The rows, in the order in which they are done.
    """
    pool = ThreadPoolExecutor(1)
    try:
        begun = pool.submit(_begin, shards, dataset, workers)
        while shards:
            count, current, rows = begun.result()
            shards = shards[count:]
            for done, row in enumerate(rows, 1):
                if shards and done == (count if workers else -(-count // 2)):
                    begun = pool.submit(_begin, shards, dataset, workers)
                yield row
            stats.append(current.stats())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C nothing waits for a group's first shard


def _begin(
    shards: Sequence[T], make: Callable[[Sequence[T]], Dataset], workers: int | None
) -> tuple[int, Dataset, Iterator[dict[str, Any]]]:
    """Begin the first of these shards: how many, the data set and its rows."""
    import ray.data

    mute("ray.data")  # after the import, which sets its level
    shards = shards[: max(GROUP, 2 * int(total("CPU")))]
    # By default Ray Data hands out as many tasks as it believes that there are CPUs: it hears of a new node up to 20 s
    # late, and a CPU has nothing to do from a task's end until the driver has sent the next. Without its policies it
    # hands out all, and Ray, which queues them near where they run, gives each a CPU.
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # the full disk, not Ray's advice on retries
    context.print_on_execution_start = False
    if workers is None:
        context.set_config(POLICIES, [])
    else:
        context.remove_config(POLICIES)
    dataset = make(shards)
    context.remove_config(POLICIES)  # the data set has its own copy
    rows = iter(dataset.iter_rows())
    return len(shards), dataset, chain([next(rows)], rows)  # it begins with the first


def _dataset(planned: Sequence[ShardPlan], job: Job, workers: int | None) -> Dataset:
    """The data set of some shards' records."""
    import ray.data

    blocks = [
        shard.clips.append_column("fingerprint", pa.array([shard.fingerprint] * shard.count)) for shard in planned
    ]
    return ray.data.from_blocks(blocks).map_batches(  # from_arrow would run a task for each block's metadata
        write_shard,
        batch_size=None,  # a batch is a block is a shard
        batch_format="pyarrow",
        fn_kwargs={"job": job},
        num_cpus=1,
        compute=ray.data.TaskPoolStrategy(size=workers and min(workers, len(blocks))),
    )


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
    shard = ShardPlan(file, split, fingerprint, block.drop_columns(["fingerprint", "shard"]), np.arange(len(block)))
    record = shards.write(shard, job.root, job.out, recipe=job.recipe, clip_timeout=job.clip_timeout)
    return pa.table({"record": [record.to_json()], "node": [ray.get_runtime_context().get_node_id()]})


def cause(error: BaseException) -> str:
    """Say what happened in a task: kind and first line of the innermost error, without Ray's frames."""
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None:
        error = inner
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip()
    return f"{type(error).__name__}: {(text.splitlines() or [''])[0]}"
