"""Files are dealt to shards by size and number, and stay where they are while they are as they were."""

from dataclasses import replace

import pytest

from mgc.core.errors import InputError
from mgc.core.storage import Folder
from mgc.library.label_plan import BYTES_PER_SHARD, FILES_PER_SHARD, LabelPlan, differences
from mgc.library.labels import Settings

SETTINGS = Settings("m" * 64, ("a", "b"), 0.9, 0.5, "decoder 1")


def files(count, size=100):
    return {f"{index:04d}.mp3": size for index in range(count)}


def test_shards_are_full_of_files_or_of_bytes_and_follow_the_paths():
    plan = LabelPlan.of(files(2 * FILES_PER_SHARD + 1), SETTINGS, "/music")
    assert [len(its) for its in plan.shards.values()] == [FILES_PER_SHARD, FILES_PER_SHARD, 1]
    assert [path for its in plan.shards.values() for path in its] == sorted(files(2 * FILES_PER_SHARD + 1))
    large = LabelPlan.of(files(3, BYTES_PER_SHARD * 2 // 3), SETTINGS, "/music")
    assert [len(its) for its in large.shards.values()] == [1, 1, 1]


def test_new_changed_and_gone_files_touch_no_other_shard():
    before = LabelPlan.of(files(2 * FILES_PER_SHARD), SETTINGS, "/music")
    first, second = before.shards
    now = files(2 * FILES_PER_SHARD) | {"new.mp3": 5, "0040.mp3": 7}
    del now["0041.mp3"]
    plan = before.updated(now, {"0042.mp3"}, "/moved")
    assert plan.fingerprint(first) == before.fingerprint(first)
    assert plan.fingerprint(second) != before.fingerprint(second)
    assert before.shards[second].keys() - plan.shards[second].keys() == {"0040.mp3", "0041.mp3", "0042.mp3"}
    (third,) = plan.shards.keys() - before.shards.keys()
    assert plan.shards[third] == {"0040.mp3": 7, "0042.mp3": 100, "new.mp3": 5}
    assert plan.files == now
    assert plan.root == "/moved"


def test_a_shard_whose_files_are_all_gone_goes():
    before = LabelPlan.of(files(FILES_PER_SHARD + 1), SETTINGS, "/music")
    plan = before.updated(files(FILES_PER_SHARD), set(), "/music")
    assert list(plan.shards) == list(before.shards)[:1]


def test_a_plan_is_read_as_it_was_written(tmp_path):
    folder = Folder.at(tmp_path)
    assert LabelPlan.read(folder) is None
    plan = LabelPlan.of(files(100), SETTINGS, "/music")
    plan.write(folder)
    assert LabelPlan.read(folder) == plan
    (tmp_path / "plan.parquet").write_bytes(b"no plan")
    with pytest.raises(InputError, match="is not of a label set"):
        LabelPlan.read(folder)


def test_other_settings_are_another_shard_and_are_named():
    plan = LabelPlan.of(files(3), SETTINGS, "/music")
    (file,) = plan.shards
    for name, value in {"model": "n" * 64, "precision": 0.8, "decoder": "decoder 2"}.items():
        other = replace(SETTINGS, **{name: value})
        assert LabelPlan.of(files(3), other, "/music").fingerprint(file) != plan.fingerprint(file)
        (said,) = differences(SETTINGS, other)
        assert name in said
