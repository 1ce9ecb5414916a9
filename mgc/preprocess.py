"""Preprocess a music collection into a feature set, with Ray Data: one task = one shard = one file.

    python -m mgc.preprocess --root DATA --out FEATURES

The driver plans the shards, Ray Data runs one task for each that is not there yet, and the manifest is written last.
A task returns a few numbers, never a tensor. Killed at any moment, the same command goes on with the shards that are
missing; with nothing missing it starts neither Ray nor MLflow.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from mgc import shards
from mgc.console import Progress, say
from mgc.errors import InputError, RunError
from mgc.features import FORMAT, MANIFEST, QUARANTINE, SHARDS, Manifest, card, read_manifest
from mgc.files import write_text
from mgc.ray_session import connect, output_path
from mgc.splits import SPLITS, artist_leaks, leak_message
from mgc.tracks import read

if TYPE_CHECKING:
    from mgc.shards import ShardPlan, ShardRecord


METRICS = ("written", "skipped", "quarantined", "shards", "seconds", "clips_per_second")


@dataclass(frozen=True)
class Job:
    """What every task of one preprocessing run shares."""

    out: Path
    audio_root: Path
    recipe: shards.Recipe
    fingerprint: str


def preprocess(
    root: str | Path,
    out: str | Path,
    *,
    subset: str = "small",
    workers: int | None = None,
    limit: int | None = None,
    min_seconds: float = 5.0,
    max_quarantined: float = 0.05,
    clips_per_shard: int = 64,
) -> dict[str, Any]:
    """Turn the clips of ``root`` into a feature set at ``out``.

    Parameters
    ----------
    root
        An FMA folder, a folder with a folder per genre, or a CSV file: see ``mgc.tracks.read``.
    out
        The feature set's directory; what is finished in it is kept.
    workers
        Tasks at a time; all of the cluster's CPUs by default.
    limit
        Take only so many clips, drawn with a fixed seed over all splits.
    min_seconds
        Quarantine clips with less audio.
    max_quarantined
        The share of clips that may fail; with more, the set stays unfinished.

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
    target = output_path("--out", out)
    _check_numbers(workers=workers, limit=limit, clips_per_shard=clips_per_shard)
    if not min_seconds >= 0:  # NaN neither
        raise InputError(f"--min-seconds {min_seconds}: must be at least 0")
    if not 0 <= max_quarantined <= 1:
        raise InputError(f"--max-quarantined {max_quarantined}: must be a share, from 0 to 1")
    tracks = read(root, subset=subset)
    clips = tracks.table if limit is None else _draw(tracks.table, limit)
    recipe = shards.Recipe(min_seconds=min_seconds, clips_per_shard=clips_per_shard)
    job = Job(target, tracks.audio_root, recipe, recipe.fingerprint(clips, tracks.audio_root))
    plan = shards.plan(clips, recipe)

    present = read_manifest(target)
    if present is not None and present.fingerprint != job.fingerprint:
        raise InputError(_differs(present, job))
    missing = [shard for shard in plan if not shards.is_written(target, shard, job.fingerprint)]
    if present is not None and not missing:
        _check_quarantine(present.quarantined, len(clips), max_quarantined, target)
        say(f"{target}: finished, nothing to do")
        return _result(present, target, start, written=0) | {"run_id": None}

    from mgc import tracking  # here, because a run with nothing to do must not wait for MLflow

    leaks = artist_leaks(clips)
    if leaks:
        say(f"warning: {leak_message(leaks)}; mgc train will refuse this set")
    config = {"root": str(root), "subset": subset, "limit": limit, "clips": len(clips), **asdict(recipe)}
    _make_folder(target / SHARDS)
    try:
        uri = tracking.open_store(target)
    except InputError:
        for folder in (target / SHARDS, target):
            with suppress(OSError):  # not empty: somebody's, or ours of before
                folder.rmdir()
        raise
    run = tracking.Run.start(uri, tracking.FEATURES_EXPERIMENT, name=target.name, step="preprocess", config=config)
    with run.closing():
        rate = _extract(missing, job, workers) if missing else 0.0
        records = [shards.read_record(target, shard) for shard in plan]
        shards.write_quarantine(records, target / QUARANTINE)
        run.file(target / QUARANTINE)
        manifest = _manifest(job, tracks.genres, records, leaks)
        _check_quarantine(manifest.quarantined, len(clips), max_quarantined, target)
        write_text(card(manifest), target / "README.md")
        write_text(manifest.to_json(), target / MANIFEST)

        files = {shard.file for shard in missing}
        written = sum(record.entry.rows for record in records if record.entry.file in files)
        result = _result(manifest, target, start, written=written, rate=rate)
        run.metrics({key: result[key] for key in METRICS})
        run.file(target / "README.md")
        run.features(target, manifest.fingerprint, "preprocess")
    return result | {"run_id": run.id}


