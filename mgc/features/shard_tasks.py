"""Writing shards with Ray Data: one block of the plan = one task = one shard = one file.

A task returns the record of its shard, never a spectrogram.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from mgc.core.errors import RunError
from mgc.core.progress import Progress
from mgc.features import shards
from mgc.features.plan import ShardPlan
from mgc.features.shards import ShardRecord

if TYPE_CHECKING:
    from mgc.core.storage import Folder
    from mgc.features.plan import Recipe

KEPT = "finished shards are kept, run it again"


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


def write_shards(planned: list[ShardPlan], job: Job, workers: int) -> tuple[dict[str, ShardRecord], float]:
    """Write shards, one Ray Data task each; Ray is up.

    Parameters
    ----------
    planned
        The shards to write, at least one.
    job
        What the tasks share.
    workers
        Tasks at a time, one CPU each.

    Returns
    -------
    (dict[str, ShardRecord], float)
        The records by file, and clips per second.

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
    blocks = [
        shard.clips.append_column("fingerprint", pa.array([shard.fingerprint] * len(shard.clips))) for shard in planned
    ]
    dataset = ray.data.from_blocks(blocks).map_batches(  # from_arrow would run a task for each block's metadata
        write_shard,
        batch_size=None,  # a batch is a block is a shard
        batch_format="pyarrow",
        fn_kwargs={"job": job},
        num_cpus=1,
        compute=ray.data.TaskPoolStrategy(size=workers),
    )
    clips = sum(len(shard.clips) for shard in planned)
    progress = Progress("preprocess", clips, "clips")
    records = {}
    begin = time.monotonic()
    try:
        for row in dataset.iter_rows():
            record = ShardRecord.from_json(row["record"])
            records[record.entry.file] = record
            progress.advance(record.entry.rows + len(record.quarantined))
    except RayError as error:
        raise RunError(f"preprocess: a task failed ({cause(error)}); {KEPT}") from error
    return records, clips / (time.monotonic() - begin)


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
        One row: the shard's ``record`` as JSON.
    """
    file, split, fingerprint = (block[name][0].as_py() for name in ("shard", "split", "fingerprint"))
    shard = ShardPlan(file, split, block.drop_columns(["fingerprint"]), fingerprint)
    record = shards.write(shard, job.root, job.out, recipe=job.recipe, clip_timeout=job.clip_timeout)
    return pa.table({"record": [record.to_json()]})


def cause(error: BaseException) -> str:
    """Say what happened in a task: kind and first line of the innermost error, without Ray's frames."""
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None:
        error = inner
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip()
    return f"{type(error).__name__}: {(text.splitlines() or [''])[0]}"
