"""Shards: a plan that depends on the clips alone, and files that are there whole, once and the same, or not at all."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from mgc import shards
from mgc.errors import ClipError, InputError, Reason
from mgc.features import SCHEMA
from mgc.logmel import LogMelSpec, log_mel, standardize
from mgc.shards import Recipe, ShardPlan
from mgc.splits import SPLITS
from mgc.tracks import SCHEMA as TRACKS

RATE = 22_050
RECIPE = Recipe(spec=LogMelSpec(seconds=2.0), min_seconds=0.5, clips_per_shard=4)
FINGERPRINT = "a" * 64


def table(counts, seed=None):
    """A tracks table of so many clips a split; rows shuffled by ``seed``."""
    rows = []
    for split, count in counts.items():
        rows += [
            {"path": f"{split}{i}.wav", "genre": "ab"[i % 2], "label": i % 2, "split": split, "artist_id": f"x{i}"}
            for i in range(count)
        ]
    rows = [row | {"track_id": 100 + i} for i, row in enumerate(rows)]
    clips = pa.Table.from_pylist(rows, schema=TRACKS)
    return clips if seed is None else clips.take(np.random.default_rng(seed).permutation(len(clips)))


MANY = {"training": 801, "validation": 100, "test": 3}


def listing(plan):
    return [(shard.file, shard.split, shard.clips["track_id"].to_pylist()) for shard in plan]


# The plan


@pytest.mark.parametrize("seed", [1, 2])
def test_the_plan_does_not_depend_on_the_order_of_rows(seed):
    assert listing(shards.plan(table(MANY), RECIPE)) == listing(shards.plan(table(MANY, seed), RECIPE))


def test_every_clip_is_in_exactly_one_shard_of_its_split():
    clips = table(MANY)
    found = [(i, shard.split) for shard in shards.plan(clips, RECIPE) for i in shard.clips["track_id"].to_pylist()]
    assert sorted(found) == sorted(zip(clips["track_id"].to_pylist(), clips["split"].to_pylist(), strict=True))


@pytest.mark.parametrize("clips_per_shard", [1, 4, 64, 10_000])
def test_clips_are_dealt_evenly_to_as_few_shards_as_hold_them(clips_per_shard):
    plan = shards.plan(table(MANY), replace(RECIPE, clips_per_shard=clips_per_shard))
    for split, count in MANY.items():
        sizes = [len(shard.clips) for shard in plan if shard.split == split]
        assert len(sizes) == -(-count // clips_per_shard)
        assert sum(sizes) == count
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= clips_per_shard


def test_shards_are_named_by_split_index_and_count():
    plan = shards.plan(table({"training": 9, "validation": 4}), RECIPE)
    assert [shard.file for shard in plan] == [
        "shards/training-00000-of-00003.parquet",
        "shards/training-00001-of-00003.parquet",
        "shards/training-00002-of-00003.parquet",
        "shards/validation-00000-of-00001.parquet",
    ]


def test_a_shard_is_a_fair_sample_of_its_split_whatever_the_order_of_ids():
    clips = table({"training": 640})
    early = clips["track_id"].to_numpy() < 420  # as if ids went by genre
    clips = clips.set_column(clips.schema.get_field_index("genre"), "genre", pa.array(np.where(early, "a", "b")))
    plan = shards.plan(clips, replace(RECIPE, clips_per_shard=64))
    assert all(15 <= shard.clips["genre"].to_pylist().count("a") <= 49 for shard in plan)


def test_another_seed_deals_otherwise_and_splits_are_shuffled_apart():
    first = listing(shards.plan(table(MANY), RECIPE))
    assert first != listing(shards.plan(table(MANY), replace(RECIPE, seed=1)))
    same = replace(RECIPE, clips_per_shard=50)
    orders = {
        tuple(i - min(ids) for i in ids) for _, _, ids in listing(shards.plan(table(dict.fromkeys(SPLITS, 50)), same))
    }
    assert len(orders) == 3


# The fingerprint


def fingerprint(root, recipe=RECIPE, clips=None):
    return recipe.fingerprint(table({"training": 3, "test": 2}) if clips is None else clips, root)


def test_everything_that_decides_the_bytes_is_in_the_fingerprint(tmp_path):
    clips = table({"training": 3, "test": 2})
    before = fingerprint(tmp_path)
    assert before == fingerprint(tmp_path)
    assert len(before) == 64
    assert int(before, 16)
    labels = clips.set_column(clips.schema.get_field_index("label"), "label", pa.array([1, 1, 1, 1, 1], pa.int8()))
    splits = clips.set_column(clips.schema.get_field_index("split"), "split", pa.array(["test"] * 5))
    artists = clips.set_column(clips.schema.get_field_index("artist_id"), "artist_id", pa.array(["y"] * 5))
    others = [
        fingerprint(tmp_path, replace(RECIPE, min_seconds=1.0)),
        fingerprint(tmp_path, replace(RECIPE, clips_per_shard=5)),
        fingerprint(tmp_path, replace(RECIPE, seed=1)),
        fingerprint(tmp_path, replace(RECIPE, decoder="another")),
        fingerprint(tmp_path, replace(RECIPE, spec=replace(RECIPE.spec, top_db=70.0))),
        fingerprint(tmp_path, clips=clips.slice(1)),
        fingerprint(tmp_path, clips=labels),
        fingerprint(tmp_path, clips=splits),
        fingerprint(tmp_path, clips=artists),
    ]
    (tmp_path / "training0.wav").write_bytes(b"1")
    others.append(fingerprint(tmp_path))
    (tmp_path / "training0.wav").write_bytes(b"22")
    others.append(fingerprint(tmp_path))
    assert len({before, *others}) == 1 + len(others)


def test_the_fingerprint_does_not_depend_on_where_the_files_are(tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "training0.wav").write_bytes(b"same")
    assert fingerprint(tmp_path / "here") == fingerprint(tmp_path / "there")


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
    (shard,) = shards.plan(table({"training": count}), replace(RECIPE, clips_per_shard=64))
    return shard


def write(root, out, shard=None, fingerprint=FINGERPRINT):
    shard = shard or one_shard()
    target = out / shard.file
    target.parent.mkdir(parents=True, exist_ok=True)
    shards.write(shard.clips, target, recipe=RECIPE, fingerprint=fingerprint, audio_root=root)
    return target


def test_a_row_is_the_float16_z_scores_of_the_clip_in_little_endian_c_order(collection):
    clip = one_shard().clips.filter(pa.compute.equal(one_shard().clips["path"], "training0.wav")).to_pylist()[0]
    row = shards.extract(clip, collection / "training0.wav", RECIPE)
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
    row = shards.extract(clip, collection / f"training{index}.wav", RECIPE)
    assert row["seconds"] == pytest.approx(seconds)
    assert row["padded"] is padded


def test_an_unforeseen_error_of_one_clip_is_a_clip_error_that_names_it(collection, monkeypatch):
    monkeypatch.setattr(shards, "log_mel", lambda *_: 1 / 0)
    with pytest.raises(ClipError) as caught:
        shards.extract(one_shard().clips.to_pylist()[0], collection / "training0.wav", RECIPE)
    assert caught.value.reason == Reason.FAILED
    assert "ZeroDivisionError" in caught.value.detail


def test_a_shard_is_one_complete_record_of_what_became_of_its_clips(collection):
    shard = one_shard()
    target = write(collection, collection / "set")
    found = pq.read_table(target)
    assert found.schema.equals(SCHEMA)
    assert found["path"].to_pylist() == [
        path for path in shard.clips["path"].to_pylist() if path in {f"training{i}.wav" for i in range(3)}
    ]
    record = shards.read_record(collection / "set", shard)
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
    clips = one_shard().clips
    shard = ShardPlan("shards/x.parquet", "training", clips.filter(pa.compute.equal(clips["path"], "training5.wav")))
    write(collection, collection / "set", shard)
    record = shards.read_record(collection / "set", shard)
    assert (record.entry.rows, record.genres, len(record.quarantined)) == (0, {}, 1)


def test_a_failed_write_leaves_nothing(collection, monkeypatch):
    def fail(table, where, **_):
        Path(where).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards.pq, "write_table", fail)
    with pytest.raises(OSError, match="No space left"):
        write(collection, collection / "set")
    assert list((collection / "set" / "shards").iterdir()) == []


def test_a_failed_write_keeps_the_shard_that_was_there(collection, monkeypatch):
    target = write(collection, collection / "set")
    before = target.read_bytes()
    monkeypatch.setattr(shards, "extract", lambda *_: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(OSError, match="gone"):
        write(collection, collection / "set")
    assert target.read_bytes() == before
    assert list(target.parent.iterdir()) == [target]


# What is there already


def test_a_shard_is_written_when_it_is_there_with_this_fingerprint(collection):
    shard, out = one_shard(), collection / "set"
    assert not shards.is_written(out, shard, FINGERPRINT)
    write(collection, out)
    assert shards.is_written(out, shard, FINGERPRINT)


def test_a_shard_of_another_fingerprint_is_refused(collection):
    target = write(collection, collection / "set")
    with pytest.raises(InputError, match="aaaaaaaaaaaa") as caught:
        shards.is_written(collection / "set", one_shard(), "b" * 64)
    assert str(target) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all"])
def test_a_file_that_is_no_shard_is_written_anew(collection, content):
    target = write(collection, collection / "set")
    whole = target.read_bytes()
    target.write_bytes(content)
    assert not shards.is_written(collection / "set", one_shard(), FINGERPRINT)
    assert write(collection, collection / "set").read_bytes() == whole


def test_the_quarantine_table_holds_the_clips_of_all_shards_by_id(collection):
    plan = shards.plan(table({"training": 6, "test": 2}), replace(RECIPE, clips_per_shard=2))
    for shard in plan:
        write(collection, collection / "set", shard)
    records = [shards.read_record(collection / "set", shard) for shard in reversed(plan)]
    shards.write_quarantine(records, collection / "quarantine.parquet")
    rows = pq.read_table(collection / "quarantine.parquet").to_pylist()
    assert [(row["track_id"], row["split"], row["reason"]) for row in rows] == [
        (103, "training", "too_short"),
        (104, "training", "not_audio"),
        (105, "training", "missing"),
        (106, "test", "missing"),
        (107, "test", "missing"),
    ]
    assert all(row["detail"] for row in rows)


def test_without_quarantined_clips_the_table_is_there_and_empty(tmp_path):
    shards.write_quarantine([], tmp_path / "quarantine.parquet")
    rows = pq.read_table(tmp_path / "quarantine.parquet")
    assert len(rows) == 0
    assert rows.column_names[0] == "track_id"
