"""One shard: decode its clips, write their features as one Parquet file, and read such a file back as a record.

A shard is there whole or not at all, and writing it again gives the same bytes. Its quarantined clips are in its
schema's metadata, so that the file accounts for each of its clips.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from mgc.audio import decode as audio
from mgc.audio.logmel import feature
from mgc.collection.splits import SPLITS
from mgc.core.errors import ClipError, InputError, Reason, StoreError, first_line
from mgc.features.decoding import each_clip
from mgc.features.layout import (
    QUARANTINE_SCHEMA,
    SCHEMA,
    WITHOUT_LICENCE,
    ShardEntry,
    ShardName,
    parquet_bytes,
    read_table,
    storage_failure,
)
from mgc.features.plan import LICENCES_KEY, TASK

if TYPE_CHECKING:
    from io import FileIO

    from mgc.core.storage import Folder
    from mgc.features.plan import ShardPlan
    from mgc.features.recipe import Recipe

FINGERPRINT_KEY = b"mgc.fingerprint"
QUARANTINE_KEY = b"mgc.quarantine"
TOLERATED_LOSS = 0.03
"""Share of the audio announced by a file's headers that may be missing before the clip counts as damaged."""
PADDING_SECONDS = 0.3
"""The most that an encoder pads an MP3 with; its frames count this, a decoder cuts it off."""


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """The clips of one shard: how many became features, and which are in quarantine."""

    entry: ShardEntry
    """File, split, rows, bytes and hash."""
    genres: dict[str, int]
    """Rows by genre."""
    quarantined: list[dict[str, Any]]
    """Rows of ``QUARANTINE_SCHEMA``."""
    licenses: dict[str, int] | None = None
    """Rows by licence; None of a shard without licences."""

    def to_json(self) -> str:
        """Encode the record as a task returns it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ShardRecord:
        """Decode the JSON of ``to_json``."""
        fields = json.loads(text)
        for name in ("genres", "licenses"):  # of many shards
            fields[name] = fields[name] and {sys.intern(value): rows for value, rows in fields[name].items()}
        return cls(ShardEntry(**fields.pop("entry")), **fields)


def write(shard: ShardPlan, root: Folder, out: Folder, *, recipe: Recipe, clip_timeout: float) -> ShardRecord:
    """Extract the features of a shard's clips and write them as one file.

    Parameters
    ----------
    shard
        The shard as planned.
    root
        The folder that the clips' paths are relative to.
    out
        The folder of the feature set.
    recipe
        The settings of the set.
    clip_timeout
        Seconds that decoding one clip may take before it is quarantined as ``timed_out``.

    Returns
    -------
    ShardRecord
        What the file holds; ``read_record`` reads the same.

    Raises
    ------
    OSError
        The shard cannot be written; nothing of it is left.
    StoreError
        The object store of ``root`` or ``out`` does not answer.
    """
    clips = shard.clips.to_pylist()
    rows, quarantined = [], []
    outcomes = each_clip(clips, root, partial(extract, recipe=recipe), clip_timeout)
    for clip, outcome in zip(clips, outcomes, strict=True):
        if isinstance(outcome, ClipError):
            record = {"reason": str(outcome.reason), "detail": outcome.detail, "seconds": outcome.seconds}
            quarantined.append({name: clip[name] for name in ("track_id", "path", "genre", "split")} | record)
        else:
            rows.append(outcome)
    metadata = {
        FINGERPRINT_KEY: shard.fingerprint.encode(),
        QUARANTINE_KEY: json.dumps(quarantined).encode(),
        b"mgc.spec": json.dumps(recipe.spec.to_dict()).encode(),
        b"mgc.logmel": json.dumps({"shape": recipe.spec.shape, "dtype": "<f2", "order": "C"}).encode(),
    }
    metadata |= {LICENCES_KEY: shard.licences} if shard.licences else {}
    schema = SCHEMA if shard.licences else WITHOUT_LICENCE
    table = pa.Table.from_pylist(rows, schema=schema.with_metadata(metadata))
    rows.clear()  # 21 MB, before the file takes as much
    data = parquet_bytes(table)
    out.write(shard.file, data)
    entry = ShardEntry(shard.file, shard.split, len(table), len(data), hashlib.sha256(data).hexdigest())
    return _record(entry, table)


def extract(clip: dict[str, Any], file: FileIO, recipe: Recipe) -> dict[str, Any]:
    """Decode one clip and compute its feature: one row of the plan becomes one row of a shard.

    Parameters
    ----------
    clip
        Row of the plan.
    file
        Its open file.
    recipe
        The settings of the set.

    Returns
    -------
    dict
        A row of ``SCHEMA``.

    Raises
    ------
    ClipError
        The clip gives no feature; its reason and detail say why.
    """
    spec = recipe.spec
    samples, seconds, promised = audio.load(file, sample_rate=spec.sample_rate, seconds=spec.seconds)
    damaged = is_damaged(seconds, promised)
    if damaged and not recipe.keep_damaged:
        detail = f"{seconds:.2f} of {promised:.2f} s of audio came out"
        why = audio.why_short(file, spec.seconds)
        raise ClipError(Reason.DAMAGED, f"{detail}; {why}" if why else detail, seconds)
    if seconds < recipe.min_seconds:
        # Written into shards since the first version: another wording would change their bytes.
        detail = f"{seconds:.2f} s of audio, --min-seconds is {recipe.min_seconds:g}"
        raise ClipError(Reason.TOO_SHORT, detail, seconds)
    made = feature(samples, spec)
    file.seek(0)
    sha1 = hashlib.file_digest(file, "sha1").hexdigest()
    return {name: clip[name] for name in TASK if name in clip} | {
        "source_sha1": sha1,
        "seconds": seconds,
        "promised_seconds": promised,
        "damaged": damaged,
        "padded": len(samples) < spec.n_samples,
        "mean_db": made.mean_db,
        "std_db": made.std_db,
        "logmel": made.z_FT.tobytes(),
    }


def is_damaged(seconds: float, promised: float) -> bool:
    """Whether clearly less audio came out of a file than its headers and size promise.

    Parameters
    ----------
    seconds
        What came out.
    promised
        What they promise, in seconds.
    """
    return seconds < (1 - TOLERATED_LOSS) * promised - PADDING_SECONDS


def is_written(out: Folder, shard: ShardPlan) -> bool:
    """Whether a shard's file is there and was written by its plan, with the plan's licences.

    Parameters
    ----------
    out
        The folder of the feature set.
    shard
        The shard as planned.

    Raises
    ------
    RunError
        The disk or the object store cannot be read.
    """
    found = _metadata(out, shard.file)
    return found.get(FINGERPRINT_KEY) == shard.fingerprint.encode() and found.get(LICENCES_KEY) == shard.licences


def has_fingerprint(out: Folder, file: str, fingerprint: str) -> bool:
    """Whether a shard's file, of features or of labels, is there and has this fingerprint.

    Parameters
    ----------
    out
        The folder of the set.
    file
        The shard's file, relative to it.
    fingerprint
        The shard's, by its plan.

    Raises
    ------
    RunError
        The disk or the object store cannot be read.
    """
    return _metadata(out, file).get(FINGERPRINT_KEY) == fingerprint.encode()


def _metadata(out: Folder, file: str) -> dict[bytes, bytes]:
    """The metadata of a shard's file; empty where it is absent or damaged."""
    try:
        with out.random_access(file) as opened:
            found: dict[bytes, bytes] | None = pq.read_schema(opened).metadata
    except (OSError, StoreError, pa.ArrowException, ValueError) as error:  # ValueError: a name that is not UTF-8
        if failure := storage_failure(f"{out}/{file}", error):
            raise failure from None
        return {}
    return found or {}


