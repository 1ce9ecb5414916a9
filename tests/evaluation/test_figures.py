"""Plots show the values that they are given."""

import numpy as np
import pytest
from helpers.feature_sets import GENRES, SPEC

from mgc.dataset import clips
from mgc.evaluation import figures as pictures
from mgc.evaluation.metrics import score, wilson
from mgc.pages.plots import TRAINING, VALIDATION

HISTORY = [
    {"epoch": e, "train_loss": 2 / e, "val_loss": 2.5 / e, "train_accuracy": 0.2 * e, "val_accuracy": 0.1 * e}
    for e in (1, 2, 3)
]


@pytest.fixture(scope="module")
def training(features):
    return clips.load(features, "training", lazily=True)


def one_scale(figure) -> bool:
    """Whether all spectrograms have the same colours, time axis and orientation."""
    images = [axes.images[0] for axes in figure.axes if axes.images and axes.images[0].get_array().shape == SPEC.shape]
    looks = {(image.get_clim(), image.get_cmap().name, tuple(image.get_extent()), image.origin) for image in images}
    return looks == {((-3, 3), "magma", (0, SPEC.seconds, 0, SPEC.n_mels), "lower")}


def test_curves_are_those_of_the_history_with_the_kept_epoch_marked():
    figure = pictures.learning_curves(HISTORY, 2)
    loss, accuracy = figure.axes
    assert list(loss.lines[0].get_ydata()) == [2.0, 1.0, 2 / 3]
    assert list(loss.lines[1].get_ydata()) == [2.5, 1.25, 2.5 / 3]
    assert list(loss.lines[2].get_xdata()) == [2, 2]
    assert list(accuracy.lines[1].get_ydata()) == pytest.approx([0.1, 0.2, 0.3])
    assert [text.get_text() for text in figure.legends[0].texts] == ["training", "validation", "kept: epoch 2"]
    assert [loss.lines[row].get_color() for row in (0, 1)] == [TRAINING, VALIDATION]
    assert [(axes.get_ylabel(), axes.get_xlabel()) for axes in figure.axes] == [("loss", ""), ("accuracy", "epoch")]
    assert accuracy.get_ylim() == (0, 1.02)


def test_curves_of_several_models_lie_over_each_other():
    figure = pictures.member_curves([(HISTORY, 1), (HISTORY[:2], 2)])
    assert [list(line.get_xdata()) for line in figure.axes[0].lines] == [[1, 2, 3]] * 2 + [[1, 1]] + [[1, 2]] * 2 + [
        [2, 2]
    ]
    assert [text.get_text() for text in figure.legends[0].texts] == ["training", "validation", "kept epochs"]
    assert all(line.get_alpha() < 1 for line in figure.axes[0].lines)


def test_calibration_is_drawn_bin_by_bin_with_its_interval():
    labels = np.array([0] * 8 + [1] * 2)
    probabilities = np.array([[0.9, 0.1]] * 6 + [[0.45, 0.55]] * 4, np.float32)
    scores = score(labels, probabilities, ("a", "b"))
    figure = pictures.reliability(scores, "test, LEAKY")
    upper, lower = figure.axes
    points = upper.containers[0]
    assert points.lines[0].get_xdata() == pytest.approx([0.55, 0.9])
    assert points.lines[0].get_ydata() == pytest.approx([0.5, 1.0])
    (bars,) = points.lines[2]
    for segment, bounds in zip(bars.get_segments(), (wilson(2, 4), wilson(6, 6)), strict=True):
        assert segment[:, 1] == pytest.approx(bounds)
    assert [bar.get_height() for bar in lower.patches] == [4, 6]
    assert lower.patches[0].get_x() + lower.patches[0].get_width() == pytest.approx(8 / 15)  # 0.55 is in (8/15, 9/15]
    assert upper.get_title() == f"test, LEAKY: calibration error {scores.ece:.3f} of 10 clips"
    diagonal = next(line for line in upper.lines if line.get_label() == "calibrated")
    assert (list(diagonal.get_xdata()), list(diagonal.get_ydata())) == ([0, 1], [0, 1])
    assert (upper.get_ylabel(), lower.get_ylabel()) == ("accuracy", "clips")


def test_spectrograms_read_no_more_than_they_show(training, monkeypatch):
    read = []
    original = clips.ShardedMel.__getitem__
    monkeypatch.setattr(clips.ShardedMel, "__getitem__", lambda self, rows: read.append(rows) or original(self, rows))
    figure = pictures.spectrograms(training, GENRES, SPEC, columns=2)
    assert sum(map(len, read)) == 2 * len(GENRES)
    images = [axes.images[0].get_array() for axes in figure.axes if axes.images and axes.get_title()]
    rows = np.concatenate([np.flatnonzero(training.labels_N == label)[:2] for label in range(4)])
    assert np.array_equal(np.stack(images), training.mel_NFT[rows].astype(np.float32))
    assert [axes.get_title() for axes in figure.axes][:2] == [f"clip {training.track_ids_N[row]}" for row in rows[:2]]
    assert [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel().endswith("band")] == [
        f"{genre}\nmel band" for genre in GENRES
    ]
    assert figure.axes[-1].get_ylabel() == "z-score"  # the colour bar
    assert one_scale(figure)


def test_a_genre_without_clips_keeps_its_row(training):
    some = training.take(np.flatnonzero(training.labels_N != 2))
    figure = pictures.spectrograms(some, GENRES, SPEC, columns=1)
    assert [bool(axes.images) for axes in figure.axes[:4]] == [True, True, False, True]


def test_mistakes_are_drawn_with_what_they_are_and_were_taken_for(training):
    shown = training.take(np.array([3, 0]))
    probabilities = np.array([[0.1, 0.7, 0.1, 0.1], [0.0, 0.04, 0.96, 0.0]], np.float32)
    genres = ("Blues", "A$_{$", "Jazz", "Rock")
    figure = pictures.mistakes(shown, probabilities, genres, SPEC)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["1   Rock, taken for A$_{$ (70%)", "2   Blues, taken for Jazz (96%)"]
    for axes, row in zip(figure.axes, (0, 1), strict=True):
        assert np.array_equal(axes.images[0].get_array(), shown.mel_NFT[row].astype(np.float32))
    assert one_scale(figure)
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "seconds"]


def test_a_confusion_matrix_names_genres_as_they_are():
    scores = score(np.array([0, 1, 1]), np.eye(2, dtype=np.float32)[[0, 1, 0]], ("A$_{$", "b"))
    figure = pictures.confusion_matrix(scores, "test")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["A$_{$", "b"]
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        ((0, 0), "1"),
        ((0, 1), "1"),
        ((1, 1), "1"),
    }
    assert np.array_equal(axes.images[0].get_array(), [[1, 0], [0.5, 0.5]])
    assert axes.images[0].get_clim() == (0, 1)
    colours = {text.get_position(): text.get_color() for text in axes.texts}
    assert colours == {(0, 0): "w", (0, 1): "k", (1, 1): "k"}  # light on dark cells
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert axes.get_title() == "test: 0.667 of 3 clips"
