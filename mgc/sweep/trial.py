"""One trial of a sweep, in its own process: a plain function around a fit, which reports each epoch to Ray Tune."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import ray
import torch
from ray import tune as ray_tune

from mgc.core.errors import last_line
from mgc.tracking.runs import OUTCOME_TAG
from mgc.training.placement import Place
from mgc.training.run_logging import keep

if TYPE_CHECKING:
    from collections.abc import Callable

    from mgc.dataset.protocols import LearningSet
    from mgc.sweep.sweep_folder import SweepFolder, TrialFolder
    from mgc.training.fit_state import Epoch

METRIC = "val_accuracy"
"""What is reported to Tune: the best validation accuracy so far, by which the winner is chosen too."""


def run_trial(
    sample: dict[str, Any],
    *,
    sweep: SweepFolder,
    shared: dict[str, ray.ObjectRef[LearningSet]],
    resources: dict[str, float],
) -> None:
    """Train a trial's model, resumed where an earlier process was interrupted.

    Tune hears of every epoch when it ends, but of the last one only when the model is kept: a trial that is stopped by
    that report loses nothing. An error is recorded here and not raised, so that Tune starts again only those trials
    whose process or node has died.

    Parameters
    ----------
    sample
        ``trial``: its name.
    sweep
        The sweep that it belongs to.
    shared
        ``data``: the learning set in Ray's object store, of which there is one copy per machine.
    resources
        ``cpu`` and ``gpu``: the shares of this process.
    """
    trial = sweep.trial(sample["trial"])
    try:
        _run(trial, shared, resources)
    except Exception as error:  # the same again would raise it again; a process or a node that dies is another matter
        trial.end("failed", reason_of(error))


def _run(trial: TrialFolder, shared: dict[str, ray.ObjectRef[LearningSet]], resources: dict[str, float]) -> None:
    sweep, best = trial.sweep, 0.0

    def report(point: Epoch) -> None:
        nonlocal best
        best = max(best, point.val_accuracy)
        if point.epoch < sweep.epochs:
            ray_tune.report({METRIC: best, "epoch": point.epoch, "train_accuracy": point.train_accuracy})

    if trial.outcome != "kept":
        torch.set_num_threads(max(1, math.floor(resources["cpu"])))
        workers = sweep.config.workers_per_trial
        place = Place(workers, resources["gpu"] > 0, on_ray=workers > 1, min_workers=workers)
        train_trial(trial, ray.get(shared["data"]), place, report, shared["data"])
    figures = trial.figures
    ray_tune.report(
        {METRIC: figures["val_accuracy"], "epoch": sweep.epochs, "train_accuracy": figures["train_accuracy"]}
    )


def reason_of(error: BaseException) -> str:
    """Why a trial failed, in one line: the last of the error's message."""
    return last_line(f"{type(error).__name__}: {error}")


def train_trial(
    trial: TrialFolder,
    data: LearningSet,
    place: Place,
    on_epoch: Callable[[Epoch], None],
    shared: ray.ObjectRef[LearningSet] | None = None,
) -> None:
    """Fit a trial's model and keep it in the trial's folder and its MLflow run.

    Parameters
    ----------
    trial
        What to train.
    data
        Training and validation clips.
    place
        Device and number of workers.
    on_epoch
        Called after each epoch; a resumed fit begins with the epochs that it has behind it.
    shared
        Where ``data`` lies in Ray's object store, if it does.
    """
    task, run = trial.task, trial.begin(data.leak)

    def log(point: Epoch) -> None:
        run.metrics(point.metrics(), epoch=point.epoch, at=point.ended)
        on_epoch(point)

    with run.closing():
        config = trial.sweep.train_config(task.differences, task.seed)
        keep(run, place.fit(config, data, trial.folder, log, shared), data)
        run.tag({OUTCOME_TAG: "kept"})
