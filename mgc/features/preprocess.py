"""Preprocess a music collection into a feature set with Ray Data.

    mgc preprocess --root DATA --out FEATURES

The plan is written first, Ray Data runs one task for each shard that is missing, and the manifest is written last.
Killed at any moment, the same command resumes with the missing shards; with none missing it starts neither Ray nor
MLflow.
"""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from mgc.audio.logmel import RECIPES
from mgc.collection.licences import LicenceFilter
from mgc.collection.missing import nothing_there
from mgc.collection.splits import artist_leaks, draw_clips, gaps, leak_message
from mgc.collection.tracks import read_tracks
from mgc.core.cluster import Demand
from mgc.core.errors import InputError, RunError, StoreError
from mgc.core.progress import say
from mgc.core.ray_session import check_sockets, connect, output_folder
from mgc.core.results import Result
from mgc.core.storage import Folder
from mgc.features import shards
from mgc.features.card import dataset_card
from mgc.features.claim import claimed
from mgc.features.contact_sheet import preview
from mgc.features.croissant import croissant
from mgc.features.feature_set import FeatureSet
from mgc.features.layout import (
    CARD,
    CROISSANT,
    FORMAT,
    MANIFEST,
    QUARANTINE,
    SHARDS,
    SHEET,
    Manifest,
    parquet_bytes,
    read_manifest,
)
from mgc.features.plan import Plan, with_sizes
from mgc.features.quarantine import as_csv, check_share, report
from mgc.features.recipe import Recipe
from mgc.features.settle import settle
from mgc.features.shard_tasks import KEPT, Job, Written, cause, warm_up, write_shards
from mgc.features.sources import replaced

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from mgc.features.shards import ShardRecord

release = pa.default_memory_pool().release_unused
"""Gives back to the machine what Arrow has freed, which of a large plan is as much again as the plan."""
METRICS = ("written", "skipped", "quarantined", "shards", "seconds", "clips_per_second")


@dataclass(frozen=True)
class Preprocessed(Result):
    """Counts and timing of one preprocessing run."""

    written: int
    """Clips whose feature was made by this run."""
    skipped: int
    """Clips whose feature was there before."""
    quarantined: int
    """Clips without a feature."""
    reasons: dict[str, int]
    """Clips in quarantine by reason."""
    shards: int
    """Shards of the set."""
    seconds: float
    """Duration of the run."""
    clips_per_second: float
    """Clips of this run over its time in Ray Data."""
    fingerprint: str
    """Fingerprint of the set."""
    features: str
    """Path or URI of the set."""
    run_id: str | None = None
    """The MLflow run; None when there was nothing to do."""


