"""The feature set's contract: a finished set reads as it was written, anything else is refused in one clear line."""

from __future__ import annotations

import errno
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.feature_sets import GENRES, SHARDED_SPEC, SPEC, make_features, make_sharded

from mgc.config import TrainConfig
from mgc.core.errors import InputError, RunError, StoreError
from mgc.core.storage import Folder
from mgc.dataset import clips
from mgc.dataset.protocols import learning_set
from mgc.features.feature_set import FeatureSet, logmels
from mgc.features.inspect import inspect
from mgc.features.layout import MANIFEST, SCHEMA, Manifest, read_manifest
from mgc.features.plan import Plan
from mgc.features.verify import verify


@pytest.fixture
def broken(features, tmp_path):
    """A copy of the small set, to be broken."""
    return shutil.copytree(features.folder.path, tmp_path / "set")


def refused(path, *words):
    with pytest.raises(InputError) as caught:
        FeatureSet.open(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for word in (str(path), *words):
        assert word in message


# Opening


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    refused(tmp_path / "no", "no such directory", "mgc preprocess")


def test_a_file_in_place_of_the_folder_is_refused(broken):
    refused(broken / MANIFEST, "no such directory")


def test_a_set_without_a_manifest_is_refused_as_unfinished(broken):
    (broken / MANIFEST).unlink()
    refused(broken, "unfinished")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '"text"', "{}", '{"format": 2}', '{"shards": [1]}'])
def test_a_damaged_manifest_is_refused(broken, text):
    (broken / MANIFEST).write_text(text)
    refused(broken, "not a manifest")


def test_a_manifest_with_bytes_that_are_no_text_is_refused(broken):
    (broken / MANIFEST).write_bytes(b"\xff\xfe\x00")
    refused(broken, "not a manifest")


def test_a_manifest_without_one_of_its_fields_is_refused(broken):
    whole = json.loads((broken / MANIFEST).read_text())
    for field in whole.keys() - {"licenses"}:  # it came later
        (broken / MANIFEST).write_text(json.dumps({key: value for key, value in whole.items() if key != field}))
        refused(broken, "not a manifest")


def test_a_manifest_of_another_format_is_refused(broken):
    (broken / MANIFEST).write_text(json.dumps(json.loads((broken / MANIFEST).read_text()) | {"format": 3}))
    refused(broken, "format 3", "reads 2")


def test_a_later_format_of_other_fields_is_refused_as_another_format(broken):
    (broken / MANIFEST).write_text(json.dumps({"format": 3, "pieces": []}))
    refused(broken, "format 3")


def test_a_manifest_reads_back_as_it_was_written(features):
    manifest = features.manifest
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert Manifest.from_json(manifest.to_json()).to_json() == manifest.to_json()
    assert FeatureSet.open(features.folder.path) == features
    assert manifest.spec == SPEC


def test_a_set_that_is_open_is_returned_as_it_is(features):
    assert FeatureSet.open(features) is features


# Reading


@pytest.mark.parametrize("spectrograms", [False, True])
def test_a_data_frame_has_a_row_a_clip_with_all_columns_of_the_shards(tmp_path, spectrograms):
    made = make_sharded(tmp_path / "set", training=(3, 0, 2), test=(2,))
    frame = made.to_pandas(spectrograms=spectrograms)
    rows = [row for entry in made.manifest.shards for row in pq.read_table(tmp_path / "set" / entry.file).to_pylist()]
    columns = [name for name in SCHEMA.names if spectrograms or name != "logmel"]
    assert list(frame.columns) == columns
    assert len(frame) == len(rows) == 7
    for found, row in zip(frame.to_dict("records"), rows, strict=True):
        if spectrograms:
            mel_FT = found.pop("logmel")
            assert (mel_FT.shape, mel_FT.dtype) == (SHARDED_SPEC.shape, np.float16)
            assert mel_FT.tobytes() == row["logmel"]
        assert found == {name: value for name, value in row.items() if name != "logmel"}
    assert frame["label"].dtype == np.int8


def test_a_data_frame_of_a_set_without_clips_has_the_columns(tmp_path):
    frame = make_sharded(tmp_path / "set", training=(0,)).to_pandas(spectrograms=True)
    assert (len(frame), list(frame.columns)) == (0, SCHEMA.names)


def test_a_split_reads_as_it_was_written(features):
    for split, count in (("training", 44), ("validation", 12), ("test", 13)):
        loaded = clips.load(features, split)
        (entry,) = (entry for entry in features.manifest.shards if entry.split == split)
        rows = pq.read_table(features.folder.path / entry.file).to_pylist()
        assert len(loaded) == len(rows) == count
        assert loaded.mel_NFT.shape == (count, *SPEC.shape)
        assert loaded.mel_NFT.dtype == np.float16
        assert [mel.tobytes() for mel in loaded.mel_NFT] == [row["logmel"] for row in rows]
        assert loaded.labels_N.tolist() == [row["label"] for row in rows]
        assert loaded.track_ids_N.tolist() == [row["track_id"] for row in rows]
        assert list(loaded.paths) == [row["path"] for row in rows]


