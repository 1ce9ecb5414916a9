"""The plan: which clip goes to which shard depends on the clips alone, and what a set was made of is told from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from mgc.audio.logmel import LogMelSpec
from mgc.collection.splits import SPLITS
from mgc.collection.tracks import SCHEMA as TRACKS
from mgc.core.errors import InputError
from mgc.core.storage import Folder
from mgc.features import plan as plan_module
from mgc.features.layout import PLAN, ShardName
from mgc.features.plan import Plan, with_sizes
from mgc.features.recipe import Recipe

RECIPE = Recipe(spec=LogMelSpec(seconds=2.0), min_seconds=0.5, clips_per_shard=4)


def table(counts, seed=None, first=100):
    """Clips, so many a split; rows shuffled by ``seed``."""
    rows = []
    for split, count in counts.items():
        rows += [
            {"path": f"{split}{i}.wav", "genre": "ab"[i % 2], "label": i % 2, "split": split, "artist_id": f"x{i}"}
            for i in range(count)
        ]
    rows = [row | {"track_id": first + i, "license": ("CC0-1.0", "unknown")[i % 2]} for i, row in enumerate(rows)]
    clips = pa.Table.from_pylist(rows, schema=TRACKS)
    clips = clips.append_column("bytes", pa.array(range(1000, 1000 + len(clips)), pa.int64()))
    return clips if seed is None else clips.take(np.random.default_rng(seed).permutation(len(clips)))


def changed(clips, name, values):
    """The clips with other values in the first rows of a column."""
    column = clips[name].to_pylist()
    column[: len(values)] = values
    index = clips.schema.get_field_index(name)
    return clips.set_column(index, clips.schema.field(name), pa.array(column, clips.schema.field(name).type))


MANY = {"training": 801, "validation": 100, "test": 3}


def listing(plan):
    return [(shard.file, shard.split, shard.clips["track_id"].to_pylist()) for shard in plan.shards]


# The plan


@pytest.mark.parametrize("seed", [1, 2])
def test_the_plan_does_not_depend_on_the_order_of_rows(seed):
    assert listing(Plan.of(table(MANY), RECIPE)) == listing(Plan.of(table(MANY, seed), RECIPE))


def test_every_clip_is_in_exactly_one_shard_of_its_split():
    clips = table(MANY)
    found = [(i, shard.split) for shard in Plan.of(clips, RECIPE).shards for i in shard.clips["track_id"].to_pylist()]
    assert sorted(found) == sorted(zip(clips["track_id"].to_pylist(), clips["split"].to_pylist(), strict=True))


@pytest.mark.parametrize("clips_per_shard", [1, 4, 64, 10_000])
def test_clips_are_dealt_evenly_to_as_few_shards_as_hold_them(clips_per_shard):
    plan = Plan.of(table(MANY), replace(RECIPE, clips_per_shard=clips_per_shard))
    for split, count in MANY.items():
        sizes = [len(shard.clips) for shard in plan.shards if shard.split == split]
        assert len(sizes) == -(-count // clips_per_shard)
        assert sum(sizes) == count
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= clips_per_shard


def test_shards_are_named_by_split_index_and_count():
    plan = Plan.of(table({"training": 9, "validation": 4}), RECIPE)
    assert [shard.file for shard in plan.shards] == [
        "shards/training-00000-of-00003.parquet",
        "shards/training-00001-of-00003.parquet",
        "shards/training-00002-of-00003.parquet",
        "shards/validation-00000-of-00001.parquet",
    ]


def test_a_shard_is_a_fair_sample_of_its_split_whatever_the_order_of_ids():
    clips = table({"training": 640})
    early = clips["track_id"].to_numpy() < 420  # as if ids went by genre
    clips = clips.set_column(clips.schema.get_field_index("genre"), "genre", pa.array(np.where(early, "a", "b")))
    plan = Plan.of(clips, replace(RECIPE, clips_per_shard=64))
    assert all(15 <= shard.clips["genre"].to_pylist().count("a") <= 49 for shard in plan.shards)


def test_another_seed_deals_otherwise_and_splits_are_shuffled_apart():
    first = listing(Plan.of(table(MANY), RECIPE))
    assert first != listing(Plan.of(table(MANY), replace(RECIPE, seed=1)))
    same = replace(RECIPE, clips_per_shard=50)
    orders = {
        tuple(i - min(ids) for i in ids) for _, _, ids in listing(Plan.of(table(dict.fromkeys(SPLITS, 50)), same))
    }
    assert len(orders) == 3


def test_names_that_a_plan_gives_are_known_as_such():
    files = [shard.file for shard in Plan.of(table({"training": 9, "validation": 4}), RECIPE).shards]
    assert [ShardName.parse(file) for file in files] == [
        *(ShardName("training", index, 3) for index in range(3)),
        ShardName("validation", 0, 1),
    ]
    assert [str(ShardName.parse(file)) for file in files] == files
    others = ["shards/notes.parquet", "shards/training-1-of-2.parquet", "shards/song-00000-of-00001.parquet"]
    others += [files[0].removeprefix("shards/"), f"shards/x{files[0]}", f"{files[0]}.tmp"]
    assert [ShardName.parse(file) for file in others] == [None] * len(others)


# More clips


def test_new_clips_get_shards_of_their_own_behind_the_old_ones():
    few, more = table({"training": 9, "test": 1}), table({"training": 14, "test": 1, "validation": 2}, first=500)
    plan = Plan.of(few, RECIPE)
    longer = plan.extended(more.filter(pc.greater(more["track_id"], 508)))
    old, new = listing(plan), listing(longer)
    assert [row for row in new if row in old] == old
    assert [file for file, _, _ in new if file not in {name for name, _, _ in old}] == [
        "shards/training-00003-of-00005.parquet",
        "shards/training-00004-of-00005.parquet",
        "shards/validation-00000-of-00001.parquet",
        "shards/test-00001-of-00002.parquet",
    ]
    assert {s.file: s.fingerprint for s in plan.shards}.items() <= {
        s.file: s.fingerprint for s in longer.shards
    }.items()
    assert plan.fingerprint != longer.fingerprint
    assert len(longer.without(few)) == len(longer.without(more.slice(9))) == 0
    ids = [i for _, _, members in new for i in members]
    assert len(ids) == len(set(ids)) == 10 + 8


def test_a_plan_tells_the_clips_that_are_new():
    clips = table(MANY)
    assert Plan.of(clips.slice(5), RECIPE).without(clips)["track_id"].to_pylist() == [100, 101, 102, 103, 104]


# What keeps a set from being another


def differences(clips, recipe=RECIPE, before=None):
    return Plan.of(table({"training": 3, "test": 2}) if before is None else before, RECIPE).differences(clips, recipe)


def test_nothing_differs_in_the_same_clips_in_another_order_nor_in_more_clips():
    clips = table({"training": 3, "test": 2})
    assert differences(clips.take([3, 1, 4, 0, 2])) == []
    assert differences(table(MANY), before=table(MANY).slice(7)) == []


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("bytes", [7, 8], "2 file sizes changed (training0.wav: 1000, now 7)"),
        ("split", ["test"], "1 splits changed (training0.wav: training, now test)"),
        ("genre", ["c"], "1 genres changed (training0.wav: a, now c)"),
        ("label", [1], "1 labels changed (training0.wav: 0, now 1)"),
        ("artist_id", [None], "1 artists changed (training0.wav: x0, now None)"),
        ("artist_name", ["AWOL"], "1 artists changed (training0.wav: None, now AWOL)"),
    ],
)
def test_clips_that_changed_are_counted_and_the_first_is_named(name, values, said):
    assert differences(changed(table({"training": 3, "test": 2}), name, values)) == [said]


def test_clips_that_are_gone_and_recipes_that_differ_are_named():
    clips = table({"training": 3, "test": 2})
    assert differences(clips.slice(2)) == ["2 of its 5 clips are not among the 3 clips now"]
    assert differences(clips, replace(RECIPE, min_seconds=1.0, decoder="another")) == [
        "min_seconds was 0.5, now 1.0",
        f"decoder was {RECIPE.decoder}, now another",
    ]


# The fingerprint


def test_everything_that_decides_the_bytes_is_in_the_fingerprint():
    clips = table({"training": 3, "test": 2})
    before = Plan.of(clips, RECIPE).fingerprint
    assert before == Plan.of(clips, RECIPE).fingerprint
    assert len(before) == 64
    assert int(before, 16)
    others = [
        Plan.of(clips, recipe).fingerprint
        for recipe in (
            replace(RECIPE, min_seconds=1.0),
            replace(RECIPE, keep_damaged=True),
            replace(RECIPE, clips_per_shard=5),
            replace(RECIPE, seed=1),
            replace(RECIPE, decoder="another"),
            replace(RECIPE, spec=replace(RECIPE.spec, top_db=70.0)),
        )
    ]
    others += [
        Plan.of(each, RECIPE).fingerprint
        for each in (
            clips.slice(1),
            changed(clips, "bytes", [-1]),
            changed(clips, "path", ["y.wav"]),
            changed(clips, "genre", ["c"]),
            changed(clips, "label", [1]),
            changed(clips, "split", ["validation"]),
            changed(clips, "artist_id", ["y"]),
            changed(clips, "artist_name", ["y"]),
        )
    ]
    assert len({before, *others}) == 1 + len(others)


def test_a_changed_clip_changes_the_fingerprint_of_its_shard_alone():
    clips = table(MANY)
    before = {shard.file: shard.fingerprint for shard in Plan.of(clips, RECIPE).shards}
    after = {shard.file: shard.fingerprint for shard in Plan.of(changed(clips, "bytes", [7]), RECIPE).shards}
    assert before.keys() == after.keys()
    assert sum(before[file] != after[file] for file in before) == 1


def test_sizes_are_those_of_the_files_wherever_they_are(tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "training0.wav").write_bytes(b"same")
    clips = table({"training": 2}).drop_columns(["bytes"])
    here, there = (with_sizes(clips, Folder.at(tmp_path / name)) for name in ("here", "there"))
    assert here["bytes"].to_pylist() == [4, -1]
    assert Plan.of(here, RECIPE).fingerprint == Plan.of(there, RECIPE).fingerprint


# On disk


def test_a_plan_reads_back_as_it_was_written_and_the_same_plan_is_the_same_bytes(tmp_path):
    folder, plan = Folder.at(tmp_path), Plan.of(table(MANY), RECIPE)
    assert Plan.read(folder) is None
    plan.write(folder)
    written = (tmp_path / PLAN).read_bytes()
    again = Plan.read(folder)
    assert again.recipe == plan.recipe
    assert again.clips.equals(plan.clips)
    assert again.fingerprint == plan.fingerprint
    again.write(folder)
    assert (tmp_path / PLAN).read_bytes() == written


def test_a_slim_plan_has_the_same_shards_and_a_large_one_is_written_in_parts(tmp_path, monkeypatch):
    folder, plan = Folder.at(tmp_path), Plan.of(table(MANY), RECIPE)
    slim = plan.slim()
    assert slim.fingerprint == plan.fingerprint
    assert [(s.file, s.fingerprint) for s in slim.shards] == [(s.file, s.fingerprint) for s in plan.shards]
    assert all(
        few.clips.equals(all_.clips.select(few.clips.column_names))
        for few, all_ in zip(slim.shards, plan.shards, strict=True)
    )
    monkeypatch.setattr(plan_module, "ROW_GROUP", 100)
    plan.write(folder)
    assert pq.ParquetFile(tmp_path / PLAN).num_row_groups == 10
    again = Plan.read(folder)
    assert again.clips.equals(plan.clips)
    assert again.fingerprint == plan.fingerprint


def test_a_plan_stands_in_a_folder_that_has_one_of_its_recipe(tmp_path):
    folder, plan = Folder.at(tmp_path), Plan.of(table(MANY), RECIPE)
    assert not plan.stands_in(folder)
    plan.write(folder)
    assert plan.stands_in(folder)
    assert not Plan.of(table(MANY), replace(RECIPE, seed=1)).stands_in(folder)
    (tmp_path / PLAN).write_bytes(b"PAR1")
    assert not plan.stands_in(folder)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all"])
def test_a_file_that_is_no_plan_is_refused(tmp_path, content):
    (tmp_path / PLAN).write_bytes(content)
    with pytest.raises(InputError, match="not a plan") as caught:
        Plan.read(Folder.at(tmp_path))
    assert len(str(caught.value).splitlines()) == 1
    pq.write_table(pa.table({"x": [1]}), tmp_path / PLAN)
    with pytest.raises(InputError, match="not a plan"):
        Plan.read(Folder.at(tmp_path))
