"""From the tracks table to shards: the plan, and the writing of one shard.

The plan fixes every shard's name, clips and order before anything runs, so nothing depends on the cluster. A shard is
written under a temporary name and renamed to its own: it is there whole or not at all, and whoever writes it a second
time writes the same bytes. Its quarantined clips travel in its schema's metadata, so that one file is one complete
record of what became of its clips.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mgc import audio
from mgc.errors import ClipError, InputError, Reason
from mgc.features import QUARANTINE_SCHEMA, SCHEMA, SHARDS, ShardEntry
from mgc.files import replacing
from mgc.logmel import LogMelSpec, log_mel, standardize
from mgc.splits import SPLITS

FINGERPRINT_KEY = b"mgc.fingerprint"
QUARANTINE_KEY = b"mgc.quarantine"


@dataclass(frozen=True)
class Recipe:
    """Everything but the tracks that decides a feature set's bytes."""

    spec: LogMelSpec = field(default_factory=LogMelSpec)
    min_seconds: float = 5.0
    """Clips with less audio are quarantined as ``too_short``."""
    clips_per_shard: int = 64
    seed: int = 0
    """Of the shuffle that deals clips to shards."""
    decoder: str = audio.DECODER

    def fingerprint(self, clips: pa.Table, audio_root: Path) -> str:
        """Hash the recipe and the tracks (id, path, size in bytes, label, split): 64 hexadecimal digits."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode())
        columns = clips.select(["track_id", "path", "genre", "label", "split", "artist_id", "artist_name"]).to_pydict()
        for row in zip(*columns.values(), strict=True):
            digest.update(repr((*row, _size(audio_root / row[1]))).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class ShardPlan:
    """One shard before it is written."""

    file: str
    """Path relative to the set."""
    split: str
    clips: pa.Table
    """Its rows of the tracks table, in order."""


def plan(clips: pa.Table, recipe: Recipe) -> list[ShardPlan]:
    """Deal the clips of each split to shards by a seeded shuffle, so that every shard is a fair sample.

    The same clips in any order give the same plan.
    """
    shards = []
    for code, split in enumerate(SPLITS):
        members = clips.filter(pa.compute.equal(clips["split"], split)).sort_by("track_id")
        count = -(-len(members) // recipe.clips_per_shard)
        order = np.random.default_rng([recipe.seed, code]).permutation(len(members))
        for index in range(count):
            file = f"{SHARDS}/{split}-{index:05d}-of-{count:05d}.parquet"
            shards.append(ShardPlan(file, split, members.take(order[index::count])))
    return shards


def write(clips: pa.Table, target: Path, *, recipe: Recipe, fingerprint: str, audio_root: Path) -> None:
    """Extract the features of ``clips`` and write them as one shard.

    Raises
    ------
    OSError
        The shard cannot be written; nothing of it is left.
    """
    rows, quarantined = [], []
    for clip in clips.to_pylist():
        try:
            rows.append(extract(clip, audio_root / clip["path"], recipe))
        except ClipError as error:
            record = {"reason": str(error.reason), "detail": error.detail, "seconds": error.seconds}
            quarantined.append({name: clip[name] for name in ("track_id", "path", "genre", "split")} | record)
    metadata = {
        FINGERPRINT_KEY: fingerprint.encode(),
        QUARANTINE_KEY: json.dumps(quarantined).encode(),
        b"mgc.spec": json.dumps(asdict(recipe.spec)).encode(),
        b"mgc.logmel": json.dumps({"shape": recipe.spec.shape, "dtype": "<f2", "order": "C"}).encode(),
    }
    write_parquet(pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(metadata)), target)


def extract(clip: dict[str, Any], path: Path, recipe: Recipe) -> dict[str, Any]:
    """Turn one row of the tracks table into one row of a shard.

    Raises
    ------
    ClipError
        The clip gives no feature; its reason and detail say why.
    """
    spec = recipe.spec
    try:
        samples, seconds = audio.load(path, sample_rate=spec.sample_rate, seconds=spec.seconds)
        if seconds < recipe.min_seconds:
            detail = f"{seconds:.2f} s of audio, --min-seconds is {recipe.min_seconds:g}"
            raise ClipError(Reason.TOO_SHORT, detail, seconds)
        z_FT, mean_db, std_db = standardize(log_mel(samples, spec))
        with path.open("rb") as file:
            sha1 = hashlib.file_digest(file, "sha1").hexdigest()
    except ClipError:
        raise
    except Exception as error:
        raise ClipError(Reason.FAILED, f"{type(error).__name__}: {error}") from error
    return {name: clip[name] for name in ("track_id", "split", "genre", "label", "artist_id", "path")} | {
        "source_sha1": sha1,
        "seconds": seconds,
        "padded": len(samples) < spec.n_samples,
        "mean_db": mean_db,
        "std_db": std_db,
        "logmel": z_FT.astype("<f2").tobytes(),
    }


@dataclass(frozen=True)
class ShardRecord:
    """What became of a shard's clips, read back from the file itself."""

    entry: ShardEntry
    genres: dict[str, int]
    quarantined: list[dict[str, Any]]


def is_written(root: Path, shard: ShardPlan, fingerprint: str) -> bool:
    """Whether a shard is there.

    Raises
    ------
    InputError
        A file of its name is there and belongs to another set.
    """
    file = root / shard.file
    try:
        metadata = pq.read_schema(file).metadata or {}
    except FileNotFoundError:
        return False
    except (OSError, pa.ArrowException):
        return False  # not a shard of ours, which are there whole or not at all: written anew
    found = metadata.get(FINGERPRINT_KEY, b"").decode()
    if found != fingerprint:
        raise InputError(
            f"{file}: made from other clips, another recipe or decoder (fingerprint {found[:12]}…, "
            f"now {fingerprint[:12]}…); choose another --out or delete that folder"
        )
    return True


def read_record(root: Path, shard: ShardPlan) -> ShardRecord:
    """Read a written shard's record: rows, size, hash, genres and quarantine."""
    file = root / shard.file
    table = pq.read_table(file, columns=["genre"])
    with file.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    entry = ShardEntry(shard.file, shard.split, len(table), file.stat().st_size, sha256)
    genres = {row["values"]: row["counts"] for row in table["genre"].value_counts().to_pylist()}
    return ShardRecord(entry, genres, json.loads(table.schema.metadata[QUARANTINE_KEY]))


def write_quarantine(records: list[ShardRecord], target: Path) -> None:
    """Write the clips of all shards that gave no feature, by track id, as one table."""
    rows = [row for record in records for row in record.quarantined]
    table = pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA).sort_by("track_id")
    write_parquet(table, target)


def write_parquet(table: pa.Table, target: Path) -> None:
    """Write a Parquet file whole or not at all."""
    with replacing(target) as temporary:
        pq.write_table(table, temporary, compression="zstd", use_dictionary=["split", "genre"])


def _size(path: Path) -> int:
    """Bytes of a file, -1 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1
