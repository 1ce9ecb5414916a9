"""Verification: an undamaged set has no problem, and every kind of damage is found in the file that has it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from helpers.wav_sets import BAD, GENRES, RECIPE, SPEC, finish, tracks

from mgc.collection.tracks import SCHEMA as TRACKS
from mgc.core.errors import InputError
from mgc.core.object_store import ObjectStore
from mgc.core.storage import Folder
from mgc.features import shards
from mgc.features.layout import (
    MANIFEST,
    PLAN,
    QUARANTINE,
    QUARANTINE_SCHEMA,
    SHARDS,
    parquet_bytes,
    read_manifest,
)
from mgc.features.plan import Plan
from mgc.features.verify import verify


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """The folder of 21 clips, three of them bad, and their table."""
    root = tmp_path_factory.mktemp("clips")
    return root, tracks(root, {"training": 4, "validation": 2, "test": 1}, bad=BAD)


@pytest.fixture(scope="session")
def whole(clips, tmp_path_factory):
    root, table = clips
    return finish(Plan.of(table, RECIPE), root, Folder.at(tmp_path_factory.mktemp("verified") / "set"))


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of the set, to be damaged."""
    return shutil.copytree(whole.folder.path, tmp_path / "set")


SHARD = f"{SHARDS}/training-00001-of-00003.parquet"
VALIDATION = f"{SHARDS}/validation-00000-of-00002.parquet"


def problems(path):
    """What is found, by file."""
    result = verify(path)
    said = json.loads(json.dumps(result.to_dict()))
    keys = {"ok", "problems", "shards", "clips", "bytes", "seconds", "features", "sources", "changed"}
    assert said.keys() == keys
    assert said["ok"] == (not said["problems"]) == (result.problem() is None)
    found = {}
    for problem in said["problems"]:
        assert problem.keys() == {"file", "problem"}
        assert len(problem["problem"].splitlines()) == 1
        found.setdefault(problem["file"], []).append(problem["problem"])
    return found


def only(path, file, *words):
    """Check that exactly this file has problems, and that they have these words."""
    found = problems(path)
    assert list(found) == [file]
    for word in words:
        assert word in " | ".join(found[file])
    return found[file]


def rewrite(path, table, metadata=None, file=SHARD):
    """Replace a shard and let the manifest agree with it, as a faulty writer would."""
    table = table.replace_schema_metadata(pq.read_schema(path / file).metadata | (metadata or {}))
    (path / file).write_bytes(parquet_bytes(table).to_pybytes())
    record = shards.read_record(Folder.at(path), file)
    manifest = read_manifest(Folder.at(path))
    entries = tuple(record.entry if entry.file == file else entry for entry in manifest.shards)
    (path / MANIFEST).write_text(replace(manifest, shards=entries).to_json())


def with_value(table, name, row, value):
    """The table with one value of a column replaced."""
    values = table[name].to_pylist()
    values[row] = value
    return table.set_column(table.schema.get_field_index(name), name, pa.array(values, table[name].type))


# A sound set


def test_an_undamaged_set_is_ok(whole):
    result = verify(whole.folder.path)
    assert (result.ok, result.problems) == (True, ())
    assert (result.shards, result.clips) == (6, 18)
    assert result.bytes == sum((whole.folder.path / entry.file).stat().st_size for entry in whole.manifest.shards)
    assert result.features == str(whole.folder)
    assert "all 6 shards (18 clips" in str(result)


def test_a_set_with_finished_additions_is_ok(clips, copy):
    root, table = clips
    more = table.slice(0, 5).set_column(0, TRACKS.field("track_id"), [range(900, 905)])
    finish(Plan.read(Folder.at(copy)).extended(more), root, Folder.at(copy))
    assert not problems(copy)


def test_a_set_where_every_clip_of_a_shard_is_in_quarantine_is_ok(tmp_path):
    bad = {f"test/{genre}-0.wav": b"" for genre in GENRES}
    table = tracks(tmp_path / "clips", {"training": 1, "test": 1}, bad=bad)
    finish(Plan.of(table, RECIPE), tmp_path / "clips", Folder.at(tmp_path / "set"))
    assert not problems(tmp_path / "set")