def preprocess(
    root: str | Path,
    out: str | Path,
    *,
    features: str = "logmel",
    subset: str = "small",
    allow_outside: bool = False,
    license: Sequence[str] = (),  # noqa: A002 (the name of the flag)
    without_license: Sequence[str] = (),
    workers: int | None = None,
    limit: int | None = None,
    min_seconds: float = 5.0,
    keep_damaged: bool = False,
    clip_timeout: float = 60.0,
    max_quarantined: float = 0.05,
    clips_per_shard: int = 64,
    overwrite: bool = False,
    wait: float = 15.0,
) -> Preprocessed:
    """Turn the clips of a collection into a feature set.

    Parameters
    ----------
    root
        An FMA folder, a folder with a folder per genre, or a CSV file: see ``read_tracks``; a path or a URI.
    out
        The feature set's folder, by path or URI; what is finished in it is kept, and clips that are new get shards of
        their own.
    features
        ``"logmel"``, which mgc's own networks learn from; ``"musicnn"`` or ``"ast"``, the log-Mel that the pretrained
        encoder of this name listens to: see ``mgc.audio.logmel.RECIPES``.
    subset
        Subset of an FMA folder: ``"small"``, ``"medium"`` or ``"large"``.
    allow_outside
        Of a CSV file: take paths that lead out of its folder, too.
    license
        Take only tracks of these licences: texts as the collection has them, families (``"CC-BY"``, in any version) or
        SPDX ids (``"CC-BY-4.0"``); ``"unknown"`` takes those without one.
    without_license
        Leave out tracks whose licence has one of these terms: ``"NC"``, ``"ND"``, ``"SA"``, ``"BY"``. Those whose
        licence is unknown or not understood are left out, too.
    workers
        Tasks at a time; as many as the cluster has CPUs, at any moment, by default.
    limit
        Take only so many clips, drawn with splits and genres in proportion, at least one clip each where it can.
    min_seconds
        Quarantine clips with less audio.
    keep_damaged
        Keep clips that decode to clearly less audio than their file's headers announce.
    clip_timeout
        Seconds that decoding one clip may take before it is quarantined.
    max_quarantined
        Share of the clips that may fail, from 0 to 1; with more, the set stays unfinished.
    clips_per_shard
        Clips in a Parquet file.
    overwrite
        Replace a set of another recipe or other clips; shards that would be the same are kept.
    wait
        Minutes to wait for a CPU of a cluster.

    Returns
    -------
    Preprocessed
        Counts and timing of the run.

    Raises
    ------
    InputError
        A path or value cannot be used; nothing was written.
    RunError
        A task failed, too many clips did, or the disk or object store cannot be reached; finished shards are kept.

    Examples
    --------
    >>> preprocess("fma", "features", limit=100).written
    100
    """
    start = time.monotonic()
    target = output_folder("out", out)
    _check_numbers(workers=workers, limit=limit, clips_per_shard=clips_per_shard)
    if not min_seconds >= 0:  # NaN neither
        raise InputError(f"`min_seconds={min_seconds}`: must be at least 0")
    if not 0 < clip_timeout < math.inf:
        raise InputError(f"`clip_timeout={clip_timeout}`: must be more than 0 seconds, and finite")
    if not 0 <= max_quarantined <= 1:
        raise InputError(f"`max_quarantined={max_quarantined}`: must be a share, from 0 to 1")
    if features not in RECIPES:
        raise InputError(f"`features={features}`: is none; choose from {', '.join(RECIPES)}")
    recipe = Recipe(
        spec=RECIPES[features], min_seconds=min_seconds, keep_damaged=keep_damaged, clips_per_shard=clips_per_shard
    )
    licences = LicenceFilter(license, without_license)
    demand = Demand("tasks", 1, {"CPU": 1}, wait)
    with _storage_failures(), claimed(target):
        tracks = read_tracks(
            root,
            subset=subset,
            known_splits=lambda: _splits_of(target, overwrite=overwrite),
            allow_outside=allow_outside,
            licences=licences,
        )
        for note in tracks.notes:
            say(note)
        genres, audio_root = tracks.genres, tracks.audio_root
        clips = with_sizes(tracks.table if limit is None else _draw(tracks.table, limit), audio_root)
        del tracks
        if not pc.any(pc.greater_equal(clips["bytes"], 0)).as_py():
            raise InputError(nothing_there(audio_root, clips["path"].to_pylist()))
        plan, given = Plan.of(clips, recipe), len(clips)
        del clips
        present = None if overwrite else read_manifest(target)
        if present is None or present.fingerprint != plan.fingerprint or not plan.stands_in(target):
            plan = settle(target, plan, overwrite=overwrite)
        missing = {shard.file for shard in plan.shards if not shards.is_written(target, shard)}
        there = [shard for shard in plan.shards if shard.file not in missing]
        if others := replaced(there, audio_root, target):
            first, count = next(iter(others.values()))[0], sum(map(len, others.values()))
            if not overwrite:
                raise InputError(
                    f"`root={root}`: {count} clips were replaced since their features were made, the first is {first}; "
                    "`overwrite=True` makes their shards again"
                )
            missing |= others.keys()
        if (
            present is not None
            and present.fingerprint == plan.fingerprint
            and all(target.kind(name) == "file" for name in _derived(present))
            and not missing
        ):
            check_share(present.quarantined, len(plan.table), max_quarantined, target)
            say(f"{target}: finished, nothing to do")
            return _result(present, target, start, written=0)

        leaks = artist_leaks(plan.table)
        if leaks:
            say(f"warning: {leak_message(leaks)}; training refuses this set unless it allows leaks")
        for gap in gaps(plan.table, genres):
            say(f"warning: {gap}")
        release()
        planned = time.monotonic()
        uri = _start(target, plan, missing, demand)
        started = time.monotonic()

        from mgc.tracking import runs as tracking  # here, because a run with nothing to do must not wait for MLflow

        config = {"root": str(Folder.at(root)), "subset": subset, "limit": limit, "clips": given, **recipe.to_dict()}
        config |= {"license": list(license)} if license else {}
        config |= {"without_license": list(without_license)} if without_license else {}
        run = tracking.Run.start(uri, tracking.FEATURES_EXPERIMENT, name=target.name, step="preprocess", config=config)
        with run.closing():
            plan.begin(target, overwrite=overwrite)
            plan = plan.slim()
            release()
            job, todo = Job(audio_root, target, recipe, clip_timeout), [s for s in plan.shards if s.file in missing]
            with demand.watched():
                done = write_shards(todo, job, workers) if todo else Written({}, 0.0, 0, "")
            written = done.records
            records = [written.get(shard.file) or shards.read_record(target, shard.file) for shard in plan.shards]
            manifest = _manifest(plan, genres, records, leaks)
            rejected = shards.quarantine(records)
            target.remove_temporary_files(SHARDS)
            target.write(QUARANTINE, parquet_bytes(rejected))
            report(rejected, target)
            run.text(as_csv(rejected), "quarantine.csv")
            check_share(manifest.quarantined, len(plan.table), max_quarantined, target)
            picture = preview(FeatureSet(target, manifest), records)
            target.write(SHEET, picture) if picture else target.remove(SHEET)
            target.write(CROISSANT, croissant(manifest).encode())
            target.write(CARD, dataset_card(manifest).encode())
            target.write(MANIFEST, manifest.to_json().encode())

            made = sum(record.entry.rows for record in written.values())
            clips = made + sum(len(record.quarantined) for record in written.values())
            result = _result(manifest, target, start, written=made, rate=clips / done.seconds if missing else 0.0)
            stages = {"plan": planned - start, "start": started - planned, "write": done.seconds}
            stages["finish"] = result.seconds - sum(stages.values())
            run.metrics({key: getattr(result, key) for key in METRICS} | {"nodes": done.nodes})
            run.metrics({f"{stage}_seconds": seconds for stage, seconds in stages.items()})
            run.text(done.stats, "ray_data_stats.txt")
            run.text(dataset_card(manifest), CARD)
            run.features(target, manifest.fingerprint, "preprocess")
    return replace(result, run_id=run.id)


