"""Preprocess a music collection into a feature set, with Ray Data: one task = one shard = one file.

    python -m mgc.preprocess --root DATA --out FEATURES

The driver writes the plan, Ray Data runs one task for each shard that is not there yet, and the manifest is written
last. A task returns a shard's record, never a tensor. Killed at any moment, the same command goes on with the shards
that are missing; with nothing missing it starts neither Ray nor MLflow.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from mgc.collection.splits import artist_leaks, leak_message
from mgc.collection.tracks import Tracks, read_tracks
from mgc.core.errors import InputError, RunError
from mgc.core.progress import Progress, say
from mgc.core.ray_session import connect, output_folder
from mgc.core.storage import Folder
from mgc.features import shards
from mgc.features.feature_set import FORMAT, MANIFEST, QUARANTINE, SHARDS, Manifest, card, parquet_bytes, read_manifest
from mgc.features.plan import Plan, Recipe, ShardPlan, settle, with_sizes
from mgc.features.shards import ShardRecord

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

METRICS = ("written", "skipped", "quarantined", "shards", "seconds", "clips_per_second")
CARD = "README.md"
SHOWN = 20
"""Quarantined clips that are named at the end; all are in ``quarantine.parquet``."""
_KEPT = "finished shards are kept, run it again"


@dataclass(frozen=True)
class Job:
    """What every task of one preprocessing run shares."""

    root: Folder
    out: Folder
    recipe: Recipe
    clip_timeout: float


def preprocess(
    root: str | Path,
    out: str | Path,
    *,
    subset: str = "small",
    workers: int | None = None,
    limit: int | None = None,
    min_seconds: float = 5.0,
    keep_damaged: bool = False,
    clip_timeout: float = 60.0,
    max_quarantined: float = 0.05,
    clips_per_shard: int = 64,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Turn the clips of ``root`` into a feature set at ``out``.

    Parameters
    ----------
    root
        An FMA folder, a folder with a folder per genre, or a CSV file: see ``read_tracks``; a path or a URI.
    out
        The feature set's folder, by path or URI; what is finished in it is kept, and clips that are new get shards of
        their own.
    workers
        Tasks at a time; all of the cluster's CPUs by default.
    limit
        Take only so many clips, drawn with a fixed seed over all splits.
    min_seconds
        Quarantine clips with less audio.
    keep_damaged
        Make features, too, of clips that decode to clearly less audio than their file promises.
    clip_timeout
        Seconds that decoding one clip may take before it is quarantined.
    max_quarantined
        The share of clips that may fail; with more, the set stays unfinished.
    overwrite
        Replace a set of another recipe or other clips; shards that stay as they are are kept.

    Returns
    -------
    dict
        ``written`` and ``skipped`` (clips with a feature, made now or found), ``quarantined`` (clips without one),
        ``shards``, ``seconds``, ``clips_per_second`` (clips of this run, over its time in Ray Data), ``fingerprint``,
        ``features`` (the set's path), ``reasons`` (clips in quarantine by reason), and ``run_id`` of the MLflow run
        (None when there was nothing to do).

    Raises
    ------
    InputError
        A path or value cannot be used; nothing was written.
    RunError
        A task failed, or too many clips did; the finished shards are kept.
    """
    start = time.monotonic()
    target = output_folder("out", out)
    _check_numbers(workers=workers, limit=limit, clips_per_shard=clips_per_shard)
    if not min_seconds >= 0:  # NaN neither
        raise InputError(f"--min-seconds {min_seconds}: must be at least 0")
    if not clip_timeout > 0:
        raise InputError(f"--clip-timeout {clip_timeout}: must be more than 0 seconds")
    if not 0 <= max_quarantined <= 1:
        raise InputError(f"--max-quarantined {max_quarantined}: must be a share, from 0 to 1")
    recipe = Recipe(min_seconds=min_seconds, keep_damaged=keep_damaged, clips_per_shard=clips_per_shard)
    before = None if overwrite else Plan.read(target)
    tracks = read_tracks(root, subset=subset, known_splits=_splits_of(before))
    clips = with_sizes(tracks.table if limit is None else _draw(tracks.table, limit), tracks.audio_root)
    with _failing_clearly(), _claimed(target):
        plan = settle(target, clips, recipe, overwrite=overwrite)
        missing = [shard for shard in plan.shards if not shards.is_written(target, shard)]
        present = None if overwrite else read_manifest(target)
        derived = all(target.kind(name) == "file" for name in (QUARANTINE, CARD))
        if present is not None and present.fingerprint == plan.fingerprint and derived and not missing:
            _check_quarantine(present.quarantined, len(plan.clips), max_quarantined, target)
            say(f"{target}: finished, nothing to do")
            return _result(present, target, start, written=0) | {"run_id": None}

        leaks = artist_leaks(plan.clips)
        if leaks:
            say(f"warning: {leak_message(leaks)}; mgc train will refuse this set")
        cpus, uri = _start(target, missing)

        from mgc.tracking import runs as tracking  # here, because a run with nothing to do must not wait for MLflow

        config = {"root": str(Folder.at(root)), "subset": subset, "limit": limit, "clips": len(clips), **asdict(recipe)}
        run = tracking.Run.start(uri, tracking.FEATURES_EXPERIMENT, name=target.name, step="preprocess", config=config)
        with run.closing():
            plan.begin(target, overwrite=overwrite)
            job = Job(tracks.audio_root, target, recipe, clip_timeout)
            written, rate = _extract(missing, job, min(workers or cpus, len(missing))) if missing else ({}, 0.0)
            records = [written.get(shard.file) or shards.read_record(target, shard.file) for shard in plan.shards]
            manifest = _manifest(plan, tracks, records, leaks)
            quarantine = shards.quarantine(records)
            target.remove_temporary_files(SHARDS)
            target.write(QUARANTINE, parquet_bytes(quarantine))
            _tell(quarantine, target)
            run.text(_csv(quarantine), "quarantine.csv")
            _check_quarantine(manifest.quarantined, len(plan.clips), max_quarantined, target)
            target.write(CARD, card(manifest).encode())
            target.write(MANIFEST, manifest.to_json().encode())

            made = sum(record.entry.rows for record in written.values())
            result = _result(manifest, target, start, written=made, rate=rate)
            run.metrics({key: result[key] for key in METRICS})
            run.text(card(manifest), CARD)
            run.features(target, manifest.fingerprint, "preprocess")
    return result | {"run_id": run.id}


