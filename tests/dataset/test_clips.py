"""The clips of a set, in memory and in their shards: the same values, each shard read once, few of them kept."""

import json
import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.feature_sets import SHARDED_SPEC, make_sharded

from mgc.core.errors import InputError
from mgc.dataset import clips as module
from mgc.dataset.batches import batches, order
from mgc.dataset.clips import ShardedMel, load
from mgc.features.feature_set import FeatureSet
from mgc.features.layout import MANIFEST

SIZES = {"training": (5, 1, 0, 7, 3), "validation": (2, 4), "test": (6,)}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """28 clips in eight shards of different sizes, one of them without a clip."""
    return make_sharded(tmp_path_factory.mktemp("clips") / "set", artist=lambda track: f"a{track // 3}", **SIZES)


@pytest.fixture
def reads(monkeypatch):
    """The shards whose spectrograms are read from now on, in their order."""
    seen, table = [], FeatureSet.table

    def counting(self, entry, columns):
        if "logmel" in columns:
            seen.append(entry.file)
        return table(self, entry, columns)

    monkeypatch.setattr(FeatureSet, "table", counting)
    return seen


def rows_of(feature_set, *splits):
    """What pyarrow reads in the shards of some splits, and how many rows each shard has."""
    files = [entry.file for split in splits for entry in feature_set.manifest.shards if entry.split == split]
    tables = [pq.read_table(feature_set.folder.path / file).to_pylist() for file in files]
    return [row for table in tables for row in table], [len(table) for table in tables]


# What is loaded


@pytest.mark.parametrize("lazily", [False, True])
@pytest.mark.parametrize(
    "splits", [("training",), ("test",), ("training", "validation"), ("validation", "training"), tuple(SIZES)]
)
def test_what_is_loaded_is_what_the_shards_hold(small, splits, lazily):
    loaded = load(small, *splits, lazily=lazily)
    rows, counts = rows_of(small, *splits)
    assert len(loaded) == len(loaded.mel_NFT) == len(rows) == sum(sum(SIZES[split]) for split in splits)
    assert loaded.mel_NFT.shape == (len(rows), *SHARDED_SPEC.shape)
    assert loaded.labels_N.tolist() == [row["label"] for row in rows]
    assert loaded.track_ids_N.tolist() == [row["track_id"] for row in rows]
    assert loaded.artists_N.tolist() == [row["artist_id"] for row in rows]
    assert loaded.splits_N.tolist() == [row["split"] for row in rows]
    assert loaded.paths == tuple(row["path"] for row in rows)
    assert loaded.shards_N.tolist() == [shard for shard, count in enumerate(counts) for _ in range(count)]
    mel_NFT = loaded.mel_NFT[np.arange(len(rows))]
    assert mel_NFT.dtype == np.float16
    assert [mel.tobytes() for mel in mel_NFT] == [row["logmel"] for row in rows]


@pytest.mark.parametrize("lazily", [False, True])
def test_each_shard_is_opened_once_to_load_clips(small, monkeypatch, lazily):
    opened, table = [], FeatureSet.table
    monkeypatch.setattr(FeatureSet, "table", lambda *each: opened.append(each[1].file) or table(*each))
    assert load(small, *SIZES, lazily=lazily).in_memory != lazily
    assert opened == [entry.file for entry in small.manifest.shards]


