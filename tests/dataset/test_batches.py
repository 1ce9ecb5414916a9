"""Clips on the device, in memory and in their shards: the same batches and the same model; the last in less memory."""

import json
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.feature_sets import make_sharded

from mgc.audio.logmel import LogMelSpec
from mgc.config import AugmentConfig, ModelConfig, OptimConfig, TrainConfig
from mgc.core.errors import InputError
from mgc.dataset.batches import Feed, batches, order
from mgc.dataset.clips import load
from mgc.dataset.protocols import learning_set
from mgc.model import checkpoint
from mgc.training.loop import fit

SIZES = {"training": (4, 5, 3, 0, 6, 4, 4, 2, 5, 4, 4, 1), "validation": (4, 7)}
CONFIG = TrainConfig(
    model=ModelConfig(channels=(3,), norm=True, head="avgmax", dropout=0.2, window=11),
    augment=AugmentConfig(mixup_alpha=0.4, time_masks=1, time_mask_frames=4, band_masks=1, band_mask_bands=3),
    optim=OptimConfig(batch_size=8),
    epochs=2,
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """42 clips in twelve shards, and 11 to validate on in two."""
    return make_sharded(tmp_path_factory.mktemp("feed") / "set", **SIZES)


@pytest.fixture
def groups_of_three(monkeypatch):
    """So that a set of few shards is many groups."""
    for each in ("mgc.dataset.clips.GROUP", "mgc.dataset.batches.GROUP"):
        monkeypatch.setattr(each, 3)


@pytest.fixture
def one_thread():
    """Sums are then taken in one order, and two fits can be compared bit by bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# The same batches

EACH = ((False, True), (False, False), (True, False), (True, True))
"""Lazily loaded or not, resident or not: on the device, sent from memory, from shards, from shards to the device."""


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (0, 3), (2, 3), (8, 9)])  # the last: empty shares too
def test_all_feeds_give_the_same_batches_bit_for_bit(small, groups_of_three, rank, world):
    given = []
    for lazily, resident in EACH:
        learning = learning_set(small, CONFIG, lazily=lazily)
        feed = Feed(learning.clips, "cpu", resident=resident)
        assert (feed.mel_NFT is not None) == resident
        assert feed.labels_N.tolist() == learning.clips.labels_N.tolist()
        given.append([])
        for epoch in (1, 2, 3):
            rows = order(learning.clips, learning.training, seed=5, epoch=epoch)
            given[-1] += [rows, *feed.read(batch[rank::world] for batch in batches(rows, 8))]
            given[-1] += feed.read(batches(learning.validation[rank::world], 4))  # as a validation reads
    for one, *others in zip(*given, strict=True):
        for other in others:
            assert one.dtype == other.dtype
            assert one.shape == other.shape
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.mark.parametrize(("lazily", "resident"), EACH)
def test_batches_hold_the_rows_asked_for_in_their_order(small, monkeypatch, lazily, resident):
    monkeypatch.setattr("mgc.dataset.batches.PIECE", 5)
    clips = load(small, "training", lazily=lazily)
    mel_NFT = load(small, "training").mel_NFT
    wanted = [np.array([3, 3, 40]), np.array([], np.int64), np.array([41, 0]), np.arange(42), np.array([7])]
    read = list(Feed(clips, "cpu", resident=resident).read(wanted))
    assert len(read) == len(wanted)
    for rows, mel_BFT in zip(wanted, read, strict=True):
        assert mel_BFT.dtype == torch.float16
        np.testing.assert_array_equal(mel_BFT.numpy(), mel_NFT[rows])
    assert list(Feed(clips, "cpu", resident=resident).read([])) == []


def test_an_array_that_may_not_be_written_is_read_too_and_labels_are_the_feeds_own(small):
    clips = load(small, "training")
    for array in (clips.mel_NFT, clips.labels_N):
        array.flags.writeable = False  # as Ray's object store gives them
    feed = Feed(clips, "cpu", resident=True)
    (mel_BFT,) = feed.read([np.array([1, 2])])
    np.testing.assert_array_equal(mel_BFT.numpy(), clips.mel_NFT[1:3])
    feed.labels_N[0] = 9
    assert clips.labels_N[0] != 9


def test_reading_from_shards_ends_with_whoever_reads(small):
    threads = threading.active_count()
    feed = Feed(load(small, "training", lazily=True), "cpu", resident=False)
    reading = feed.read(batches(np.arange(42), 4))
    next(reading)
    assert threading.active_count() > threads
    reading.close()
    assert threading.active_count() == threads


# Order


def test_batches_are_the_rows_cut_up_evenly():
    rows = np.arange(10) * 3
    assert [batch.tolist() for batch in batches(rows, 4)] == [[0, 3, 6, 9], [12, 15, 18], [21, 24, 27]]
    assert sorted({len(batch) for batch in batches(np.arange(577), 16)}) == [15, 16]
    assert [len(batch) for batch in batches(rows, 5)] == [5, 5]
    assert [len(batch) for batch in batches(rows, 64)] == [10]
    assert batches(rows[:0], 4) == []


def test_an_epoch_takes_each_row_once_and_each_epoch_and_seed_in_another_order(small, groups_of_three):
    clips = load(small, "training", "validation", lazily=True)
    rows = np.flatnonzero(clips.track_ids_N % 3 > 0)  # as a fold may have it: some of each shard
    orders = [order(clips, rows, seed, epoch).tolist() for seed in (0, 1) for epoch in (1, 2, 3)]
    assert all(sorted(each) == rows.tolist() for each in orders)
    assert len({tuple(each) for each in orders}) == 6
    assert order(clips, rows, 1, 2).tolist() == orders[4]


def test_clips_come_from_no_more_shards_at_a_time_than_a_group_has(small, groups_of_three):
    clips = load(small, "training", "validation", lazily=True)
    rows = np.flatnonzero(clips.splits_N == "training")
    firsts = set()
    for epoch in range(1, 9):
        shards = clips.shards_N[order(clips, rows, 0, epoch)]
        place = np.arange(len(shards))
        open_at = np.zeros(len(shards), int)
        for shard in np.unique(shards):
            own = place[shards == shard]
            open_at[own[0] : own[-1] + 1] += 1  # from its first clip to its last
        assert open_at.max() == 3
        changes = (np.diff(shards) != 0).sum()
        assert changes > 2 * len(np.unique(shards))  # shuffled within groups, not shard by shard
        firsts.add(shards[0])
    assert len(firsts) > 3  # the groups are others each time


def test_the_order_of_a_set_of_one_group_is_a_plain_shuffle(small):
    """Every clip comes about as often in the first half as in the second, whatever its shard's place."""
    clips = load(small, "training", lazily=True)
    rows = np.arange(42)
    early, neighbours = np.zeros(42), 0
    for epoch in range(400):
        taken = order(clips, rows, 0, epoch)
        early[taken[:21]] += 1
        neighbours += (np.diff(clips.shards_N[taken]) == 0).mean()
    assert np.abs(early - 200).max() < 5 * 10  # five standard deviations
    sizes = np.bincount(clips.shards_N)
    expected = (sizes * (sizes - 1)).sum() / (42 * 41)
    assert neighbours / 400 == pytest.approx(expected, abs=0.01)


# Whole fits


@pytest.mark.usefixtures("one_thread", "groups_of_three")
@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, augment=AugmentConfig(), folds=2, fold=1)])
def test_a_fit_ends_the_same_from_any_feed_bit_for_bit(small, tmp_path, config):
    fitted = []
    for lazily, resident in EACH:
        folder = tmp_path / f"{lazily} {resident}"
        fit(config, learning_set(small, config, lazily=lazily), folder, feed="memory" if resident else "stream")
        fitted.append(checkpoint.read(folder))
    (model, card), *others = fitted
    weights = model.state_dict()
    for other, its_card in others:
        assert {**card.figures, "seconds": 0} == {**its_card.figures, "seconds": 0}
        assert all(torch.equal(weights[name], value) for name, value in other.state_dict().items())