def test_a_split_of_several_shards_reads_in_their_order_whatever_their_sizes(tmp_path):
    made = make_features(tmp_path / "set")
    (entry,) = (entry for entry in made.manifest.shards if entry.split == "training")
    whole = pq.read_table(made.folder.path / entry.file)
    expected = clips.load(made, "training")
    entries, start = [], 0
    for rows in (7, 0, 1, 36):
        name = f"shards/{len(entries)}.parquet"
        pq.write_table(whole.slice(start, rows), made.folder.path / name, row_group_size=5)
        entries.append({"file": name, "split": "training", "rows": rows, "bytes": 0, "sha256": ""})
        start += rows
    others = [e for e in json.loads((made.folder.path / MANIFEST).read_text())["shards"] if e["split"] != "training"]
    text = json.dumps(json.loads((made.folder.path / MANIFEST).read_text()) | {"shards": entries + others})
    (made.folder.path / MANIFEST).write_text(text)
    loaded = clips.load(FeatureSet.open(made.folder), "training")
    np.testing.assert_array_equal(loaded.mel_NFT, expected.mel_NFT)
    np.testing.assert_array_equal(loaded.track_ids_N, expected.track_ids_N)


def test_learning_sees_training_and_validation_and_no_test_clip(features):
    learning = learning_set(features, TrainConfig())
    assert (len(learning.training), len(learning.validation)) == (44, 12)
    for split in ("training", "validation"):
        rows = getattr(learning, split)
        assert learning.clips.track_ids_N[rows].tolist() == clips.load(features, split).track_ids_N.tolist()
    assert not set(learning.clips.track_ids_N) & set(clips.load(features, "test").track_ids_N)
    assert (learning.genres, learning.spec, learning.fingerprint) == (GENRES, SPEC, "f" * 64)


def test_matrices_of_a_sliced_and_chunked_column_are_those_rows(features):
    (entry,) = (entry for entry in features.manifest.shards if entry.split == "test")
    table = pq.read_table(features.folder.path / entry.file)
    parts = pa.concat_tables([table.slice(5, 3), table.slice(1, 2)])
    whole = logmels(table, SPEC.shape)
    np.testing.assert_array_equal(logmels(table.slice(4, 6), SPEC.shape), whole[4:10])
    np.testing.assert_array_equal(logmels(parts, SPEC.shape), whole[[5, 6, 7, 1, 2]])
    assert logmels(table.slice(0, 0), SPEC.shape).shape == (0, *SPEC.shape)


def test_a_split_without_clips_is_refused(features):
    with pytest.raises(InputError, match="no clips in split «validaton»"):
        clips.load(features, "validaton")


def refused_load(path, file):
    with pytest.raises(InputError) as caught:
        clips.load(FeatureSet.open(path), "training")
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert str(file) in message
    return message


def training_shard(path):
    return path / "shards" / "training-00000-of-00001.parquet"


def test_a_missing_shard_is_refused_by_its_name(broken):
    training_shard(broken).unlink()
    assert "preprocess again" in refused_load(broken, training_shard(broken))


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_a_truncated_shard_is_refused_by_its_name(broken, keep):
    whole = training_shard(broken).read_bytes()
    training_shard(broken).write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
    refused_load(broken, training_shard(broken))


def test_a_shard_damaged_inside_is_refused_by_its_name(broken):
    data = bytearray(training_shard(broken).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 5000] = bytes(5000)
    training_shard(broken).write_bytes(data)
    refused_load(broken, training_shard(broken))


def test_a_shard_of_other_rows_than_the_manifest_says_is_refused(broken):
    pq.write_table(pq.read_table(training_shard(broken)).slice(1), training_shard(broken))
    message = refused_load(broken, training_shard(broken))
    assert "43" in message
    assert "44" in message


def test_a_shard_without_a_needed_column_is_refused(broken):
    pq.write_table(pq.read_table(training_shard(broken)).drop_columns(["logmel"]), training_shard(broken))
    refused_load(broken, training_shard(broken))


def test_a_shard_with_a_matrix_of_another_size_is_refused(broken):
    table = pq.read_table(training_shard(broken))
    values = [b"\0\0", *table["logmel"].to_pylist()[1:]]
    pq.write_table(table.set_column(table.schema.get_field_index("logmel"), "logmel", [values]), training_shard(broken))
    refused_load(broken, training_shard(broken))


# Storage that fails


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale file handle"), StoreError("no answer")],
    ids=lambda error: error.__class__.__name__,
)
@pytest.mark.parametrize(
    "step",
    [
        lambda features: read_manifest(features.folder),
        lambda features: Plan.read(features.folder),
        lambda features: features.to_pandas(),
        lambda features: features.torch_dataset("training"),
        lambda features: clips.load(features, "training"),
        lambda features: verify(features),
        lambda features: inspect(features, out="sheet.png"),
    ],
    ids=["manifest", "plan", "to_pandas", "torch_dataset", "load", "verify", "inspect"],
)
def test_a_disk_or_store_that_fails_is_a_failed_run_and_no_bad_input(features, tmp_path, monkeypatch, step, error):
    def fail(*_):
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Folder, "read", fail)
    monkeypatch.setattr(Folder, "random_access", fail)
    with pytest.raises(RunError) as caught:
        step(features)
    assert caught.value.exit_code == 1
    assert str(error.args[-1]) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
