"""Who learns from what: each way of dividing is fair to its word, the same every time, and keeps test clips out."""

import numpy as np
import pytest
from helpers.feature_sets import make_sharded

from mgc.collection.splits import SPLITS
from mgc.config import TrainConfig
from mgc.core.errors import InputError
from mgc.dataset.clips import load
from mgc.dataset.protocols import held_out, learning_set, splits_of

SIZES = {"training": (17, 20, 23), "validation": (13, 8), "test": (9, 10)}
RANDOM = TrainConfig(split="random")


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """81 clips to learn from and 19 for the test, of artists with one to four clips; a genre has two fifths of them."""
    artists = [artist for artist in range(40) for _ in range(1 + artist % 4)]

    def artist(track):
        return artists[track - 100]

    def genre(track):
        return (0, 0, 1, 2, 3)[artist(track) % 5]

    path = tmp_path_factory.mktemp("learning") / "set"
    return make_sharded(path, artist=lambda track: f"a{artist(track)}", genre=genre, **SIZES)


def tracks(learning, rows):
    return set(learning.clips.track_ids_N[rows].tolist())


def tracks_of(feature_set, *splits):
    return set(load(feature_set, *splits, lazily=True).track_ids_N.tolist())


@pytest.fixture(params=[False, True], ids=["memory", "stream"])
def lazily(request):
    return request.param


# Official


def test_officially_the_rows_are_those_of_the_sets_own_splits(uneven, lazily):
    learning = learning_set(uneven, TrainConfig(), lazily=lazily)
    assert learning.clips.splits_N[learning.training].tolist() == ["training"] * 60
    assert learning.clips.splits_N[learning.validation].tolist() == ["validation"] * 21
    assert tracks(learning, learning.training) == tracks_of(uneven, "training")
    assert tracks(learning, learning.validation) == tracks_of(uneven, "validation")
    manifest = uneven.manifest
    assert (learning.genres, learning.spec) == (manifest.genres, manifest.spec)
    assert learning.fingerprint == manifest.fingerprint


def test_clips_that_are_there_already_are_not_read_again(uneven):
    clips = load(uneven, "training", "validation")
    learning = learning_set(uneven, TrainConfig(), clips=clips)
    assert learning.clips is clips
    np.testing.assert_array_equal(learning.training, learning_set(uneven, TrainConfig()).training)


@pytest.mark.parametrize("config", [TrainConfig(), TrainConfig(folds=3, fold=2), TrainConfig(folds=3)])
def test_no_test_clip_is_among_what_a_fit_is_given(uneven, config, lazily):
    learning = learning_set(uneven, config, lazily=lazily)
    assert splits_of(config) == ("training", "validation")
    assert not set(learning.clips.track_ids_N.tolist()) & tracks_of(uneven, "test")


def test_officially_what_is_held_out_is_the_sets_own_split(uneven):
    for split in SPLITS:
        ours, own = held_out(uneven, split), load(uneven, split)
        np.testing.assert_array_equal(ours.track_ids_N, own.track_ids_N)
        np.testing.assert_array_equal(ours.mel_NFT, own.mel_NFT)


# Folds


@pytest.mark.parametrize("folds", [2, 5])
def test_folds_validate_each_clip_once_and_have_no_artist_on_both_sides(uneven, folds, lazily):
    validated = []
    for fold in range(1, folds + 1):
        learning = learning_set(uneven, TrainConfig(folds=folds, fold=fold), lazily=lazily)
        artists = [set(learning.clips.artists_N[rows]) for rows in (learning.training, learning.validation)]
        assert not artists[0] & artists[1]
        assert not tracks(learning, learning.training) & tracks(learning, learning.validation)
        assert len(learning.training) + len(learning.validation) == 81
        validated += learning.clips.track_ids_N[learning.validation].tolist()
    assert len(validated) == len(set(validated)) == 81
    assert set(validated) == tracks_of(uneven, "training", "validation")


def test_folds_are_of_about_one_size_and_have_the_sets_mixture_of_genres(uneven):
    for fold in range(1, 4):
        learning = learning_set(uneven, TrainConfig(folds=3, fold=fold))
        assert 27 - 8 <= len(learning.validation) <= 27 + 8
        whole = np.bincount(learning.clips.labels_N, minlength=4) / 81
        part = np.bincount(learning.clips.labels_N[learning.validation], minlength=4) / len(learning.validation)
        assert np.abs(part - whole).max() < 0.15


def test_folds_are_the_same_every_time_whatever_the_seed_and_however_clips_are_kept(uneven):
    learning = learning_set(uneven, TrainConfig(folds=4, fold=3))
    for config, lazily in (
        (TrainConfig(folds=4, fold=3, seed=9, epochs=1), False),
        (TrainConfig(folds=4, fold=3), True),
    ):
        again = learning_set(uneven, config, lazily=lazily)
        np.testing.assert_array_equal(again.training, learning.training)
        np.testing.assert_array_equal(again.validation, learning.validation)
    other = learning_set(uneven, TrainConfig(folds=4, fold=2))
    assert not tracks(other, other.validation) & tracks(learning, learning.validation)


def test_clips_without_an_artist_are_folded_each_on_its_own(tmp_path):
    made = make_sharded(
        tmp_path / "set", artist=lambda _: None, genre=lambda track: track % 2, training=(9,), validation=(9,)
    )
    sizes = [len(learning_set(made, TrainConfig(folds=9, fold=fold)).validation) for fold in range(1, 10)]
    assert sizes == [2] * 9