def test_a_shard_that_goes_during_a_fit_ends_it_by_name_and_the_fit_goes_on_when_it_is_back(tmp_path, groups_of_three):
    made = make_sharded(tmp_path / "set", **SIZES)
    gone = made.folder.path / made.manifest.shards[4].file
    shard = gone.read_bytes()
    learning = learning_set(made, CONFIG, lazily=True)
    with pytest.raises(InputError) as error:
        fit(CONFIG, learning, tmp_path / "fit", on_epoch=lambda _: gone.unlink(), feed="stream")
    assert str(gone) in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    gone.write_bytes(shard)
    assert [point.epoch for point in fit(CONFIG, learning, tmp_path / "fit", feed="stream").history] == [1, 2]


# Memory

_PEAKS = """
import json, sys
import numpy as np
from mgc.dataset.clips import load
from mgc.features.feature_set import FeatureSet
from mgc.dataset.batches import Feed, batches, order

def peak():
    return next(int(row.split()[1]) / 1e3 for row in open("/proc/self/status") if row.startswith("VmHWM"))

feature_set, total = FeatureSet.open(sys.argv[1]), 0
clips = load(feature_set, "training", lazily=True)
peaks = [peak()]
for lazily in (True, False):
    clips = load(feature_set, "training", lazily=lazily)
    for mel_BFT in Feed(clips, "cpu", resident=not lazily).read(batches(order(clips, np.arange(len(clips)), 0, 1), 8)):
        total += mel_BFT[:, 0, 0].sum().item()
    peaks.append(peak())
print(json.dumps([total, *np.diff(peaks)]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_reading_from_shards_takes_a_fraction_of_what_holding_the_clips_takes(tmp_path):
    spec = LogMelSpec()  # 330 kB a clip
    ones = np.ones(spec.shape, "<f2")
    made = make_sharded(tmp_path / "set", spec=spec, values=lambda _: ones, training=(3,) * 200)
    done = subprocess.run(
        [sys.executable, "-c", _PEAKS, str(made.folder)], capture_output=True, text=True, check=True, timeout=120
    )
    clips_read, streaming, more_for_holding = json.loads(done.stdout)
    assert clips_read == 2 * 600
    assert streaming < 100  # MB: 32 shards of 1 are kept, and five batches of 2.6 are under way
    assert streaming + more_for_holding > 170  # 198, some of it in what streaming had taken