def read_record(out: Folder, file: str) -> ShardRecord:
    """Read the record of a written shard.

    Parameters
    ----------
    out
        The folder of the feature set.
    file
        The shard's file, relative to it: ``shards/training-00003-of-00016.parquet``.

    Returns
    -------
    ShardRecord
        Rows, size, hash, genres and quarantine.

    Raises
    ------
    InputError
        The file is not there, damaged, or no shard.
    RunError
        The disk or the object store cannot be read.
    """
    try:
        name = ShardName.parse(file)
        if name is None:
            raise ValueError("not the name of a shard")
        data = out.read(file)
        table = read_table(pa.BufferReader(data), ["split", "genre", "license"])
        return _record(ShardEntry(file, name.split, len(table), len(data), hashlib.sha256(data).hexdigest()), table)
    except (OSError, StoreError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise storage_failure(f"{out}/{file}", error) or InputError(
            f"{out}/{file}: damaged ({first_line(error)}); delete it and run the same «mgc preprocess» again"
        ) from None


def _record(entry: ShardEntry, table: pa.Table) -> ShardRecord:
    licenses = _counts(table["license"]) if "license" in table.column_names else None
    return ShardRecord(entry, _counts(table["genre"]), json.loads(table.schema.metadata[QUARANTINE_KEY]), licenses)


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {row["values"]: row["counts"] for row in column.value_counts().to_pylist()}


def totals(records: list[ShardRecord]) -> dict[str, Any]:
    """Count over all shards what a manifest counts.

    Returns
    -------
    dict
        The fields ``clips``, ``quarantined`` and ``licenses`` of the ``Manifest``.
    """
    clips: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    licenses: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for record in records:
        clips.setdefault(record.entry.split, Counter()).update(record.genres)  # a manifest may name any split
        licenses.setdefault(record.entry.split, Counter()).update(record.licenses or {})
    reasons = Counter(row["reason"] for record in records for row in record.quarantined)
    known = any(record.licenses is not None for record in records)
    return {
        "clips": {split: dict(counts) for split, counts in clips.items()},
        "quarantined": dict(sorted(reasons.items())),
        "licenses": {split: dict(counts) for split, counts in licenses.items()} if known else {},
    }


def quarantine(records: list[ShardRecord]) -> pa.Table:
    """Collect the quarantined clips of all shards [rows of ``QUARANTINE_SCHEMA``], by track id."""
    rows = [row for record in records for row in record.quarantined]
    return pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA).sort_by("track_id")
