"""Reading by row: what a data loader of somebody else's model gets is what the shards hold."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.feature_sets import GENRES, SHARDED_SPEC, make_sharded
from torch.utils.data import DataLoader

from mgc.core.errors import InputError
from mgc.features.feature_set import FeatureSet
from mgc.features.reader import ShardedMel

SIZES = {"training": (5, 1, 0, 7, 3), "validation": (2, 4)}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """16 training clips in five shards, one of them without a clip, and 6 validation clips."""
    return make_sharded(tmp_path_factory.mktemp("reader") / "set", **SIZES)


@pytest.fixture
def reads(monkeypatch):
    """The shards whose spectrograms are read from now on, in their order."""
    seen, read = [], FeatureSet.spectrograms

    def counting(self, entry):
        seen.append(entry.file)
        return read(self, entry)

    monkeypatch.setattr(FeatureSet, "spectrograms", counting)
    return seen


def rows_of(feature_set, split):
    """Spectrograms, labels and track ids as pyarrow reads them."""
    files = [entry.file for entry in feature_set.manifest.shards if entry.split == split]
    rows = [row for file in files for row in pq.read_table(feature_set.folder.path / file).to_pylist()]
    mel = np.stack([np.frombuffer(row["logmel"], "<f2").reshape(SHARDED_SPEC.shape) for row in rows])
    return mel, np.array([row["label"] for row in rows]), np.array([row["track_id"] for row in rows])


# The data set


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("split", SIZES)
def test_each_item_is_a_clip_as_its_shard_holds_it(small, split, in_memory):
    data = small.torch_dataset(split, in_memory=in_memory)
    mel, labels, track_ids = rows_of(small, split)
    assert len(data) == len(labels) == sum(SIZES[split])
    for index, (z_FT, label) in enumerate(data):  # ends, because an index too large is an IndexError
        assert (z_FT.dtype, type(label), label) == (np.float32, int, labels[index])
        np.testing.assert_array_equal(z_FT, mel[index])
    assert index == len(data) - 1
    np.testing.assert_array_equal(data.labels_N, labels)
    np.testing.assert_array_equal(data.track_ids_N, track_ids)
    assert data.genres == GENRES
    np.testing.assert_array_equal(data[-1][0], mel[-1])


@pytest.mark.parametrize("index", [16, -17])
def test_an_index_beyond_the_clips_is_an_index_error(small, index):
    with pytest.raises(IndexError):
        small.torch_dataset("training")[index]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shuffling_loader_of_torch_gives_every_clip_once_and_whole(small, workers):
    data = small.torch_dataset("training")
    loader = DataLoader(data, batch_size=5, shuffle=True, num_workers=workers)
    mel, labels, _ = rows_of(small, "training")
    row_of = {z_FT.tobytes(): row for row, z_FT in enumerate(mel.astype(np.float32))}
    found = []
    for z_BFT, labels_B in loader:
        assert z_BFT.shape[1:] == SHARDED_SPEC.shape
        rows = [row_of[z_FT.numpy().tobytes()] for z_FT in z_BFT]
        assert labels_B.tolist() == labels[rows].tolist()
        found += rows
    assert sorted(found) == list(range(16))
    assert found != sorted(found)


def test_a_batch_reads_each_of_its_shards_once_and_an_epoch_in_order_does_too(small, reads):
    data = small.torch_dataset("training")
    assert reads == []  # nothing before it is wanted
    data.__getitems__([15, 0, 14, 1])
    assert sorted(reads) == [f"shards/training-0000{shard}-of-00005.parquet" for shard in (0, 4)]
    for _ in data:
        pass
    assert len(reads) == len(set(reads)) == 4


def test_in_memory_every_shard_is_read_once_at_the_start(small, reads):
    data = small.torch_dataset("training", in_memory=True)
    assert len(reads) == len(set(reads)) == 4
    data.__getitems__([15, 0, 14, 1])
    assert len(reads) == 4


def test_items_belong_to_their_reader_alone(small):
    data = small.torch_dataset("training")
    first, _ = data[0]
    before = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(data[0][0], before)


def test_a_pickled_data_set_carries_no_spectrograms_and_reads_the_same(small):
    data = small.torch_dataset("training")
    fresh = len(pickle.dumps(data))
    z_FT, label = data[7]
    assert len(pickle.dumps(data)) == fresh
    again = pickle.loads(pickle.dumps(data))
    assert again[7][1] == label
    np.testing.assert_array_equal(again[7][0], z_FT)


def test_a_split_without_clips_is_refused_by_its_name(small):
    with pytest.raises(InputError, match="no clips in split «test»"):
        small.torch_dataset("test")


def test_a_shard_that_is_gone_is_refused_by_its_name(tmp_path):
    made = make_sharded(tmp_path / "set", training=(3, 2))
    gone = made.folder.path / made.manifest.shards[1].file
    data = made.torch_dataset("training")
    gone.unlink()
    with pytest.raises(InputError) as error:
        data[4]
    assert str(gone) in str(error.value)


# Shards kept in memory


def test_the_shards_used_last_are_kept_and_no_more(tmp_path, reads):
    made = make_sharded(tmp_path / "set", training=(2,) * 4)
    mel = ShardedMel(made, made.manifest.shards, kept=2)
    for row in (0, 2, 1, 4, 3):  # shards 0, 1, 0, 2 (1 goes), 1
        mel[np.array([row])]
    assert [int(file[16:21]) for file in reads] == [0, 1, 2, 1]


def test_neither_torch_nor_pyarrow_is_loaded_with_the_module():
    """The training core runs where features are arrays already, with torch and numpy alone."""
    code = (
        "import sys, mgc.features.reader, mgc.dataset.clips;"
        "sys.exit(', '.join({'torch', 'pyarrow', 'ray', 'mlflow'} & sys.modules.keys()) or None)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
