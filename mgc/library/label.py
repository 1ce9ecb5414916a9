"""The command ``mgc label``: what a model says of every audio file of a library, on all CPUs and GPUs of a cluster.

A run that was killed goes on by the same command, and one of a library that has grown does only what is new.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from mgc.audio.decode import DECODER
from mgc.collection.genre_folders import AUDIO_SUFFIXES, OTHER_AUDIO
from mgc.core.cluster import Demand, check_seen, check_shared
from mgc.core.errors import InputError, RunError, StoreError
from mgc.core.progress import say
from mgc.core.ray_session import check_sockets, connect, output_folder
from mgc.core.results import Result
from mgc.core.storage import Folder
from mgc.evaluation.calibration import PRECISION
from mgc.features.claim import claimed
from mgc.features.layout import MANIFEST, QUARANTINE, SHARDS, parquet_bytes
from mgc.features.quarantine import as_csv, report
from mgc.features.shard_tasks import KEPT, cause
from mgc.library import label_shards
from mgc.library.genre_model import load
from mgc.library.label_plan import LabelPlan, differences
from mgc.library.label_tasks import LabelJob, Labelled, label_shards_of
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
    overwrite
        Replace labels of another model or precision.
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
    if not clip_timeout > 0:
        raise InputError(f"`clip_timeout={clip_timeout}`: must be more than 0 seconds")
    if library.kind() != "folder":
        raise InputError(f"`root={library}`: no such folder")
    demand = Demand("tasks", 1, {"CPU": 1}, wait)
    loaded = load(model)
    threshold = loaded.threshold(precision)
    settings = Settings(
        loaded.fingerprint, loaded.card.genres, precision, threshold if threshold < float("inf") else None, DECODER
    )
    try:
        with claimed(target):
            files = audio_files(library)
            plan = _planned(library, target, files, settings, overwrite=overwrite)
            missing = [
                file for file in plan.shards if not label_shards.is_written(target, file, plan.fingerprint(file))
            ]
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
            with run.closing(), demand.watched():
                job = LabelJob(library, target, settings, loaded.card.spec, clip_timeout)
                done = label_shards_of(plan, missing, job, loaded, workers) if missing else Labelled({}, 0.0, 0, "")
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
    paths, others = [], Counter[str]()
    for path in library.walk():
        suffix = os.path.splitext(path)[1].lower()
        if suffix in AUDIO_SUFFIXES:
            paths.append(path)
        elif suffix in OTHER_AUDIO:
            others[suffix] += 1
    for suffix, count in sorted(others.items()):
        say(f"{count} files end in {suffix}, for which mgc has no decoder: convert them to FLAC or MP3")
    if not paths:
        raise InputError(f"`root={library}`: no audio files (MP3, WAV, FLAC, Ogg, Opus, AIFF …) below it")
    return dict(zip(paths, library.sizes(paths), strict=True))


def _planned(
    library: Folder, target: Folder, files: Mapping[str, int], settings: Settings, *, overwrite: bool
) -> LabelPlan:
    """The plan of now, written; what is there and not in it is gone."""
    before = None if overwrite else LabelPlan.read(target)
    if before is None and not overwrite:
        if foreign := [name for name in target.files() if not name.startswith(".")]:
            raise InputError(f"`out={target}`: is not empty ({foreign[0]}) and holds no labels; choose another folder")
    elif before and before.settings != settings:
        raise InputError(
            f"`out={target}`: holds other labels: {'; '.join(differences(before.settings, settings))}; choose another "
            "folder, or `overwrite=True`"
        )
    plan = (before or LabelPlan(settings, {})).updated(files, _changed(before, library, target) if before else set())
    if before is None or plan.shards != before.shards:
        target.remove(MANIFEST)  # first, so that nobody reads a mixture
        plan.write(target)
        _drop(before, plan, target)
    return plan


def _changed(before: LabelPlan, library: Folder, target: Folder) -> set[str]:
    """Paths of files that were written after their shard: they may hold something else now."""
    written = dict(zip(before.shards, target.modified(before.shards), strict=True))
    paths = [(path, written[file]) for file, its in before.shards.items() for path in its]
    times = library.modified([path for path, _ in paths])
    return {path for (path, since), time in zip(paths, times, strict=True) if since and time > since}


def _drop(before: LabelPlan | None, plan: LabelPlan, target: Folder) -> None:
    """Remove shards, and rows of shards, that are not in the plan any more."""
    target.make(SHARDS)
    for name in target.files(SHARDS):
        if (file := f"{SHARDS}/{name}") not in plan.shards and not name.startswith("."):
            target.remove(file)
    for file, its in before.shards.items() if before else ():
        if before and file in plan.shards and plan.shards[file] != its:
            keep = plan.shards[file].__contains__
            label_shards.prune(target, file, keep, before.fingerprint(file), plan.fingerprint(file))


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
    manifest: LabelManifest, target: Folder, start: float, done: Labelled | None = None, run_id: str = ""
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