def test_more_folds_than_a_genre_has_artists_are_refused(tmp_path):
    def artist(track):
        return f"a{track % 2}" if track < 110 else f"b{track}"  # of the first genre there are two

    made = make_sharded(
        tmp_path / "set", artist=artist, genre=lambda track: int(track >= 110), training=(10, 8), validation=(2,)
    )
    assert len(learning_set(made, TrainConfig(folds=2, fold=1)).validation)
    with pytest.raises(InputError) as error:
        learning_set(made, TrainConfig(folds=3, fold=1))
    assert str(error.value) == (
        "`folds=3`: all clips of an artist are in one fold, and in training and validation there are too few "
        "artists of «Blues» (2); at most `folds=2`"
    )


def test_where_a_genre_has_one_artist_the_ways_on_are_said(tmp_path):
    made = make_sharded(
        tmp_path / "set",
        artist=lambda track: f"a{track % 2}",
        genre=lambda track: track % 2,
        training=(8,),
        validation=(4,),
    )
    with pytest.raises(InputError, match=r"«Blues» .1., «Folk» .1.; leave `folds` out, or take `split=random`"):
        learning_set(made, TrainConfig(folds=5, fold=1))


# Genres


def test_genres_that_a_split_lacks_are_named(uneven, tmp_path):
    assert learning_set(uneven, TrainConfig()).gaps == ()
    made = make_sharded(
        tmp_path / "set", genre=lambda track: (track - 100) % 2 + (track >= 110), training=(10,), validation=(5,)
    )
    assert learning_set(made, TrainConfig()).gaps == (
        "no training clips of «Jazz», «Rock»: they cannot be learnt",
        "no validation clips of «Blues», «Rock»: validation does not tell how well they are learnt",
    )


@pytest.mark.parametrize("config", [TrainConfig(), TrainConfig(folds=3, fold=1), RANDOM])
def test_a_set_of_one_genre_is_refused(tmp_path, config):
    made = make_sharded(tmp_path / "set", genre=lambda _: 2, training=(20,), validation=(5,), test=(5,))
    with pytest.raises(InputError, match="training clips of «Jazz» alone; a model needs two genres or more"):
        learning_set(made, config)


# Random


def test_at_random_all_clips_are_dealt_80_10_10_within_each_genre(uneven, lazily):
    learning = learning_set(uneven, RANDOM, lazily=lazily)
    assert splits_of(RANDOM) == SPLITS
    assert set(learning.clips.track_ids_N.tolist()) == tracks_of(uneven, *SPLITS)
    test = held_out(uneven, "test", "random")
    for label in range(4):
        total = (learning.clips.labels_N == label).sum()
        training, validation = (
            (learning.clips.labels_N[rows] == label).sum() for rows in (learning.training, learning.validation)
        )
        rest = (test.labels_N == label).sum()
        assert training + validation + rest == total
        for part, share in ((training, 0.8), (validation, 0.1), (rest, 0.1)):
            assert abs(part - share * total) < 1


def test_at_random_a_clip_is_learnt_from_or_held_out_and_never_both(uneven):
    learning = learning_set(uneven, RANDOM)
    training, validation = tracks(learning, learning.training), tracks(learning, learning.validation)
    held = {split: set(held_out(uneven, split, "random").track_ids_N.tolist()) for split in SPLITS}
    assert (held["training"], held["validation"]) == (training, validation)
    assert not held["test"] & (training | validation)
    assert not training & validation
    assert training | validation | held["test"] == tracks_of(uneven, *SPLITS)


def test_at_random_clips_change_sides_and_artists_are_on_both(uneven):
    learning = learning_set(uneven, RANDOM)
    assert set(learning.clips.splits_N[learning.training]) == set(SPLITS)
    artists = [set(learning.clips.artists_N[rows]) for rows in (learning.training, learning.validation)]
    assert artists[0] & artists[1]


def test_at_random_the_draw_is_the_same_whatever_the_seed_and_however_clips_are_kept(uneven):
    one = learning_set(uneven, RANDOM)
    for config, lazily in ((TrainConfig(split="random", seed=5), False), (RANDOM, True)):
        again = learning_set(uneven, config, lazily=lazily)
        np.testing.assert_array_equal(again.training, one.training)
        np.testing.assert_array_equal(again.validation, one.validation)


def test_at_random_the_clips_held_out_are_in_memory_with_their_own_spectrograms(uneven):
    held = held_out(uneven, "test", "random")
    everything = load(uneven, *SPLITS)
    assert isinstance(held.mel_NFT, np.ndarray)
    row_of = {track: row for row, track in enumerate(everything.track_ids_N.tolist())}
    rows = [row_of[track] for track in held.track_ids_N.tolist()]
    np.testing.assert_array_equal(held.mel_NFT, everything.mel_NFT[rows])
    assert held.paths == tuple(everything.paths[row] for row in rows)
    np.testing.assert_array_equal(held.labels_N, everything.labels_N[rows])


def test_at_random_a_set_without_a_test_split_is_refused(tmp_path):
    made = make_sharded(tmp_path / "set", training=(20,), validation=(5,))
    with pytest.raises(InputError, match="no clips in split «test»"):
        learning_set(made, RANDOM)
