"""Shards: files that are there whole, once and the same, or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import signal
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import soundfile

from mgc.audio.logmel import LogMelSpec, log_mel, standardize
from mgc.collection.tracks import SCHEMA as TRACKS
from mgc.core.errors import ClipError, Reason
from mgc.core.storage import Folder
from mgc.features import shards
from mgc.features.decoding import outcome_of
from mgc.features.layout import SCHEMA
from mgc.features.plan import Plan, Recipe

RATE = 22_050
RECIPE = Recipe(spec=LogMelSpec(seconds=2.0), min_seconds=0.5, clips_per_shard=4)


def table(count):
    """A tracks table of so many training clips."""
    rows = [
        {"path": f"training{i}.wav", "genre": "ab"[i % 2], "label": i % 2, "split": "training", "artist_id": f"x{i}"}
        for i in range(count)
    ]
    rows = [row | {"track_id": 100 + i, "license": "CC0-1.0", "bytes": 9} for i, row in enumerate(rows)]
    return pa.Table.from_pylist(rows, schema=pa.schema([*TRACKS, ("bytes", pa.int64())]))


# Writing


@pytest.fixture
def collection(tmp_path):
    """Five clips as WAV: three good (one shorter than the feature), one too short, one that is text; one is missing."""
    generator = np.random.default_rng(0)
    for i, seconds in enumerate((2.5, 2.0, 1.0, 0.2)):
        soundfile.write(tmp_path / f"training{i}.wav", generator.uniform(-0.5, 0.5, int(seconds * RATE)), RATE)
    (tmp_path / "training4.wav").write_text("this is no audio")
    return tmp_path


def one_shard(count=6):
    (shard,) = Plan.of(table(count), replace(RECIPE, clips_per_shard=64)).shards
    return shard


def row_of(clip, path):
    with path.open("rb", buffering=0) as file:
        return shards.extract(clip | {"path": path.name}, file, RECIPE)


def write(root, out, shard=None, **options):
    shard = shard or one_shard()
    folder = Folder.at(out)
    folder.make("shards")
    record = shards.write(shard, Folder.at(root), folder, recipe=RECIPE, **{"clip_timeout": 60.0, **options})
    assert record == shards.read_record(folder, shard.file) == shards.ShardRecord.from_json(record.to_json())
    return out / shard.file


def test_a_row_is_the_float16_z_scores_of_the_clip_in_little_endian_c_order(collection):
    clip = one_shard().clips.filter(pa.compute.equal(one_shard().clips["path"], "training0.wav")).to_pylist()[0]
    row = row_of(clip, collection / "training0.wav")
    samples, _ = soundfile.read(collection / "training0.wav", dtype="float32")
    db = log_mel(samples, RECIPE.spec)
    z, mean, std = standardize(db)
    stored = np.frombuffer(row["logmel"], "<f2").reshape(RECIPE.spec.shape)
    np.testing.assert_array_equal(stored, z.astype(np.float16))
    assert (row["mean_db"], row["std_db"]) == (mean, std)
    np.testing.assert_allclose(stored.astype(np.float64) * std + mean, db, atol=std * 8 * 2**-11)
    assert row["source_sha1"] == hashlib.sha1((collection / "training0.wav").read_bytes()).hexdigest()
    assert {name: row[name] for name in ("track_id", "split", "genre", "label", "artist_id", "path")} == {
        name: clip[name] for name in ("track_id", "split", "genre", "label", "artist_id", "path")
    }


@pytest.mark.parametrize(("index", "seconds", "padded"), [(0, 2.0, False), (1, 2.0, False), (2, 1.0, True)])
def test_a_row_says_how_much_audio_it_holds_and_whether_it_was_padded(collection, index, seconds, padded):
    clip = one_shard().clips.to_pylist()[0]
    row = row_of(clip, collection / f"training{index}.wav")
    assert row["seconds"] == pytest.approx(seconds)
    assert row["padded"] is padded


def test_an_unforeseen_error_of_one_clip_is_a_clip_error_that_names_it(collection, monkeypatch):
    monkeypatch.setattr(shards, "feature", lambda *_: 1 / 0)
    with (collection / "training0.wav").open("rb") as file:
        clip = one_shard(1).clips.to_pylist()[0]
        error = outcome_of(partial(shards.extract, clip, file, RECIPE))
    assert isinstance(error, ClipError)
    assert error.reason == Reason.FAILED
    assert "ZeroDivisionError" in error.detail


def test_a_shard_is_one_complete_record_of_what_became_of_its_clips(collection):
    shard = one_shard()
    target = write(collection, collection / "set")
    found = pq.read_table(target)
    assert found.schema.equals(SCHEMA)
    assert found["path"].to_pylist() == [
        path for path in shard.clips["path"].to_pylist() if path in {f"training{i}.wav" for i in range(3)}
    ]
    record = shards.read_record(Folder.at(collection / "set"), shard.file)
    assert record.entry.rows == 3
    assert record.entry.bytes == target.stat().st_size
    assert record.entry.sha256 == hashlib.sha256(target.read_bytes()).hexdigest()
    assert record.genres == {"a": 2, "b": 1}
    assert {row["path"]: row["reason"] for row in record.quarantined} == {
        "training3.wav": "too_short",
        "training4.wav": "not_audio",
        "training5.wav": "missing",
    }
    seconds = {row["path"]: row["seconds"] for row in record.quarantined}
    assert seconds["training3.wav"] == pytest.approx(0.2)
    assert seconds["training5.wav"] is None


def test_the_schema_metadata_says_what_the_bytes_are(collection):
    metadata = pq.read_schema(write(collection, collection / "set")).metadata
    assert json.loads(metadata[b"mgc.logmel"]) == {"shape": list(RECIPE.spec.shape), "dtype": "<f2", "order": "C"}
    assert LogMelSpec(**json.loads(metadata[b"mgc.spec"])) == RECIPE.spec


def test_the_same_clips_give_the_same_bytes(collection):
    first, second = (write(collection, collection / name).read_bytes() for name in ("one", "two"))
    assert first == second


def test_a_shard_of_quarantined_clips_alone_is_a_shard_without_rows(collection):
    (shard,) = Plan.of(table(6).slice(5), RECIPE).shards
    write(collection, collection / "set", shard)
    record = shards.read_record(Folder.at(collection / "set"), shard.file)
    assert (record.entry.rows, record.genres, len(record.quarantined)) == (0, {}, 1)


@pytest.mark.parametrize("how", ["too large", "read-only"])
def test_a_failed_write_leaves_what_was_there_and_nothing_else(collection, monkeypatch, how):
    """A real limit on the size of files, and a disk that turned read-only between two calls."""
    target = write(collection, collection / "set")
    before = target.read_bytes()
    if how == "read-only":
        replace_ = os.replace

        def refuse(source, to):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), to)

        monkeypatch.setattr(os, "replace", refuse)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        if how == "too large":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(OSError, match="File too large" if how == "too large" else "Read-only"):
            write(collection, collection / "set")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
        if how == "read-only":
            monkeypatch.setattr(os, "replace", replace_)
    assert target.read_bytes() == before
    assert list(target.parent.iterdir()) == [target]


def test_an_mp3_that_begins_with_something_else_becomes_the_same_row(collection, fma_clip):
    mp3 = fma_clip.read_bytes()
    (collection / "training0.wav").write_bytes(mp3)
    (collection / "training1.wav").write_bytes(b"\r\n" + bytes(5000) + mp3)  # and with another ending
    rows = pq.read_table(write(collection, collection / "set")).to_pylist()
    whole, behind = (next(row for row in rows if row["path"] == f"training{i}.wav") for i in (0, 1))
    assert (behind["seconds"], behind["logmel"]) == (whole["seconds"], whole["logmel"])


# Clips that take their process with them


@pytest.mark.parametrize("hostile", ["training0.wav", "training1.wav", "training2.wav"])
@pytest.mark.parametrize(("how", "reason"), [("crash", "crashed"), ("hang", "timed_out"), ("memory", "crashed")])
def test_a_clip_that_brings_its_process_down_costs_that_clip_only(collection, monkeypatch, hostile, how, reason):
    load = shards.audio.load

    def decoder(file, **options):
        if os.readlink(f"/proc/self/fd/{file.fileno()}").endswith(hostile):
            if how == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            while how == "hang":
                time.sleep(1)
            np.ones(1 << 40)
        return load(file, **options)

    whole = write(collection, collection / "whole")
    monkeypatch.setattr(shards.audio, "load", decoder)
    target = write(collection, collection / "set", clip_timeout=1.0 if how == "hang" else 60.0)
    record = shards.read_record(Folder.at(collection / "set"), one_shard().file)
    assert {row["path"]: row["reason"] for row in record.quarantined} == {
        hostile: reason,
        "training3.wav": "too_short",
        "training4.wav": "not_audio",
        "training5.wav": "missing",
    }
    others = pq.read_table(whole).filter(pc.not_equal(pq.read_table(whole)["path"], hostile))
    assert pq.read_table(target).equals(others)


# What is there already


@pytest.mark.parametrize("content", [None, b"", b"PAR1", b"no parquet at all", "another"])
def test_a_shard_is_written_when_it_is_there_as_planned(collection, content):
    shard, out = one_shard(), Folder.at(collection / "set")
    assert not shards.is_written(out, shard)
    target = write(collection, collection / "set")
    whole = target.read_bytes()
    assert shards.is_written(out, shard)
    if content == "another":
        shard = replace(shard, fingerprint="b" * 64)
    elif content is None:
        target.unlink()
    else:
        target.write_bytes(content)
    assert not shards.is_written(out, shard)
    assert write(collection, collection / "set").read_bytes() == whole


def test_the_quarantine_table_holds_the_clips_of_all_shards_by_id(collection):
    plan = Plan.of(table(8), replace(RECIPE, clips_per_shard=2))
    for shard in plan.shards:
        write(collection, collection / "set", shard)
    records = [shards.read_record(Folder.at(collection / "set"), shard.file) for shard in reversed(plan.shards)]
    rows = shards.quarantine(records).to_pylist()
    assert [(row["track_id"], row["split"], row["reason"]) for row in rows] == [
        (103, "training", "too_short"),
        (104, "training", "not_audio"),
        (105, "training", "missing"),
        (106, "training", "missing"),
        (107, "training", "missing"),
    ]
    assert all(row["detail"] for row in rows)


def test_without_quarantined_clips_the_table_is_empty():
    assert len(shards.quarantine([])) == 0
    assert shards.quarantine([]).column_names[0] == "track_id"