def test_a_set_in_an_object_store_is_verified_alike(copy, monkeypatch):
    """The store is a folder behind pyarrow's file systems: what counts is that all goes through ``Folder``."""
    store = pafs.SubTreeFileSystem(str(copy.parent), pafs.LocalFileSystem()), "set"
    monkeypatch.setattr(ObjectStore, "filesystem", property(lambda _: store))
    result = verify("s3://bucket/set")
    assert (result.ok, result.clips, result.features) == (True, 18, "s3://bucket/set")
    (copy / SHARD).unlink()
    (copy / VALIDATION).write_bytes(b"")
    (copy / SHARDS / "more.parquet").write_bytes(b"")
    (copy / QUARANTINE).unlink()
    assert list(problems("s3://bucket/set")) == [SHARD, VALIDATION, QUARANTINE, f"{SHARDS}/more.parquet"]


def test_nothing_is_written(copy):
    before = {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()}
    verify(copy)
    assert {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()} == before


def test_progress_is_shown(copy, capsys):
    verify(copy)
    out, err = capsys.readouterr()
    assert out == ""
    assert "verify: 6/6 shards" in err


# Sources


@pytest.fixture
def music(clips, tmp_path):
    """A copy of the collection, to be changed."""
    return shutil.copytree(clips[0], tmp_path / "music")


def test_sources_that_are_as_they_were_are_no_problem(whole, music):
    result = verify(whole, sources=music)
    assert (result.ok, result.sources, result.changed) == (True, 18, ())
    assert str(result).splitlines()[-1] == "all 18 source files are as they were"
    assert verify(whole).sources is None


def test_a_source_of_the_same_size_that_is_gone_or_unreadable_is_named(whole, music, capsys):
    (music / "training/Folk-0.wav").write_bytes((music / "training/Folk-1.wav").read_bytes())  # of the same size
    (music / "test/Rock-0.wav").unlink()
    (music / "test/Jazz-0.wav").unlink()
    (music / "test/Jazz-0.wav").mkdir()
    result = verify(whole, sources=music)
    assert (result.ok, result.problems, result.sources) == (False, (), 18)
    said = {each.file: each.problem for each in result.changed}
    assert said.keys() == {"training/Folk-0.wav", "test/Rock-0.wav", "test/Jazz-0.wav"}
    assert said["training/Folk-0.wav"].startswith("has changed (sha1 ")
    assert said["test/Rock-0.wav"] == "missing"
    assert said["test/Jazz-0.wav"].startswith("cannot be read (")
    assert str(result).splitlines()[-1].startswith("3 of 18 source files are not as they were; bring them back")
    assert (result.problem().exit_code, str(result.problem())) == (1, f"{whole.folder}: 3 problems")
    assert "sources: 18/18 files" in capsys.readouterr().err


def test_a_csv_file_stands_for_its_folder_and_no_collection_is_refused(whole, music):
    (music / "clips.csv").touch()
    assert verify(whole, sources=music / "clips.csv").ok
    with pytest.raises(InputError, match=r"`sources=.*nowhere`: no such file or folder"):
        verify(whole, sources=music / "nowhere")


# No set


def test_an_absent_set_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such directory"):
        verify(tmp_path / "no")


def test_an_unfinished_set_is_refused(copy):
    (copy / MANIFEST).unlink()
    with pytest.raises(InputError, match="unfinished"):
        verify(copy)


# A shard's bytes


def test_a_missing_shard_is_found(copy):
    (copy / SHARD).unlink()
    assert only(copy, SHARD) == ["missing"]


def test_a_folder_in_place_of_a_shard_is_found(copy):
    (copy / SHARD).unlink()
    (copy / SHARD).mkdir()
    only(copy, SHARD, "cannot be read")


def test_a_file_in_place_of_all_shards_is_found(copy, whole):
    shutil.rmtree(copy / SHARDS)
    (copy / SHARDS).write_text("")
    assert list(problems(copy)) == [entry.file for entry in whole.manifest.shards]


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_a_truncated_shard_is_found(copy, keep):
    data = (copy / SHARD).read_bytes()
    (copy / SHARD).write_bytes(data[: int(keep * len(data)) if keep < 1 else keep])
    only(copy, SHARD, f"the manifest says {len(data)}", "cannot be read")


def test_one_flipped_bit_anywhere_is_found(copy):
    data = (copy / SHARD).read_bytes()
    for place in np.random.default_rng(0).integers(0, len(data), 20).tolist():
        damaged = bytearray(data)
        damaged[place] ^= 4
        (copy / SHARD).write_bytes(damaged)
        only(copy, SHARD, "sha256")


def test_a_shard_of_zeros_of_the_right_size_is_found(copy):
    (copy / SHARD).write_bytes(bytes((copy / SHARD).stat().st_size))
    only(copy, SHARD, "sha256", "cannot be read")


