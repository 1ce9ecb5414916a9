"""Verify a finished feature set: every byte of its shards against manifest and plan, and what derives from them.

One shard is in memory at a time. A problem names its file; ``mgc preprocess`` writes a file that is deleted again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mgc.collection.splits import artist_leaks
from mgc.core.atomic_files import is_temporary
from mgc.core.errors import InputError, RunError
from mgc.core.progress import Progress
from mgc.core.results import Result
from mgc.features.feature_set import FeatureSet, logmels
from mgc.features.layout import (
    MANIFEST,
    PLAN,
    QUARANTINE,
    QUARANTINE_SCHEMA,
    SCHEMA,
    SHARDS,
    Manifest,
    ShardEntry,
    read_table,
    storage_failure,
)
from mgc.features.plan import Plan, ShardPlan
from mgc.features.shards import FINGERPRINT_KEY, QUARANTINE_KEY, ShardRecord, quarantine, totals
from mgc.features.sources import changed

if TYPE_CHECKING:
    from pathlib import Path

    from mgc.core.storage import Folder

COPIED = ("split", "genre", "label", "artist_id", "path", "license")
"""Columns of a shard that are copied from the plan."""
SHOWN = 3
"""Track ids that a problem names at most."""
MISSING = "missing"


@dataclass(frozen=True)
class Problem:
    """Something wrong with one file of a feature set."""

    file: str
    """Path of the file in the set."""
    problem: str
    """One line for a person."""


@dataclass(frozen=True)
class Verification(Result):
    """What verifying a feature set found."""

    ok: bool
    """Whether there is no problem."""
    problems: tuple[Problem, ...]
    """All problems, those of one file together."""
    shards: int
    """Shards that the manifest names."""
    clips: int
    """Rows of the shards without a problem."""
    bytes: int
    """Size of the shards without a problem."""
    seconds: float
    """Duration of the verification."""
    features: str
    """Path or URI of the set."""
    sources: int | None = None
    """Source files that were hashed; None where that was not asked for."""
    changed: tuple[Problem, ...] = ()
    """Source files that are missing or hold something else than when the set was made."""

    def problem(self) -> RunError | None:
        """Return an error if anything is wrong with the set or its sources."""
        return None if self.ok else RunError(f"{self.features}: {len(self.problems) + len(self.changed)} problems")

    def __str__(self) -> str:
        """Say what is wrong and how to repair it."""
        return "\n".join([self._of_set(), *self._of_sources()])

    def _of_sources(self) -> list[str]:
        if not self.changed:
            return [] if self.sources is None else [f"all {self.sources} source files are as they were"]
        lines = [f"{each.file}: {each.problem}" for each in self.changed]
        count = f"{len(self.changed)} of {self.sources} source files are not as they were"
        return [*lines, f"{count}; bring them back, or preprocess into a new folder"]

    def _of_set(self) -> str:
        files = {each.file for each in self.problems}
        sound = f"{self.clips} clips, {self.bytes / 1e6:.1f} MB"
        if not self.problems:
            return f"{self.features}: all {self.shards} shards ({sound}) are as manifest and plan say"
        there = {each.file for each in self.problems if each.problem != MISSING}
        if PLAN in files:  # all but the shards is written anew, and a folder without plan and manifest is refused
            delete, again = there - {PLAN, MANIFEST, QUARANTINE}, "run the same «mgc preprocess» with --overwrite"
        else:  # with its manifest the set would be finished: nothing to do
            delete, again = there, "run the same «mgc preprocess» again"
            delete |= {MANIFEST} if any("/" not in file for file in files) else set()
        first = f"delete {', '.join(sorted(delete))} there, then " if delete else ""
        return "\n".join(
            [
                *(f"{each.file}: {each.problem}" for each in self.problems),
                f"{self.features}: {len(files)} files with problems, {sound} without",
                f"to mend it, {first}{again}: it writes only what is missing",
            ]
        )


def verify(features: str | Path | FeatureSet, *, sources: str | Path | None = None) -> Verification:
    """Check that every file of a finished feature set is what its manifest and its plan say.

    Parameters
    ----------
    features
        The set, or its folder: a path or a URI.
    sources
        The collection that it was made from, by path or URI; its files are then hashed too.

    Returns
    -------
    Verification
        Problems by file, and what is without.

    Raises
    ------
    InputError
        There is no such set or no such collection, or the set is unfinished.
    RunError
        The disk or the object store cannot be read.
    """
    start = time.monotonic()
    target = FeatureSet.open(features)
    folder, manifest = target.folder, target.manifest
    plan, lines = _plan(folder)
    planned = {shard.file: shard for shard in plan.shards} if plan else {}
    problems = [(PLAN, line) for line in lines]
    sound: list[ShardRecord] = []
    progress = Progress("verify", len(manifest.shards), "shards")
    for entry in manifest.shards:
        record, lines = _shard(target, entry, planned.get(entry.file))
        if plan and entry.file not in planned:
            lines.append("the plan has no such shard")
        problems += [(entry.file, line) for line in lines]
        sound += [record] if record and not lines else []
        progress.advance()
    whole = len(sound) == len(manifest.shards)
    problems += [(MANIFEST, line) for line in _against_plan(manifest, plan)] if plan else []
    problems += [(MANIFEST, line) for line in _against_shards(manifest, sound)] if whole else []
    problems += [(QUARANTINE, line) for line in _quarantine(folder, sound, whole=whole)]
    problems += _strangers(folder, {entry.file for entry in manifest.shards} | planned.keys())
    count, differences = (None, []) if sources is None else changed(sources, target, [one.entry.file for one in sound])
    return Verification(
        ok=not problems and not differences,
        problems=tuple(Problem(file, line) for file, line in problems),
        shards=len(manifest.shards),
        clips=sum(record.entry.rows for record in sound),
        bytes=sum(record.entry.bytes for record in sound),
        seconds=round(time.monotonic() - start, 2),
        features=str(folder),
        sources=count,
        changed=tuple(Problem(path, line) for path, line in differences),
    )


def _plan(folder: Folder) -> tuple[Plan | None, list[str]]:
    try:
        plan = Plan.read(folder)
    except InputError as error:
        return None, [str(error).removeprefix(f"{folder}/{PLAN}: ").rpartition("; ")[0]]
    return plan, [] if plan else [MISSING]


def _shard(target: FeatureSet, entry: ShardEntry, shard: ShardPlan | None) -> tuple[ShardRecord | None, list[str]]:
    """Read a shard: its record, None if it cannot be read, and its problems."""
    lines: list[str] = []
    try:
        data = target.folder.read(entry.file)
        sha256 = hashlib.sha256(data).hexdigest()
        if len(data) != entry.bytes:
            lines.append(f"{len(data)} bytes, the manifest says {entry.bytes}")
        elif sha256 != entry.sha256:
            lines.append(f"its bytes have changed (sha256 {sha256[:12]}…, the manifest says {entry.sha256[:12]}…)")
        table = read_table(pa.BufferReader(data))
        if len(table) != entry.rows:
            lines.append(f"{len(table)} rows, the manifest says {entry.rows}")
        metadata = table.schema.metadata or {}
        made_by = metadata.get(FINGERPRINT_KEY, b"").decode()
        if shard and made_by != shard.fingerprint:
            lines.append(f"made by another plan (fingerprint {made_by[:12]}…, the plan says {shard.fingerprint[:12]}…)")
        expected = target.manifest.schema
        if not table.schema.equals(expected):
            changes = sorted({str(field) for field in table.schema} ^ {str(field) for field in expected})
            return None, [*lines, f"its columns are not those of a shard ({', '.join(changes) or 'their order'})"]
        lines += _values(table, target.manifest.spec.shape)
        genres = Counter(table["genre"].to_pylist())
        read = ShardEntry(entry.file, entry.split, len(table), len(data), sha256)
        licenses = dict(Counter(table["license"].to_pylist())) if target.manifest.licenses else None
        record = ShardRecord(read, dict(genres), json.loads(metadata[QUARANTINE_KEY]), licenses)
        quarantined = pa.Table.from_pylist(record.quarantined, schema=QUARANTINE_SCHEMA)
        if quarantined.to_pylist() != record.quarantined:
            raise ValueError("its metadata hold no quarantine")
        lines += _clips(table, quarantined["track_id"].to_pylist(), shard) if shard else []
    except FileNotFoundError:
        return None, [MISSING]
    except Exception as error:  # a damaged file may raise anything, and the others are still to be read
        return None, [*lines, _unreadable(f"{target.folder}/{entry.file}", error)]
    return record, lines


def _values(table: pa.Table, shape: tuple[int, int]) -> list[str]:
    """Name the clips whose spectrogram or numbers cannot be right."""
    sizes = pc.fill_null(pc.binary_length(table["logmel"]), -1).to_numpy()
    odd = sizes != 2 * shape[0] * shape[1]
    bad = {f"have a matrix that is not {shape[0]} × {shape[1]}": odd}
    if not odd.any():
        bad["have a matrix with NaN or infinity"] = ~np.isfinite(logmels(table, shape)).all(axis=(1, 2))
    for name in (field.name for field in SCHEMA if pa.types.is_floating(field.type)):
        bad[f"have no finite {name}"] = ~np.isfinite(table[name].to_numpy())
    return _named({what: table["track_id"].to_numpy()[rows].tolist() for what, rows in bad.items()})


def _clips(table: pa.Table, quarantined: list[int], shard: ShardPlan) -> list[str]:
    """Say how a shard's rows and quarantine differ from its clips of the plan, each once and in order."""
    rows, planned = table["track_id"].to_pylist(), shard.clips["track_id"].to_pylist()
    times, both = Counter(rows + quarantined), set(rows) & set(quarantined)
    lines = _named(
        {
            "are neither a row nor in quarantine": [clip for clip in planned if clip not in times],
            "are both a row and in quarantine": sorted(both),
            "are there twice": sorted(clip for clip, count in times.items() if count > 1 and clip not in both),
            "are not of this shard": sorted(times.keys() - set(planned)),
        }
    )
    clips = shard.clips.filter(pc.is_in(shard.clips["track_id"], value_set=table["track_id"].combine_chunks()))
    expected = clips["track_id"].to_pylist()
    if rows == expected:
        copied = [name for name in COPIED if name in table.column_names and name in clips.column_names]
        other = [name for name in copied if not table[name].equals(clips[name])]
        lines += [f"{', '.join(other)} of its rows are not the plan's"] if other else []
    elif sorted(rows) == sorted(expected):
        lines.append("its rows are in another order than the plan's")
    return lines