def extract_features(root: str | Path, out: str | Path, **options: Any) -> FeatureSet:
    """Preprocess a collection and open the feature set.

    Parameters
    ----------
    root
        The collection: an FMA folder, a folder with a folder per genre, or a CSV file; a path or a URI.
    out
        The feature set's folder, by path or URI; if the set is finished it is opened as it is.
    **options
        Keyword arguments of ``preprocess``: ``subset``, ``workers``, ``limit``, ``min_seconds`` and so on.

    Returns
    -------
    FeatureSet
        The finished set.

    Raises
    ------
    InputError, RunError
        As ``preprocess``.

    Examples
    --------
    >>> features = extract_features("fma", "features", min_seconds=10.0)
    >>> features.to_pandas()["genre"].value_counts()
    """
    preprocess(root, out, **options)
    return FeatureSet.open(out)


# Before anything is decoded


@contextmanager
def _storage_failures() -> Iterator[None]:
    """Say of an error of the disk or the object store that finished shards are kept."""
    try:
        yield
    except (OSError, StoreError) as error:
        raise RunError(f"preprocess: {cause(error)}; {KEPT}") from error


def _splits_of(target: Folder, *, overwrite: bool) -> dict[str, str]:
    """Splits by path of the clips that a set holds already."""
    plan = None if overwrite else Plan.read(target)
    return {} if plan is None else dict(zip(*(plan.table[name].to_pylist() for name in ("path", "split")), strict=True))


def _start(target: Folder, plan: Plan, missing: set[str], demand: Demand) -> str:
    """Start Ray if shards are missing, and import MLflow meanwhile; return the store's URI."""
    clips = sum(len(plan.deal[file]) for file in missing)
    line = f"preprocess: {clips} clips in {len(missing)} shards; starting Ray …" if missing else ""
    if missing:
        check_sockets()
    with ThreadPoolExecutor(1) as aside:
        uri = aside.submit(_open_store, target, line)
        if missing:
            connect()
            demand.wait()
            warm_up()
        return uri.result()


def _open_store(target: Folder, line: str) -> str:
    """Open the store, and then say a line."""
    from mgc.tracking import store

    uri = store.open_store(target)
    if line:
        say(line)
    return uri


def _draw(table: pa.Table, limit: int) -> pa.Table:
    splits, genres, ids = (table[name].to_pylist() for name in ("split", "genre", "track_id"))
    return table.take(draw_clips(splits, genres, ids, limit))


def _check_numbers(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise InputError(f"`{name}={value}`: must be at least 1")


# Afterwards


def _manifest(plan: Plan, genres: tuple[str, ...], records: list[ShardRecord], leaks: list[dict[str, Any]]) -> Manifest:
    return Manifest(
        format=FORMAT,
        fingerprint=plan.fingerprint,
        recipe=plan.recipe.to_dict(),
        genres=genres,
        artist_leaks=tuple(leaks),
        shards=tuple(record.entry for record in records),
        **shards.totals(records),
    )


def _derived(manifest: Manifest) -> list[str]:
    """Files that are made of the shards of a finished set; those of before licences were known have no more."""
    sheet = [SHEET] if any(entry.rows for entry in manifest.shards) else []
    return [QUARANTINE, CARD, *([CROISSANT, *sheet] if manifest.licenses else [])]


def _result(manifest: Manifest, target: Folder, start: float, *, written: int, rate: float = 0.0) -> Preprocessed:
    return Preprocessed(
        written=written,
        skipped=sum(entry.rows for entry in manifest.shards) - written,
        quarantined=sum(manifest.quarantined.values()),
        reasons=manifest.quarantined,
        shards=len(manifest.shards),
        seconds=round(time.monotonic() - start, 2),
        clips_per_second=round(rate, 2),
        fingerprint=manifest.fingerprint,
        features=str(target),
    )