def test_damage_in_several_shards_is_found_in_each(copy, whole):
    (copy / SHARD).unlink()
    (copy / VALIDATION).write_bytes(b"PAR1")
    found = problems(copy)
    assert list(found) == [SHARD, VALIDATION]
    lost = sum(entry.rows for entry in whole.manifest.shards if entry.file in found)
    assert verify(copy).clips == 18 - lost


# A shard's content, where the manifest agrees with its bytes


def test_another_number_of_rows_than_the_manifest_says_is_found(copy):
    table = pq.read_table(copy / SHARD)
    (copy / SHARD).write_bytes(parquet_bytes(table.slice(1)).to_pybytes())
    only(copy, SHARD, f"{len(table) - 1} rows, the manifest says {len(table)}", "neither a row nor in quarantine")


def test_a_shard_of_another_plan_is_found(copy):
    rewrite(copy, pq.read_table(copy / SHARD), {shards.FINGERPRINT_KEY: b"e" * 64})
    only(copy, SHARD, "made by another plan", "eeee")


def test_a_shard_without_metadata_is_found(copy):
    pq.write_table(pq.read_table(copy / SHARD).replace_schema_metadata(None), copy / SHARD)
    only(copy, SHARD, "made by another plan", "cannot be read")


@pytest.mark.parametrize(
    "quarantine", [b"{", b"7", b"{}", b'["clip"]', b'[{"reason": "empty"}]', b'[{"track_id": "x"}]', b"\xff"]
)
def test_a_quarantine_that_is_none_is_found(copy, quarantine):
    table = pq.read_table(copy / SHARD)
    table = table.replace_schema_metadata(table.schema.metadata | {shards.QUARANTINE_KEY: quarantine})
    (copy / SHARD).write_bytes(parquet_bytes(table).to_pybytes())
    only(copy, SHARD, "cannot be read")


def test_a_missing_column_is_found(copy):
    rewrite(copy, pq.read_table(copy / SHARD).drop_columns(["mean_db"]))
    only(copy, SHARD, "columns", "mean_db: float")


def test_a_column_of_another_type_is_found(copy):
    table = pq.read_table(copy / SHARD)
    rewrite(copy, table.set_column(3, "label", table["label"].cast(pa.int64())))
    only(copy, SHARD, "label: int64", "label: int8")


def test_columns_in_another_order_are_found(copy):
    table = pq.read_table(copy / SHARD)
    rewrite(copy, table.select(table.column_names[::-1]))
    only(copy, SHARD, "their order")


@pytest.mark.parametrize("value", [b"", b"\0\0", None])
def test_a_matrix_of_the_wrong_size_is_found(copy, value):
    rewrite(copy, with_value(pq.read_table(copy / SHARD), "logmel", 1, value))
    clip = pq.read_table(copy / SHARD)["track_id"][1].as_py()
    only(copy, SHARD, f"1 clips have a matrix that is not 128 × {SPEC.shape[1]} ({clip})")


def test_matrices_of_wrong_sizes_that_add_up_are_found(copy):
    table = pq.read_table(copy / SHARD)
    first, second, *_ = table["logmel"].to_pylist()
    rewrite(copy, with_value(with_value(table, "logmel", 0, first[:-2]), "logmel", 1, second + b"\0\0"))
    only(copy, SHARD, "2 clips have a matrix that is not")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_matrix_that_is_not_finite_is_found(copy, value):
    table = pq.read_table(copy / SHARD)
    matrix = np.frombuffer(table["logmel"][2].as_py(), "<f2").copy()
    matrix[77] = value
    rewrite(copy, with_value(table, "logmel", 2, matrix.tobytes()))
    only(copy, SHARD, f"1 clips have a matrix with NaN or infinity ({table['track_id'][2]})")


@pytest.mark.parametrize("name", ["mean_db", "std_db", "seconds", "promised_seconds"])
@pytest.mark.parametrize("value", [np.nan, np.inf, None])
def test_a_figure_that_is_not_finite_is_found(copy, name, value):
    rewrite(copy, with_value(pq.read_table(copy / SHARD), name, 0, value))
    only(copy, SHARD, f"no finite {name}")


# A shard against the plan


def test_a_clip_that_is_neither_a_row_nor_in_quarantine_is_found(copy):
    table = pq.read_table(copy / SHARD)
    rewrite(copy, table.slice(1))
    only(copy, SHARD, f"1 clips are neither a row nor in quarantine ({table['track_id'][0]})")