def _against_plan(manifest: Manifest, plan: Plan) -> list[str]:
    """Say how the manifest differs from the plan."""
    named = {entry.file for entry in manifest.shards}
    lacking = [shard.file for shard in plan.shards if shard.file not in named]
    if manifest.fingerprint != plan.fingerprint:
        more = f": additions are unfinished, {len(lacking)} planned shards are not in it" if lacking else ""
        return [f"its fingerprint is not the plan's{more}"]
    lines = [f"does not name {file}, which is in the plan" for file in lacking]
    if not lines and [(e.file, e.split) for e in manifest.shards] != [(s.file, s.split) for s in plan.shards]:
        lines.append("names the shards in another order, or under another split, than the plan")
    genres = plan.table.group_by(["label", "genre"]).aggregate([]).to_pylist()
    right = {
        "recipe": manifest.recipe == plan.recipe.to_dict(),
        "genres": all(manifest.genres[row["label"] : row["label"] + 1] == (row["genre"],) for row in genres),
        "artist_leaks": list(manifest.artist_leaks) == artist_leaks(plan.table),
    }
    return lines + [f"its {name} is not what the plan says" for name, equal in right.items() if not equal]


def _against_shards(manifest: Manifest, records: list[ShardRecord]) -> list[str]:
    """Say which of the manifest's counts are not those of the shards."""
    right = {name: getattr(manifest, name) == counts for name, counts in totals(records).items()}
    return [f"its count of {name} is not that of the shards" for name, equal in right.items() if not equal]


