"""Names of metrics in MLflow, and the names that runs of before used for them.

epoch/train_loss, epoch/val_accuracy, …         the curve of a fit, a point an epoch
train_accuracy, val_accuracy, gap, best_epoch   the kept model (of a parent: the mean; of a sweep: the best trial)
val_*, test_*                                   an evaluation: accuracy, ci95_low, macro_f1, ece, ece_calibrated,
                                                temperature, sure_share, sure_accuracy, …

Before, a curve had the plain names, the kept model ``best_val_accuracy``, a sweep's best trial too, the SVM and an
evaluation ``validation_accuracy``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

EPOCH = "epoch/"
"""Prefix of a metric that is logged each epoch."""
SPLITS = {"training": "train", "validation": "val", "test": "test"}
"""How the name of a metric begins, by split."""

_CURVE = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "seconds")
_KEPT = {"best_train_accuracy": "train_accuracy", "best_val_accuracy": "val_accuracy", "best_gap": "gap"}
_PREFIXES = {"validation_": "val_", "training_": "train_"}

Points: TypeAlias = Callable[[str], list[tuple[int, float]]]
"""Reads a metric's steps and values, in the order of logging."""


def translated(metrics: dict[str, float], points: Points) -> dict[str, float]:
    """Rename the metrics of a run of before; those of a run of today stay as they are.

    Parameters
    ----------
    metrics
        The last value of each metric, by name.
    points
        Reads a metric's points: of a fit that the code of before began and that of today ended, MLflow has the old
        curve's last point for the metric's value, because its epoch is the greater step.

    Returns
    -------
    dict
        The same by the names of today.
    """
    found = dict(metrics)
    if "train_loss" in metrics:  # only a curve of before had this name
        curve = {name: found.pop(name) for name in _CURVE if name in metrics}
        if EPOCH + "train_loss" in metrics:
            kept = {name: [value for step, value in points(name) if step == 0] for name in curve}
            found |= {name: values[-1] for name, values in kept.items() if values}
        else:
            found |= {EPOCH + name: value for name, value in curve.items()}
    renamed = {old: new for old, new in _KEPT.items() if old in found}
    for old, new in _PREFIXES.items():
        renamed |= {name: new + name.removeprefix(old) for name in found if name.startswith(old)}
    for name, now in renamed.items():
        found.setdefault(now, found.pop(name))
    return found


def curve(name: str, points: Points) -> dict[int, float]:
    """Read a metric over epochs, under its name or, of a run of before, its old one.

    Parameters
    ----------
    name
        Name of today: ``epoch/val_accuracy``.
    points
        Reads a metric's points.

    Returns
    -------
    dict
        Values by epoch; of a point that was logged twice the later.
    """
    found = points(name)
    if not found and name.startswith(EPOCH):
        found = points(name.removeprefix(EPOCH))
    return {step: value for step, value in found if step > 0}