def test_a_clip_that_is_there_twice_is_found(copy):
    table = pq.read_table(copy / SHARD)
    rewrite(copy, pa.concat_tables([table, table.slice(0, 1)]))
    only(copy, SHARD, f"1 clips are there twice ({table['track_id'][0]})")


def test_a_clip_that_is_both_a_row_and_in_quarantine_is_found(copy):
    table = pq.read_table(copy / SHARD)
    row = dict.fromkeys(QUARANTINE_SCHEMA.names, "") | {"track_id": table["track_id"][0].as_py(), "seconds": 0.0}
    held = json.loads(table.schema.metadata[shards.QUARANTINE_KEY])
    rewrite(copy, table, {shards.QUARANTINE_KEY: json.dumps([*held, row]).encode()})
    only(copy, SHARD, f"1 clips are both a row and in quarantine ({row['track_id']})")


def test_a_clip_of_another_shard_is_found(copy):
    other = pq.read_table(copy / SHARD.replace("1-of", "0-of")).slice(0, 1)
    rewrite(copy, pa.concat_tables([pq.read_table(copy / SHARD), other]))
    only(copy, SHARD, f"1 clips are not of this shard ({other['track_id'][0]})")


def test_rows_in_another_order_than_the_plan_are_found(copy):
    table = pq.read_table(copy / SHARD)
    rewrite(copy, table.take(list(range(len(table)))[::-1]))
    only(copy, SHARD, "its rows are in another order than the plan's")


@pytest.mark.parametrize(("name", "value"), [("label", 1), ("genre", "Polka"), ("split", "test"), ("artist_id", None)])
def test_a_row_with_other_values_than_the_plan_is_found(copy, name, value):
    table = pq.read_table(copy / SHARD)
    row = table["label"].to_pylist().index(0)
    rewrite(copy, with_value(table, name, row, value))
    only(copy, SHARD, f"{name} of its rows are not the plan's")


# The other files


def test_a_quarantine_that_differs_from_the_shards_is_found(copy):
    table = pq.read_table(copy / QUARANTINE)
    assert len(table) == len(BAD)
    for changed in (table.slice(1), with_value(table, "reason", 0, "failed"), table.drop_columns(["detail"])):
        pq.write_table(changed, copy / QUARANTINE)
        only(copy, QUARANTINE, "of the shards")


def test_a_quarantine_that_differs_is_found_beside_a_missing_shard(copy):
    pq.write_table(with_value(pq.read_table(copy / QUARANTINE), "reason", 0, "failed"), copy / QUARANTINE)
    lost = f"{SHARDS}/test-00000-of-00001.parquet"
    (copy / lost).unlink()
    assert list(problems(copy)) == [lost, QUARANTINE]


def test_a_lost_or_broken_quarantine_is_found(copy):
    (copy / QUARANTINE).write_bytes(b"PAR1")
    only(copy, QUARANTINE, "cannot be read")
    (copy / QUARANTINE).unlink()
    assert only(copy, QUARANTINE) == ["missing"]


def test_a_lost_or_broken_plan_is_found_and_the_shards_are_read_all_the_same(copy):
    (copy / SHARD).write_bytes(b"")
    (copy / PLAN).write_bytes(b"PAR1")
    (copy / QUARANTINE).unlink()
    assert list(problems(copy)) == [PLAN, SHARD, QUARANTINE]
    (copy / PLAN).unlink()
    assert problems(copy)[PLAN] == ["missing"]


def test_unfinished_additions_are_said(clips, copy):
    more = clips[1].slice(0, 5).set_column(0, TRACKS.field("track_id"), [range(900, 905)])
    plan = Plan.read(Folder.at(copy)).extended(more)
    plan.write(Folder.at(copy))
    only(copy, MANIFEST, "additions are unfinished, 2 planned shards are not in it")
    new = [shard for shard in plan.shards if not (copy / shard.file).exists()]
    shards.write(new[0], Folder.at(clips[0]), Folder.at(copy), recipe=RECIPE, clip_timeout=60)
    only(copy, MANIFEST, "additions are unfinished, 2 planned shards are not in it")


def test_a_plan_of_another_recipe_is_found(copy):
    plan = Plan.read(Folder.at(copy))
    replace(plan, recipe=replace(RECIPE, min_seconds=0.3)).write(Folder.at(copy))
    found = problems(copy)
    assert found.pop(MANIFEST) == ["its fingerprint is not the plan's"]
    assert len(found) == 6
    assert all("made by another plan" in " ".join(lines) for lines in found.values())