def _extract(missing: list[ShardPlan], job: Job, workers: int | None) -> float:
    """Run one Ray Data task for each missing shard; return clips per second."""
    total = sum(len(shard.clips) for shard in missing)
    say(f"preprocess: {total} clips in {len(missing)} shards; starting Ray …")
    cpus = connect()

    import ray.data
    from ray.exceptions import RayError

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # the full disk, not Ray's advice on retries
    context.print_on_execution_start = False
    blocks = [shard.clips.append_column("file", pa.array([shard.file] * len(shard.clips))) for shard in missing]
    dataset = ray.data.from_arrow(blocks).map_batches(
        _write_shard,
        batch_size=None,  # a batch is a block is a shard
        batch_format="pyarrow",
        fn_kwargs={"job": job},
        num_cpus=1,
        compute=ray.data.TaskPoolStrategy(size=min(workers or cpus, len(missing))),
    )
    progress = Progress("preprocess", total, "clips")
    begin = time.monotonic()
    try:
        for row in dataset.iter_rows():
            progress.advance(int(row["clips"]))
    except (RayError, OSError) as error:
        raise RunError(
            f"preprocess: a task failed ({_cause(error)}); finished shards are kept, run it again"
        ) from error
    return total / (time.monotonic() - begin)


def _write_shard(block: pa.Table, *, job: Job) -> pa.Table:
    """The task: write one block's clips as the shard they are planned for; report how many."""
    target = job.out / block["file"][0].as_py()
    clips = block.drop_columns(["file"])
    shards.write(clips, target, recipe=job.recipe, fingerprint=job.fingerprint, audio_root=job.audio_root)
    return pa.table({"clips": [len(clips)]})


def _draw(table: pa.Table, limit: int) -> pa.Table:
    order = np.random.default_rng(0).permutation(len(table))[:limit]
    return table.take(np.sort(order))


def _manifest(job: Job, genres: tuple[str, ...], records: list[ShardRecord], leaks: list[dict[str, Any]]) -> Manifest:
    clips: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
    quarantined: dict[str, int] = {}
    for record in records:
        counts = clips[record.entry.split]
        for genre, rows in record.genres.items():
            counts[genre] = counts.get(genre, 0) + rows
        for row in record.quarantined:
            quarantined[row["reason"]] = quarantined.get(row["reason"], 0) + 1
    return Manifest(
        FORMAT,
        job.fingerprint,
        asdict(job.recipe),
        genres,
        clips,
        dict(sorted(quarantined.items())),
        tuple(leaks),
        tuple(record.entry for record in records),
    )


def _result(manifest: Manifest, target: Path, start: float, *, written: int, rate: float = 0.0) -> dict[str, Any]:
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


def _check_numbers(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} {value}: must be at least 1")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError as error:
        raise InputError(f"--out {folder.parent}: cannot be written ({error.strerror})") from None
    if not writable:
        raise InputError(f"--out {folder.parent}: cannot be written (no permission)")


def _differs(present: Manifest, job: Job) -> str:
    """One line on what distinguishes the set that is there from the one asked for."""
    now = asdict(job.recipe)
    changed = [f"{key} was {present.recipe[key]}, now {now[key]}" for key in now if present.recipe.get(key) != now[key]]
    what = "; ".join(changed) or "the clips differ (other files, labels or splits)"
    return f"--out {job.out}: holds another feature set: {what}; choose another folder or delete this one"


def _check_quarantine(reasons: dict[str, int], clips: int, allowed: float, target: Path) -> None:
    """Refuse a set of which too much is missing."""
    failed = sum(reasons.values())
    if failed <= allowed * clips:
        return
    said = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    raise RunError(
        f"{failed} of {clips} clips failed ({said}), --max-quarantined allows a share of {allowed:g}; "
        f"look at {target / QUARANTINE}, then mend the files or run again with a higher --max-quarantined"
    )


def _cause(error: BaseException) -> str:
    """The innermost error's own line: what happened in the task, without Ray's frames."""
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None:
        error = inner
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip()
    return f"{type(error).__name__}: {(text.splitlines() or [''])[0]}"


if __name__ == "__main__":
    from mgc.cli import main

    main(["preprocess", *sys.argv[1:]])