# Before anything is decoded


@contextmanager
def _claimed(target: Folder) -> Iterator[None]:
    """Make the set's folder and hold it; one that is still empty in the end goes again."""
    try:
        target.make()
        if target.path and not os.access(target.path, os.W_OK):
            raise PermissionError(errno.EACCES, "no permission")
    except OSError as error:
        raise InputError(f"--out {target}: cannot be written ({error.strerror or error})") from None
    try:
        with target.claim("`out`"):
            for name in ("", SHARDS):
                target.remove_temporary_files(name)
            yield
    finally:
        if target.path:
            with suppress(OSError):  # not empty
                target.path.rmdir()


def _splits_of(plan: Plan | None) -> dict[str, str]:
    """The splits of the clips that a set holds already, by path."""
    return {} if plan is None else dict(zip(*(plan.clips[name].to_pylist() for name in ("path", "split")), strict=True))


def _start(target: Folder, missing: list[ShardPlan]) -> tuple[int, str]:
    """Start Ray if there is work for it, and meanwhile import MLflow; return the CPUs and the store's URI."""
    with ThreadPoolExecutor(1) as aside:
        uri = aside.submit(_open_store, target, missing)
        cpus = connect() if missing else 0
        return cpus, uri.result()


def _open_store(target: Folder, missing: list[ShardPlan]) -> str:
    from mgc.tracking import store

    uri = store.open_store(target)
    if missing:
        say(f"preprocess: {_clips(missing)} clips in {len(missing)} shards; starting Ray …")
    return uri


def _clips(planned: list[ShardPlan]) -> int:
    return sum(len(shard.clips) for shard in planned)


# Ray Data


