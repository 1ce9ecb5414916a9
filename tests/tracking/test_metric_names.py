"""Runs of before are read by the names of today."""

import pytest

from mgc.tracking.metric_names import curve, translated

CURVE = {"train_loss": 0.5, "train_accuracy": 0.4, "val_loss": 0.9, "val_accuracy": 0.2, "lr": 1e-3, "seconds": 2.0}
KEPT = {"best_epoch": 2, "best_train_accuracy": 0.6, "best_val_accuracy": 0.3, "best_gap": 0.3}


def none(name):
    raise AssertionError(f"asked for the points of {name}")


def test_a_run_of_today_stays_as_it_is():
    metrics = {
        "epoch/val_accuracy": 0.2,
        "val_accuracy": 0.3,
        "val_loss": 0.8,
        "gap": 0.1,
        "best_epoch": 2,
        "seconds": 9,
    }
    assert translated(metrics, none) == metrics


def test_a_curve_of_before_becomes_one_by_epoch_and_the_best_the_kept_model():
    found = translated(CURVE | KEPT | {"test_accuracy": 0.25}, none)
    assert found == {f"epoch/{name}": value for name, value in CURVE.items()} | {
        "best_epoch": 2,
        "train_accuracy": 0.6,
        "val_accuracy": 0.3,
        "gap": 0.3,
        "test_accuracy": 0.25,
    }


@pytest.mark.parametrize(
    ("before", "today"),
    [
        ({"best_val_accuracy": 0.4, "trials": 3}, {"val_accuracy": 0.4, "trials": 3}),  # a sweep
        ({"val_accuracy": 0.5, "val_accuracy_sd": 0.1}, {"val_accuracy": 0.5, "val_accuracy_sd": 0.1}),  # seeds
        (
            {"training_accuracy": 0.9, "validation_accuracy": 0.5, "seconds": 3},  # the SVM
            {"train_accuracy": 0.9, "val_accuracy": 0.5, "seconds": 3},
        ),
        ({"validation_macro_f1": 0.5, "validation_clips": 8}, {"val_macro_f1": 0.5, "val_clips": 8}),
        ({"val_accuracy": 0.5, "validation_accuracy": 0.6}, {"val_accuracy": 0.5}),  # the mean of seeds goes first
    ],
)
def test_figures_of_before_have_their_names_of_today(before, today):
    assert translated(before, none) == today


def test_of_a_fit_that_began_before_and_ended_today_the_kept_model_counts():
    """MLflow gives the old curve's last point for ``val_accuracy``, because its step is the greater."""
    points = {
        "val_accuracy": [(1, 0.1), (2, 0.2), (0, 0.35), (0, 0.36)],
        "train_accuracy": [(1, 0.3), (2, 0.4), (0, 0.7)],
    }
    mixed = CURVE | {"epoch/train_loss": 0.4, "epoch/val_accuracy": 0.25, "best_epoch": 3}
    assert translated(mixed, lambda name: points.get(name, [(1, 9.0)])) == {
        "epoch/train_loss": 0.4,
        "epoch/val_accuracy": 0.25,
        "best_epoch": 3,
        "val_accuracy": 0.36,
        "train_accuracy": 0.7,
    }


def test_a_curve_is_read_by_its_name_of_today_else_by_that_of_before_and_without_the_kept_models_point():
    before = {"val_accuracy": [(0, 0.9), (2, 0.2), (1, 0.1), (2, 0.3)]}
    assert curve("epoch/val_accuracy", lambda name: before.get(name, [])) == {2: 0.3, 1: 0.1}
    today = before | {"epoch/val_accuracy": [(1, 0.5)]}
    assert curve("epoch/val_accuracy", lambda name: today.get(name, [])) == {1: 0.5}
    assert curve("epoch/lr", lambda name: today.get(name, [])) == {}