def _quarantine(folder: Folder, records: list[ShardRecord], *, whole: bool) -> list[str]:
    """Say how the quarantine differs from the shards'; ``records`` are of all of them if ``whole``."""
    expected = quarantine(records)
    try:
        with folder.random_access(QUARANTINE) as file:
            table = read_table(file)
        if not whole:
            table = table.filter(pc.is_in(table["track_id"], value_set=expected["track_id"].combine_chunks()))
    except FileNotFoundError:
        return [MISSING]
    except Exception as error:
        return [_unreadable(f"{folder}/{QUARANTINE}", error)]
    return [] if table.equals(expected) else [f"its {len(table)} clips are not the {len(expected)} of the shards"]


def _strangers(folder: Folder, known: set[str]) -> list[tuple[str, str]]:
    """Find the files that neither manifest nor plan names."""
    left = "a temporary file: its process was killed, or is writing it now"
    inside = folder.files(SHARDS) if folder.kind(SHARDS) == "folder" else []
    names = [name for name in folder.files() if is_temporary(name)]
    names += [f"{SHARDS}/{name}" for name in inside if f"{SHARDS}/{name}" not in known]
    strange = "the manifest does not name it, yet who reads all of shards/ reads it"
    return [(name, left if is_temporary(name.rpartition("/")[2]) else strange) for name in names]


def _named(kinds: dict[str, list[int]]) -> list[str]:
    """Count the clips of each kind and name the first."""
    return [
        f"{len(clips)} clips {what} ({', '.join(map(str, clips[:SHOWN]))}{', …' if len(clips) > SHOWN else ''})"
        for what, clips in kinds.items()
        if clips
    ]


def _unreadable(file: str, error: Exception) -> str:
    if failure := storage_failure(file, error):
        raise failure from None
    return f"cannot be read ({type(error).__name__}: {error})".splitlines()[0]
