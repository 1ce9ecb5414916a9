"""The command ``mgc label``: what a model says of every audio file of a library, on all CPUs and GPUs of a cluster.

A run that was killed goes on by the same command, and one of a library that has grown does only what is new.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from mgc.audio.decode import DECODER
from mgc.collection.genre_folders import AUDIO_SUFFIXES, OTHER_AUDIO
from mgc.core.cluster import Demand, check_seen, check_shared, total
from mgc.core.errors import InputError, RunError, StoreError
from mgc.core.progress import say
from mgc.core.ray_session import check_sockets, connect, output_folder
from mgc.core.results import Result
from mgc.core.storage import Folder
from mgc.evaluation.calibration import PRECISION
from mgc.features.claim import claimed
from mgc.features.layout import MANIFEST, QUARANTINE, SHARDS, parquet_bytes
from mgc.features.quarantine import as_csv, report
from mgc.features.shard_tasks import KEPT, Written, cause
from mgc.features.shards import has_fingerprint
from mgc.library import label_shards
from mgc.library.genre_model import load
from mgc.library.label_plan import LabelPlan, differences
from mgc.library.label_tasks import LabelJob, label_shards_of
from mgc.library.labels import FORMAT, QUARANTINE_SCHEMA, LabelManifest, Settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mgc.library.genre_model import ModelLike
    from mgc.library.label_shards import LabelRecord


METRICS = ("files", "labelled", "unsure", "files_per_second")
"""Fields of the result that MLflow keeps."""


@dataclass(frozen=True)
class LabelledLibrary(Result):
    """What a labelling did, and what is in the set now."""

    out: Folder
    files: int
    """With a label."""
    labelled: int
    """In this run."""
    genres: dict[str, int]
    """Files by genre, the commonest first; unsure ones too."""
    unsure: int
    """Files whose confidence is below the threshold."""
    quarantined: dict[str, int]
    """Files without a label, by reason."""
    seconds: float
    files_per_second: float
    """While files were labelled."""
    run_id: str = ""
    """Of MLflow; empty where there was nothing to do."""

    def to_dict(self) -> dict[str, object]:
        """Return plain values that JSON holds."""
        return super().to_dict() | {"out": str(self.out)}

    def __str__(self) -> str:
        width = max(map(len, self.genres), default=0)
        lines = [f"{genre:<{width}}  {count}" for genre, count in self.genres.items()]
        bad = ", ".join(f"{count} {reason}" for reason, count in self.quarantined.items()) or "none"
        share = self.unsure / self.files if self.files else 0
        return "\n".join(
            [
                *lines,
                f"{self.files} files, {self.labelled} of them labelled now ({self.files_per_second:.1f} a second)",
                f"unsure: {self.unsure} ({share:.0%}); in quarantine: {bad}",
                f"labels: {self.out}",
            ]
        )


def label(
    root: str | Path,
    model: ModelLike,
    out: str | Path,
    *,
    precision: float = PRECISION,
    workers: int | None = None,
    clip_timeout: float = 300.0,
    retry: bool = False,
    overwrite: bool = False,
    wait: float = 15.0,
) -> LabelledLibrary:
    """Label every audio file below a folder.

    Parameters
    ----------
    root
        The library: any tree of folders, by path or URI.
    model : str, Path, or object with ``checkpoint`` or ``run_id``
        As ``mgc.predict`` takes it.
    out
        Folder of the label set, by path or URI; what is finished in it is kept.
    precision
        Share of right answers, on the model's validation clips, that is left when ``unsure`` files are left out.
    workers
        Tasks at a time; as many as the cluster has CPUs, at any moment, by default.
    clip_timeout
        Seconds that decoding one file may take before it is quarantined as ``timed_out``.
    retry
        Try the files in quarantine again, too: those of a disk that was away, or that took too long.
    overwrite
        Label everything anew; needed for another model, precision or library.
    wait
        Minutes to wait for CPUs of a cluster.

    Returns
    -------
    LabelledLibrary
        Counts; the rows are in ``Labels.open(out).table()``.

    Raises
    ------
    InputError
        There is no audio or no model, or ``out`` holds something else.
    RunError
        A task failed, or the storage; finished shards are kept.

    Examples
    --------
    >>> label("Music", "champion", "labels").unsure  # doctest: +SKIP
    212
    """
    start = time.monotonic()
    target, library = output_folder("out", out), Folder.at(root)
    if workers is not None and workers < 1:
        raise InputError(f"`workers={workers}`: must be at least 1")
    if not 0 < clip_timeout < math.inf:
        raise InputError(f"`clip_timeout={clip_timeout}`: must be more than 0 seconds, and finite")
    if library.kind() != "folder":
        raise InputError(f"`root={library}`: no such folder")
    demand = Demand("tasks", 1, {"CPU": 1}, wait)
    loaded = load(model)
    threshold = loaded.threshold(precision)
    settings = Settings(
        loaded.fingerprint, loaded.card.genres, precision, threshold if threshold < math.inf else None, DECODER
    )
    try:
        with claimed(target):
            files = audio_files(library)
            plan = _planned(library, target, files, settings, retry=retry, overwrite=overwrite)
            missing = [file for file in plan.shards if not has_fingerprint(target, file, plan.fingerprint(file))]
            present = LabelManifest.read(target)
            if present and not missing:
                say(f"{target}: finished, nothing to do")
                return _result(present, target, start)
            from mgc.tracking import runs as tracking  # here: a run with nothing to do must not wait for MLflow
            from mgc.tracking import store

            if missing:
                count = sum(len(plan.shards[file]) for file in missing)
                say(f"label: {count} files in {len(missing)} shards; starting Ray …")
                _start_ray(library, next(iter(files)), target, demand)
            uri = store.open_store(target)
            config = {"root": str(library), "model": settings.model, "precision": precision}
            run = tracking.Run.start(uri, tracking.FEATURES_EXPERIMENT, name=target.name, step="label", config=config)
            gpus = Demand("networks", 1, {"GPU": 1}, wait) if missing and total("GPU") else demand
            with run.closing(), demand.watched(), gpus.watched():
                job = LabelJob(library, target, settings, loaded.card.spec, clip_timeout)
                done = label_shards_of(plan, missing, job, loaded, workers) if missing else Written({}, 0.0, 0, "")
                records = [done.records.get(file) or label_shards.read_record(target, file) for file in plan.shards]
                bad = pa.Table.from_pylist([row for each in records for row in each.quarantined], QUARANTINE_SCHEMA)
                manifest = _manifest(library, settings, records)
                target.remove_temporary_files(SHARDS)
                target.write(QUARANTINE, parquet_bytes(bad))
                report(bad, target)
                run.text(as_csv(bad), "quarantine.csv")
                target.write(MANIFEST, manifest.to_json().encode())
                result = _result(manifest, target, start, done, run.id)
                run.text(done.stats, "ray_data_stats.txt")
                run.metrics({name: getattr(result, name) for name in METRICS} | {"nodes": done.nodes})
            return result
    except (OSError, StoreError) as error:
        raise RunError(f"label: {cause(error)}; {KEPT}") from error


def audio_files(library: Folder) -> dict[str, int]:
    """Size in bytes by path of every file below a folder that the decoder may read.

    Parameters
    ----------
    library
        The folder, on a disk or in an object store.

    Raises
    ------
    InputError
        There is none.
    StoreError, RunError
        The object store, or the disk, does not answer.
    """
    paths, unnamed, others = list[str](), list[str](), Counter[str]()
    for path in library.walk():
        suffix = os.path.splitext(path)[1].lower()
        if suffix in OTHER_AUDIO:
            others[suffix] += 1
        elif suffix in AUDIO_SUFFIXES:
            (paths if _is_utf8(path) else unnamed).append(path)
    for suffix, count in sorted(others.items()):
        say(f"{count} files end in {suffix}, for which mgc has no decoder: convert them to FLAC or MP3")
    if unnamed:
        say(f"{len(unnamed)} files have names that are not UTF-8, the first is {unnamed[0]!r}: rename them")
    if not paths:
        raise InputError(f"`root={library}`: no audio files (MP3, WAV, FLAC, Ogg, Opus, AIFF …) below it")
    return dict(zip(paths, library.sizes(paths), strict=True))


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _planned(
    library: Folder, target: Folder, files: Mapping[str, int], settings: Settings, *, retry: bool, overwrite: bool
) -> LabelPlan:
    """The plan of now, written, in a folder that has no shard beside it."""
    root, before = str(library), LabelPlan.read(target)  # which refuses a plan of something else
    if before is None and (foreign := [name for name in target.files() if not name.startswith(".")]):
        raise InputError(f"`out={target}`: is not empty ({foreign[0]}) and holds no labels; choose another folder")
    if overwrite:
        target.remove(MANIFEST)
        _remove_shards(target, {})
        before = None
    if before is None:
        plan = LabelPlan.of(files, settings, root)
    else:
        _check_before(before, settings, files, target, root)
        plan = before.updated(files, _to_do_again(before, library, target, retry=retry), root)
    if plan != before:
        target.remove(MANIFEST)  # first, so that nobody reads a mixture
        _remove_shards(target, plan.shards)
        plan.write(target)
    _remove_shards(target, plan.shards)
    for file, its in before.shards.items() if before else ():
        if before and file in plan.shards and plan.shards[file] != its:
            keep = plan.shards[file].__contains__
            label_shards.prune(target, file, keep, before.fingerprint(file), plan.fingerprint(file))
    return plan


def _check_before(before: LabelPlan, settings: Settings, files: Mapping[str, int], target: Folder, root: str) -> None:
    """Refuse labels of another model or library; say of a library how many of its files are gone."""
    way_out = "choose another folder, or `overwrite=True`"
    if before.settings != settings:
        what = "; ".join(differences(before.settings, settings))
        raise InputError(f"`out={target}`: holds other labels: {what}; {way_out}")
    known = before.files
    gone = sum(path not in files for path in known)
    if before.root != root and 2 * gone > len(known):
        raise InputError(f"`out={target}`: holds the labels of another library, {before.root}; {way_out}")
    if gone:
        say(f"{gone} of {len(known)} files are gone, and their labels with them")


def _to_do_again(before: LabelPlan, library: Folder, target: Folder, *, retry: bool) -> set[str]:
    """Paths of files that were written after their shard, which may hold something else now; and of the quarantine."""
    written, now = dict(zip(before.shards, target.modified(before.shards), strict=True)), time.time()
    paths = [(path, written[file]) for file, its in before.shards.items() for path in its]
    times = library.modified([path for path, _ in paths])
    again = {path for (path, since), when in zip(paths, times, strict=True) if since and since < when <= now}
    if retry:
        for file in before.shards:
            if has_fingerprint(target, file, before.fingerprint(file)):
                again |= {row["path"] for row in label_shards.read_record(target, file).quarantined}
    return again


def _remove_shards(target: Folder, keep: Mapping[str, object]) -> None:
    """Remove the label shards that are not to be kept, and make their folder."""
    target.make(SHARDS)
    for name in target.files(SHARDS):
        file = f"{SHARDS}/{name}"
        if file not in keep and re.fullmatch(r"labels-\d+\.parquet", name):
            target.remove(file)


def _start_ray(library: Folder, file: str, target: Folder, demand: Demand) -> None:
    """Start or join Ray; its nodes must see a file of the library, and the label set's folder."""
    check_sockets()
    connect()
    demand.wait()
    check_seen("root", library, file)
    check_shared("out", target)


def _manifest(library: Folder, settings: Settings, records: list[LabelRecord]) -> LabelManifest:
    genres: Counter[str] = Counter()
    for each in records:
        genres.update(each.genres)
    reasons = Counter(row["reason"] for each in records for row in each.quarantined)
    return LabelManifest(
        FORMAT,
        str(library),
        settings,
        dict(genres),
        sum(each.unsure for each in records),
        dict(sorted(reasons.items())),
        tuple(each.entry for each in records),
    )


def _result(
    manifest: LabelManifest, target: Folder, start: float, done: Written[LabelRecord] | None = None, run_id: str = ""
) -> LabelledLibrary:
    files = sum(entry.rows for entry in manifest.shards)
    genres = dict(sorted(manifest.genres.items(), key=lambda item: (-item[1], item[0])))
    records = done.records.values() if done else ()
    labelled = sum(each.entry.rows for each in records)
    tried = labelled + sum(len(each.quarantined) for each in records)
    rate = tried / done.seconds if done and done.seconds else 0.0
    seconds = time.monotonic() - start
    return LabelledLibrary(
        target, files, labelled, genres, manifest.unsure, manifest.quarantined, seconds, rate, run_id
    )
