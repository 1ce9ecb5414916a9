"""Damaged clips, hostile tables and feature sets: each has an end that is foreseen (``helpers.fuzz`` tries more)."""

from __future__ import annotations

import json
import resource
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.fuzz import clips_of, finished_set, fuzz, tables

from mgc.core.errors import InputError
from mgc.core.storage import Folder
from mgc.features import shards
from mgc.features.feature_set import FeatureSet
from mgc.features.layout import MANIFEST, PLAN
from mgc.features.plan import Plan
from mgc.features.verify import verify


@pytest.fixture(scope="module")
def clips(request):
    """Real clips in all formats that the decoder knows; synthetic ones where there are none."""
    try:
        mini, fma_clip = (request.getfixturevalue(name) for name in ("mini", "fma_clip"))
    except pytest.skip.Exception:
        return clips_of([])
    return clips_of([*sorted(mini.glob("fma_small/*/*.mp3"))[:4], fma_clip])


def test_500_damaged_clips_become_features_or_quarantine_rows(clips, capfd):
    before = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # of other tests in this process
    tally = fuzz("clips", clips, runs=500, seed=24, limit=30)
    assert not tally.findings
    assert sum(tally.outcomes.values()) == 500
    assert tally.outcomes["features"] > 50
    assert len(tally.outcomes) > 5
    assert tally.memory < max(1 << 30, before + 1)
    assert "Error" not in capfd.readouterr().out  # libsndfile prints of a VOX file


def test_the_same_seed_gives_the_same_end(clips):
    first, second = (fuzz("clips", clips, runs=20, seed=3, limit=30).outcomes for _ in range(2))
    assert first == second != Counter()


def test_hostile_tables_are_read_or_refused_in_one_line():
    tally = fuzz("tables", tables(), runs=200, seed=24, limit=30)
    assert not tally.findings
    assert tally.outcomes.keys() == {"read", "refused"}


def test_hostile_feature_sets_are_read_or_refused_in_one_line():
    tally = fuzz("sets", finished_set(), runs=70, seed=24, limit=30)
    assert not tally.findings
    assert tally.outcomes.keys() == {"read", "refused"}


# What it found


@pytest.fixture
def whole(tmp_path):
    """A finished set of four shards."""
    for name, data in finished_set().items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return tmp_path


def rewrite(file, change):
    """Write a Parquet file again with a column replaced."""
    table = pq.read_table(file)
    name, values = change(table)
    table = table.set_column(table.column_names.index(name), name, values)
    pq.write_table(table, file)


def not_text(table):
    """Genres that are not UTF-8, which pyarrow reads without a word."""
    raw = pa.array([b"\xff\xfe"] * len(table), pa.binary())
    return "genre", pa.Array.from_buffers(pa.string(), len(table), raw.buffers())


def shard_of(path):
    return next(iter(sorted((path / "shards").iterdir())))


def test_a_plan_with_text_that_is_not_utf_8_is_named(whole):
    rewrite(whole / PLAN, not_text)
    with pytest.raises(InputError, match=r"plan\.parquet: not a plan \(.*UTF8"):
        Plan.read(Folder.at(whole))
    assert {problem.file for problem in verify(whole).problems} == {PLAN}


def test_a_shard_with_text_that_is_not_utf_8_is_named(whole):
    rewrite(shard_of(whole), not_text)
    with pytest.raises(InputError, match=rf"{shard_of(whole).name}: cannot be read \(.*UTF8"):
        FeatureSet.open(whole).to_pandas()
    with pytest.raises(InputError, match=r"damaged .*delete it"):
        shards.read_record(Folder.at(whole), f"shards/{shard_of(whole).name}")


def test_a_column_name_that_is_not_utf_8_is_no_written_shard(whole):
    file = shard_of(whole)
    file.write_bytes(file.read_bytes().replace(b"promised_seconds", b"promised_second\xff"))
    plan = Plan.read(Folder.at(whole))
    written = {shard.file: shards.is_written(Folder.at(whole), shard) for shard in plan.shards}
    assert [name for name, there in written.items() if not there] == [f"shards/{file.name}"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda table: ("seconds", pa.array(["x"] * len(table))), "seconds of another type"),
        (lambda table: ("label", pa.nulls(len(table), pa.int8())), "values are missing"),
    ],
    ids=["type", "null"],
)
def test_a_shard_of_other_columns_is_named(whole, change, why):
    rewrite(shard_of(whole), change)
    with pytest.raises(InputError, match=why):
        FeatureSet.open(whole).to_pandas()


# Paths stay inside the set


@pytest.mark.parametrize("file", ["../outside.parquet", "/tmp/x.parquet", "shards/../../x.parquet", "shards/..", None])
def test_a_plan_or_a_manifest_that_names_a_file_elsewhere_is_refused(whole, file):
    rewrite(whole / PLAN, lambda table: ("shard", pa.array([file] * len(table))))
    with pytest.raises(InputError, match=r"plan\.parquet: not a plan .*is no file of shards/"):
        Plan.read(Folder.at(whole))
    tree = json.loads((whole / MANIFEST).read_text())
    tree["shards"][0]["file"] = file
    (whole / MANIFEST).write_text(json.dumps(tree))
    with pytest.raises(InputError, match=r"manifest\.json: not a manifest .*is no file of shards/"):
        FeatureSet.open(whole)