def test_lazily_no_spectrogram_is_read_before_it_is_wanted(small, reads):
    loaded = load(small, *SIZES, lazily=True)
    assert isinstance(loaded.mel_NFT, ShardedMel)
    assert reads == []
    loaded.mel_NFT[np.array([6])]  # the first clip of the fourth shard; the third has none
    assert reads == ["shards/training-00003-of-00005.parquet"]


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_rows_read_from_shards_are_those_in_memory_whatever_rows_are_asked_for(small, dtype):
    whole, lazy = (load(small, *SIZES, lazily=lazily).mel_NFT for lazily in (False, True))
    generator = np.random.default_rng(0)
    wanted = [generator.integers(0, len(whole), size) for size in (1, 2, 7, 28, 100)]
    wanted += [np.arange(28), np.arange(27, -1, -1), np.array([3, 3, 3]), np.array([0, 27, 0]), np.array([], np.int64)]
    for rows in wanted:
        rows = rows.astype(dtype)
        assert lazy[rows].tobytes() == whole[rows].tobytes()
        assert lazy[rows].shape == whole[rows].shape
        strided = np.repeat(rows, 2)[::2]  # a rank's share of a batch is a slice with a step
        assert lazy[strided].tobytes() == whole[rows].tobytes()


def test_rows_that_are_read_belong_to_the_reader_alone(small):
    lazy = load(small, "training", lazily=True).mel_NFT
    first = lazy[np.arange(3)]
    before = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(lazy[np.arange(3)], before)


@pytest.mark.parametrize("lazily", [False, True])
def test_taken_clips_are_in_memory_and_know_the_same_of_each(small, lazily):
    loaded = load(small, "training", "validation", lazily=lazily)
    rows = np.array([20, 3, 3, 0])
    taken = loaded.take(rows)
    assert isinstance(taken.mel_NFT, np.ndarray)
    np.testing.assert_array_equal(taken.mel_NFT, loaded.mel_NFT[rows])
    for name in ("labels_N", "track_ids_N", "artists_N", "splits_N", "shards_N"):
        np.testing.assert_array_equal(getattr(taken, name), getattr(loaded, name)[rows])
    assert taken.paths == tuple(loaded.paths[row] for row in rows)
    assert len(loaded.take(np.array([], np.int64))) == 0


def test_a_clip_without_an_artist_is_an_artist_of_its_own(tmp_path):
    artists = {100: "x", 101: None, 102: "", 103: "x", 104: None}
    made = make_sharded(tmp_path / "set", artist=artists.get, training=(3, 2))
    of_clip = load(made, "training").artists_N.tolist()
    assert of_clip[0] == of_clip[3] == "x"
    assert len({*of_clip}) == 4


# Reading as little as possible


def test_shards_read_last_are_kept_and_no_more_of_them_than_two_groups(tmp_path, reads, monkeypatch):
    monkeypatch.setattr(module, "GROUP", 2)
    mel = load(make_sharded(tmp_path / "set", training=(2,) * 7), "training", lazily=True).mel_NFT
    for shard in (0, 1, 2, 3):
        mel[np.array([2 * shard])]
    assert len(reads) == 4
    for shard in (3, 2, 1, 0):
        mel[np.array([2 * shard + 1])]
    assert len(reads) == 4  # all four are kept
    mel[np.array([8])]
    assert len(reads) == 5  # and shard 3, asked for the longest ago, is not
    mel[np.array([0, 2, 4, 8])]
    assert len(reads) == 5
    mel[np.array([6])]
    assert len(reads) == 6


@pytest.mark.parametrize("batch_size", [1, 5, 9])  # a group has nine clips at least
def test_an_epoch_in_its_order_reads_each_shard_once(tmp_path, reads, monkeypatch, batch_size):
    for each in ("mgc.dataset.clips.GROUP", "mgc.dataset.batches.GROUP"):
        monkeypatch.setattr(each, 3)
    made = make_sharded(tmp_path / "set", training=(4, 5, 3, 6, 4, 4, 3, 5, 4, 4, 3), validation=(4, 4))
    clips = load(made, "training", "validation", lazily=True)
    rows = np.flatnonzero(clips.splits_N == "training")
    for epoch in (1, 2):
        reads.clear()
        for batch in batches(order(clips, rows, 0, epoch), batch_size):
            clips.mel_NFT[batch]
        assert len(reads) == len(set(reads))
        assert all("training" in file for file in reads)
        assert len(reads) == 11 or epoch == 2  # some are still kept from the epoch before


