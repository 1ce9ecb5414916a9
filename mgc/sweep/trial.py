"""One trial of a sweep, in its own process: a plain function around a fit, which tells Ray Tune of each epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
import torch
from ray import tune as ray_tune

from mgc.sweep.sweep_folder import Sweep, Trial
from mgc.tracking import runs as tracking
from mgc.training.fit_state import Epoch, adopt, history, signature_of
from mgc.training.placement import Place
from mgc.training.run_logging import keep

if TYPE_CHECKING:
    from mgc.dataset.protocols import LearningSet
    from mgc.training.loop import Fitted

METRIC = "val_accuracy"
"""What Tune hears of: the best so far, which is what the winner is chosen by."""


class _PauseError(Exception):
    """The epoch to pause after is reached."""


def run_trial(
    sample: dict[str, Any], *, sweep: Sweep, shared: dict[str, ray.ObjectRef[LearningSet]], resources: dict[str, float]
) -> None:
    """Do a trial's task; taken up again where it was interrupted.

    Tune hears of the best accuracy so far after each epoch, but of the last one only when the model is kept: stopping
    a trial there costs nothing.

    Parameters
    ----------
    sample
        ``trial``: its name.
    shared
        The learning set in Ray's object store, of which there is one copy a machine.
    resources
        ``cpu`` and ``gpu`` of this process.
    """
    trial = sweep.trial(sample["trial"])
    task = trial.task
    last = task.until or sweep.epochs
    best = 0.0

    def tell(point: Epoch) -> None:
        nonlocal best
        best = max(best, point.val_accuracy)
        if point.epoch < last:
            ray_tune.report({METRIC: best, "epoch": point.epoch, "train_accuracy": point.train_accuracy})

    if trial.outcome != "kept":
        workers = sweep.config.workers_per_trial
        torch.set_num_threads(max(1, math.floor(resources["cpu"])))
        place = Place(workers, gpu=resources["gpu"] > 0)
        learning = _Learning(trial, ray.get(shared["data"]), shared["data"], place)
        with learning.run.closing():
            learning.go(tell)
    train = trial.figures["train_accuracy"] if trial.outcome == "kept" else history(trial.folder)[-1].train_accuracy
    best = trial.figures["val_accuracy"] if trial.outcome == "kept" else best
    ray_tune.report({METRIC: best, "epoch": last, "train_accuracy": train})


@dataclass
class _Learning:
    """A task under way."""

    trial: Trial
    data: LearningSet
    shared: ray.ObjectRef[LearningSet] | None
    """Where the data lies in Ray's object store."""
    place: Place

    def __post_init__(self) -> None:
        self.task = self.trial.task
        self.run = self.trial.begin(self.data.leak)

    def go(self, tell: Any) -> None:
        """Train to the task's end and keep the model, or to the epoch to pause after."""
        course = self.task.course
        for (first, differences), ends in zip(course, [*(later - 1 for later, _ in course[1:]), None], strict=True):
            until = ends or self.task.until
            if until and len(history(self.trial.folder)) >= until:
                continue  # done before this process
            fitted = self._leg(differences, first, until, tell)
            if fitted:
                keep(self.run, fitted, self.data)
                self.run.tag({tracking.OUTCOME_TAG: "kept"})

    def _leg(self, differences: dict[str, Any], first: int, until: int | None, tell: Any) -> Fitted | None:
        """Train with one configuration, up to an epoch; None if that is not the last."""
        config = self.trial.sweep.train_config(differences, self.task.seed)
        if first > 1:
            adopt(self.trial.folder, self.trial.folder, signature_of(config, self.data))

        def heard(point: Epoch) -> None:
            if point.epoch >= self.task.own_from:
                self.run.metrics(point.metrics(), epoch=point.epoch, at=point.ended)
            tell(point)
            if point.epoch == until:
                raise _PauseError

        try:
            return self.place.fit(config, self.data, self.trial.folder, heard, self.shared)
        except _PauseError:
            return None
