"""One shard: its clips decoded, their features written as one file, and that file read back as a record.

A shard is there whole or not at all, and whoever writes it a second time writes the same bytes. Its quarantined clips
travel in its schema's metadata, so that one file is one complete record of what became of its clips. Decoding happens
in a child process, so that a clip which crashes or hangs its process costs that clip only.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from mgc.audio import decode as audio
from mgc.audio.logmel import feature
from mgc.collection.splits import SPLITS
from mgc.core.errors import ClipError, Reason, StoreError
from mgc.features import child_process as isolation
from mgc.features.feature_set import QUARANTINE_SCHEMA, SCHEMA, ShardEntry, parquet_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO

    from mgc.core.storage import Folder
    from mgc.features.plan import Recipe, ShardPlan

FINGERPRINT_KEY = b"mgc.fingerprint"
QUARANTINE_KEY = b"mgc.quarantine"
TOLERATED_LOSS = 0.03
"""Share of the promised audio that may be missing before a clip counts as damaged."""
PADDING_SECONDS = 0.3
"""What an encoder pads an MP3 with at most, which its frames count and a decoder cuts off."""
CLIP_MEMORY = 2 << 30
"""Bytes that decoding one clip may take; a clip takes 40 MB."""
OPEN_CLIPS = 64
"""Clips that are open at a time; those of an object store lie in anonymous temporary files."""
FETCHES = 8
"""Clips that are opened at once."""


@dataclass(frozen=True)
class ShardRecord:
    """What became of a shard's clips."""

    entry: ShardEntry
    genres: dict[str, int]
    """Rows by genre."""
    quarantined: list[dict[str, Any]]
    """Rows of ``QUARANTINE_SCHEMA``."""

    def to_json(self) -> str:
        """The record as a task returns it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ShardRecord:
        """Read what ``to_json`` wrote."""
        fields = json.loads(text)
        return cls(ShardEntry(**fields.pop("entry")), **fields)


def write(shard: ShardPlan, root: Folder, out: Folder, *, recipe: Recipe, clip_timeout: float) -> ShardRecord:
    """Extract the features of a shard's clips, which lie in ``root``, and write them to the set ``out``.

    Parameters
    ----------
    clip_timeout
        Seconds a clip may take before it is given up as ``timed_out``.

    Raises
    ------
    OSError
        The shard cannot be written, nothing of it is left; or the object store of ``root`` does not answer.
    """
    clips = shard.clips.to_pylist()
    rows, quarantined = [], []
    for clip, outcome in zip(clips, _outcomes(clips, root, recipe, clip_timeout), strict=True):
        if isinstance(outcome, ClipError):
            record = {"reason": str(outcome.reason), "detail": outcome.detail, "seconds": outcome.seconds}
            quarantined.append({name: clip[name] for name in ("track_id", "path", "genre", "split")} | record)
        else:
            rows.append(outcome)
    metadata = {
        FINGERPRINT_KEY: shard.fingerprint.encode(),
        QUARANTINE_KEY: json.dumps(quarantined).encode(),
        b"mgc.spec": json.dumps(asdict(recipe.spec)).encode(),
        b"mgc.logmel": json.dumps({"shape": recipe.spec.shape, "dtype": "<f2", "order": "C"}).encode(),
    }
    table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(metadata))
    rows.clear()  # 21 MB, before the file takes as much
    data = parquet_bytes(table)
    out.write(shard.file, data)
    return _record(shard.file, table, len(data), hashlib.sha256(data).hexdigest())


def _outcomes(
    clips: list[dict[str, Any]], root: Folder, recipe: Recipe, clip_timeout: float
) -> Iterator[dict[str, Any] | ClipError]:
    """A row, or what is wrong, for each clip in turn: opened here, decoded in a child process.

    Opened here because the client of an object store does not survive a fork; some at a time, for the open files'
    sake, and at once, because a store takes its time to answer.
    """
    attempt = partial(_attempt, recipe=recipe)
    for start in range(0, len(clips), OPEN_CLIPS):
        group = clips[start : start + OPEN_CLIPS]
        with ExitStack() as opened:
            with ThreadPoolExecutor(FETCHES) as pool:
                files = list(pool.map(partial(_open, root), group))
            for file in files:
                if not isinstance(file, ClipError):
                    opened.enter_context(file)
            sources = zip(group, files, strict=True)
            for outcome in isolation.each(attempt, sources, seconds=clip_timeout, memory=CLIP_MEMORY):
                if isinstance(outcome, isolation.Lost):
                    yield ClipError(Reason(outcome.how), outcome.detail)
                else:
                    yield outcome


def extract(clip: dict[str, Any], file: FileIO, recipe: Recipe) -> dict[str, Any]:
    """Turn one row of the plan, and its open file, into one row of a shard.

    Raises
    ------
    ClipError
        The clip gives no feature; its reason and detail say why.
    """
    spec = recipe.spec
    try:
        samples, seconds, promised = audio.load(file, sample_rate=spec.sample_rate, seconds=spec.seconds)
        damaged = seconds < (1 - TOLERATED_LOSS) * promised - PADDING_SECONDS
        if damaged and not recipe.keep_damaged:
            raise ClipError(Reason.DAMAGED, f"{seconds:.2f} of {promised:.2f} s of audio came out", seconds)
        if seconds < recipe.min_seconds:
            detail = f"{seconds:.2f} s of audio, --min-seconds is {recipe.min_seconds:g}"
            raise ClipError(Reason.TOO_SHORT, detail, seconds)
        z_FT, mean_db, std_db = feature(samples, spec)
        file.seek(0)
        sha1 = hashlib.file_digest(file, "sha1").hexdigest()
    except (ClipError, MemoryError):
        raise
    except Exception as error:
        raise ClipError(Reason.FAILED, f"{type(error).__name__}: {error}") from error
    return {name: clip[name] for name in ("track_id", "split", "genre", "label", "artist_id", "path")} | {
        "source_sha1": sha1,
        "seconds": seconds,
        "promised_seconds": promised,
        "damaged": damaged,
        "padded": len(samples) < spec.n_samples,
        "mean_db": mean_db,
        "std_db": std_db,
        "logmel": z_FT.tobytes(),
    }


def _open(root: Folder, clip: dict[str, Any]) -> FileIO | ClipError:
    try:
        return audio.open_clip(root, clip["path"])
    except ClipError as error:
        return error


def _attempt(source: tuple[dict[str, Any], FileIO | ClipError], recipe: Recipe) -> dict[str, Any] | ClipError:
    clip, file = source
    try:
        return file if isinstance(file, ClipError) else extract(clip, file, recipe)
    except ClipError as error:
        return error


def is_written(out: Folder, shard: ShardPlan) -> bool:
    """Whether the shard is there as planned; a file of its name that is anything else is to be written anew."""
    try:
        with out.random_access(shard.file) as file:
            metadata = pq.read_schema(file).metadata or {}
    except StoreError:
        raise
    except (OSError, pa.ArrowException):
        return False
    return bool(metadata.get(FINGERPRINT_KEY, b"").decode() == shard.fingerprint)


def read_record(out: Folder, file: str) -> ShardRecord:
    """Read a written shard's record: rows, size, hash, genres and quarantine.

    Raises
    ------
    OSError, pyarrow.ArrowException, KeyError
        The file cannot be read, or is no shard.
    """
    data = out.read(file)
    table = pq.read_table(pa.BufferReader(data), columns=["split", "genre"])
    return _record(file, table, len(data), hashlib.sha256(data).hexdigest())


def _record(file: str, table: pa.Table, size: int, sha256: str) -> ShardRecord:
    split = file.rpartition("/")[2].partition("-")[0]
    genres = {row["values"]: row["counts"] for row in table["genre"].value_counts().to_pylist()}
    return ShardRecord(
        ShardEntry(file, split, len(table), size, sha256), genres, json.loads(table.schema.metadata[QUARANTINE_KEY])
    )


def totals(records: list[ShardRecord]) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """Rows by split and genre, and quarantined clips by reason, of all shards: what the manifest counts."""
    clips: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for record in records:
        clips.setdefault(record.entry.split, Counter()).update(record.genres)  # a manifest may name any split
    reasons = Counter(row["reason"] for record in records for row in record.quarantined)
    return {split: dict(counts) for split, counts in clips.items()}, dict(sorted(reasons.items()))


def quarantine(records: list[ShardRecord]) -> pa.Table:
    """The clips of all shards that gave no feature, by track id."""
    rows = [row for record in records for row in record.quarantined]
    return pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA).sort_by("track_id")