def test_a_batch_over_more_shards_than_are_kept_is_whole(small, reads, monkeypatch):
    monkeypatch.setattr(module, "GROUP", 1)
    clips = load(small, *SIZES, lazily=True)
    rows = np.random.default_rng(0).permutation(28)
    np.testing.assert_array_equal(clips.mel_NFT[rows], load(small, *SIZES).mel_NFT[rows])
    assert len(reads) == 7 + 8  # once each; in memory the empty one too


def test_clips_are_sent_to_other_processes_without_what_was_read(small):
    lazy = load(small, *SIZES, lazily=True)
    fresh = len(pickle.dumps(lazy))
    all_of_them = lazy.mel_NFT[np.arange(28)]
    assert len(pickle.dumps(lazy)) == fresh
    sent = pickle.loads(pickle.dumps(lazy))
    assert sent.mel_NFT[np.arange(28)].tobytes() == all_of_them.tobytes()
    assert sent.mel_NFT.shape == lazy.mel_NFT.shape
    assert (sent.paths, sent.labels_N.tolist()) == (lazy.paths, lazy.labels_N.tolist())
    lazy.mel_NFT[np.arange(28)]  # and the sender goes on


# What cannot be read


def said(error):
    message = str(error.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("lazily", [False, True])
def test_a_split_without_clips_is_refused_by_its_name(tmp_path, lazily):
    made = make_sharded(tmp_path / "set", training=(3,), validation=(0,))
    for splits in (("validation",), ("training", "validation"), ("training", "test")):
        with pytest.raises(InputError) as error:
            load(made, *splits, lazily=lazily)
        assert said(error) == f"`features={made.folder}`: no clips in split «{splits[-1]}»"


@pytest.mark.parametrize("lazily", [False, True])
def test_a_shard_that_is_gone_is_refused_by_its_name(tmp_path, lazily):
    made = make_sharded(tmp_path / "set", training=(3, 2, 4))
    gone = made.folder.path / made.manifest.shards[1].file
    gone.unlink()
    with pytest.raises(InputError) as error:
        load(made, "training", lazily=lazily)
    assert str(gone) in said(error)


@pytest.mark.parametrize("lazily", [False, True])
def test_a_shard_of_another_length_is_refused_by_its_name(tmp_path, lazily):
    made = make_sharded(tmp_path / "set", training=(3, 2, 4))
    manifest = json.loads((made.folder.path / MANIFEST).read_text())
    manifest["shards"][1]["rows"] = 3
    (made.folder.path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError) as error:
        load(FeatureSet.open(made.folder), "training", lazily=lazily)
    assert said(error) == f"{made.folder}/{manifest['shards'][1]['file']}: 2 rows, the manifest says 3"


def test_a_shard_that_goes_while_it_is_learnt_from_is_refused_by_its_name(tmp_path):
    made = make_sharded(tmp_path / "set", training=(3, 2, 4))
    mel = load(made, "training", lazily=True).mel_NFT
    mel[np.array([0])]
    for entry in made.manifest.shards[:2]:
        (made.folder.path / entry.file).unlink()
    mel[np.array([0, 8])]
    with pytest.raises(InputError) as error:
        mel[np.array([0, 4])]
    assert f"{made.folder}/{made.manifest.shards[1].file}" in said(error)


def test_spectrograms_of_another_shape_are_refused_by_their_shard(tmp_path):
    made = make_sharded(tmp_path / "set", training=(3, 2), values=lambda track: np.zeros((12, 18 - (track == 104))))
    with pytest.raises(InputError) as error:
        load(made, "training")
    assert f"{made.folder}/{made.manifest.shards[1].file}" in said(error)
    mel = load(made, "training", lazily=True).mel_NFT
    mel[np.array([2])]
    with pytest.raises(InputError) as error:
        mel[np.array([3])]
    assert f"{made.folder}/{made.manifest.shards[1].file}" in said(error)