def edit(path, **fields):
    manifest = read_manifest(Folder.at(path))
    (path / MANIFEST).write_text(replace(manifest, **fields).to_json())


def test_a_manifest_that_is_not_of_the_plan_is_found(copy, whole):
    manifest = whole.manifest
    leak = {"by": "id", "artist_id": "a0", "artist_name": "Artist 0", "splits": {"training": 1, "test": 1}}
    for field, value in {
        "genres": GENRES[::-1],
        "artist_leaks": (leak,),
        "recipe": manifest.recipe | {"min_seconds": 1.0},
        "clips": manifest.clips | {"test": {"Folk": 2}},
        "quarantined": {"empty": 3},
    }.items():
        edit(copy, **{field: value})
        only(copy, MANIFEST, field)
        edit(copy, **{field: getattr(manifest, field)})
    edit(copy, shards=manifest.shards[::-1])
    only(copy, MANIFEST, "another order")


def test_a_manifest_with_a_shard_under_another_split_is_found(copy, whole):
    for split in ("validation", "no split"):
        first, *others = whole.manifest.shards
        edit(copy, shards=(replace(first, split=split), *others))
        only(copy, MANIFEST, "another split", "clips")


def test_a_manifest_that_lacks_a_planned_shard_is_found(copy, whole):
    edit(copy, shards=tuple(entry for entry in whole.manifest.shards if entry.file != SHARD))
    assert f"does not name {SHARD}, which is in the plan" in problems(copy)[MANIFEST]


def test_a_shard_that_the_plan_does_not_have_is_found(copy, whole):
    name = f"{SHARDS}/training-00009-of-00009.parquet"
    shutil.copy(copy / SHARD, copy / name)
    (entry,) = (entry for entry in whole.manifest.shards if entry.file == SHARD)
    edit(copy, shards=(*whole.manifest.shards, replace(entry, file=name)))
    assert "the plan has no such shard" in problems(copy)[name]


# Strangers


@pytest.mark.parametrize("name", ["training-00003-of-00004.parquet", "notes.txt", "copy of a shard.parquet"])
def test_a_file_that_no_manifest_names_is_found_among_the_shards(copy, name):
    shutil.copy(copy / SHARD, copy / SHARDS / name)
    only(copy, f"{SHARDS}/{name}", "the manifest does not name it")


@pytest.mark.parametrize("folder", ["", f"{SHARDS}/"])
def test_a_temporary_file_that_was_left_is_found(copy, folder):
    name = f"{folder}.training-00000-of-00003.parquet.{'0' * 32}.tmp"
    (copy / name).write_bytes(b"half")
    only(copy, name, "temporary")


# For a terminal


def test_the_summary_names_every_problem_and_what_to_do(copy):
    (copy / SHARD).unlink()
    (copy / VALIDATION).write_bytes(b"PAR1")
    text = str(verify(copy))
    assert f"{SHARD}: missing" in text
    assert text.splitlines()[-1].startswith(f"to mend it, delete {VALIDATION} there, then run the same")
    assert MANIFEST not in text.splitlines()[-1]


def test_the_summary_of_a_lost_plan_says_to_overwrite_and_to_keep_the_manifest(copy):
    """Preprocessing refuses a folder that has neither."""
    (copy / PLAN).unlink()
    (copy / QUARANTINE).unlink()
    last = str(verify(copy)).splitlines()[-1]
    assert last.startswith("to mend it, run the same «mgc preprocess» with --overwrite")
    (copy / SHARD).write_bytes(b"")
    last = str(verify(copy)).splitlines()[-1]
    assert last.startswith(f"to mend it, delete {SHARD} there, then run")


def test_what_the_summary_says_mends_the_set(clips, copy, whole):
    """Deleting what is named and preprocessing again gives the set's first bytes."""
    rewrite(copy, pq.read_table(copy / SHARD).slice(1))
    pq.write_table(pq.read_table(copy / QUARANTINE).slice(0, 0), copy / QUARANTINE)
    last = str(verify(copy)).splitlines()[-1]
    for name in (SHARD, QUARANTINE, MANIFEST):
        assert name in last
        (copy / name).unlink()
    finish(Plan.read(Folder.at(copy)), clips[0], Folder.at(copy))
    assert not problems(copy)
    for file in (SHARD, QUARANTINE, MANIFEST):
        assert (copy / file).read_bytes() == (whole.folder.path / file).read_bytes()