def _extract(missing: list[ShardPlan], job: Job, workers: int) -> tuple[dict[str, ShardRecord], float]:
    """Run one Ray Data task for each missing shard; return their records by file, and clips per second."""
    import ray.data
    from ray.exceptions import RayError

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # the full disk, not Ray's advice on retries
    context.print_on_execution_start = False
    blocks = [
        shard.clips.append_column("fingerprint", pa.array([shard.fingerprint] * len(shard.clips))) for shard in missing
    ]
    dataset = ray.data.from_blocks(blocks).map_batches(  # from_arrow would run a task for each block's metadata
        _write_shard,
        batch_size=None,  # a batch is a block is a shard
        batch_format="pyarrow",
        fn_kwargs={"job": job},
        num_cpus=1,
        compute=ray.data.TaskPoolStrategy(size=workers),
    )
    progress = Progress("preprocess", _clips(missing), "clips")
    records = {}
    begin = time.monotonic()
    try:
        for row in dataset.iter_rows():
            record = ShardRecord.from_json(row["record"])
            records[record.entry.file] = record
            progress.advance(record.entry.rows + len(record.quarantined))
    except RayError as error:
        raise RunError(f"preprocess: a task failed ({_cause(error)}); {_KEPT}") from error
    return records, _clips(missing) / (time.monotonic() - begin)


def _write_shard(block: pa.Table, *, job: Job) -> pa.Table:
    """The task: write one block's clips as the shard they are planned for; report its record."""
    file, split, fingerprint = (block[name][0].as_py() for name in ("shard", "split", "fingerprint"))
    shard = ShardPlan(file, split, block.drop_columns(["fingerprint"]), fingerprint)
    record = shards.write(shard, job.root, job.out, recipe=job.recipe, clip_timeout=job.clip_timeout)
    return pa.table({"record": [record.to_json()]})


@contextmanager
def _failing_clearly() -> Iterator[None]:
    """Say of an error of the disk or the object store what happened and that nothing is lost."""
    try:
        yield
    except OSError as error:
        raise RunError(f"preprocess: {_cause(error)}; {_KEPT}") from error


# Afterwards


def _draw(table: pa.Table, limit: int) -> pa.Table:
    order = np.random.default_rng(0).permutation(len(table))[:limit]
    return table.take(np.sort(order))


def _manifest(plan: Plan, tracks: Tracks, records: list[ShardRecord], leaks: list[dict[str, Any]]) -> Manifest:
    clips, quarantined = shards.totals(records)
    return Manifest(
        FORMAT,
        plan.fingerprint,
        asdict(plan.recipe),
        tracks.genres,
        clips,
        quarantined,
        tuple(leaks),
        tuple(record.entry for record in records),
    )


def _result(manifest: Manifest, target: Folder, start: float, *, written: int, rate: float = 0.0) -> dict[str, Any]:
    rows = sum(entry.rows for entry in manifest.shards)
    return {
        "written": written,
        "skipped": rows - written,
        "quarantined": sum(manifest.quarantined.values()),
        "reasons": manifest.quarantined,
        "shards": len(manifest.shards),
        "seconds": round(time.monotonic() - start, 2),
        "clips_per_second": round(rate, 2),
        "fingerprint": manifest.fingerprint,
        "features": str(target),
    }


def _tell(quarantine: pa.Table, target: Folder) -> None:
    """Name the clips in quarantine, the first of them, each with its reason."""
    for row in quarantine.slice(0, SHOWN).to_pylist():
        say(f"  quarantined {row['path']}: {row['reason']} ({row['detail']})")
    if len(quarantine) > SHOWN:
        say(f"  … and {len(quarantine) - SHOWN} more, all in {target}/{QUARANTINE}")


def _csv(table: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    pacsv.write_csv(table, sink)
    return str(sink.getvalue().to_pybytes().decode())


def _check_numbers(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} {value}: must be at least 1")


def _check_quarantine(reasons: dict[str, int], clips: int, allowed: float, target: Folder) -> None:
    """Refuse a set of which too much is missing."""
    failed = sum(reasons.values())
    if failed <= allowed * clips:
        return
    said = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    raise RunError(
        f"{failed} of {clips} clips failed ({said}), --max-quarantined allows a share of {allowed:g}; look at "
        f"{target}/{QUARANTINE}, then mend the files and --overwrite, or run again with a higher --max-quarantined"
    )


def _cause(error: BaseException) -> str:
    """The innermost error's own line: what happened in the task, without Ray's frames."""
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None:
        error = inner
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip()
    return f"{type(error).__name__}: {(text.splitlines() or [''])[0]}"
