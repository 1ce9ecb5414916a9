"""Sweeps made by hand, whose tasks are trained in this process: all of a sweep but Ray."""

import mlflow
from matplotlib.figure import Figure

from mgc.config import ModelConfig, OptimConfig, SweepConfig, TrainConfig
from mgc.core.errors import RunError
from mgc.evaluation import figures as pictures
from mgc.sweep import trial
from mgc.sweep.sweep_folder import Sweep
from mgc.tracking import store
from mgc.tracking.runs import EXPERIMENT, Run
from mgc.training.fit_state import discard, history
from mgc.training.placement import Place

BASE = TrainConfig(
    model=ModelConfig(channels=(4, 8), norm=True, head="avgmax", dropout=0.0),
    optim=OptimConfig(batch_size=8),
    epochs=3,
    seed=2,
)


class Killed(SystemExit):
    """As a process that dies: nobody says how the run ended."""


def made(features, folder, base=BASE, space=None, **settings) -> Sweep:
    """A sweep as ``mgc tune`` begins one."""
    uri = store.open_store(features.folder)
    parent = Run.start(uri, EXPERIMENT, name=folder.name, step="tune", config={})
    place, fingerprint = str(features.folder), features.manifest.fingerprint
    sweep = Sweep(folder, place, fingerprint, base.to_dict(), space or {}, SweepConfig(**settings), uri, parent.id)
    sweep.write()
    return sweep


def trainer(sweep, data, tell=lambda task, point: None):
    """What ``Tuner.train`` is: trains tasks, here one after the other, and says which have failed."""

    def train(tasks, title):
        for task in tasks:
            mine = sweep.trial(task.name)
            if mine.outcome is None and not (task.until and len(history(mine.folder)) >= task.until):
                mine.assign(task)
                learning = trial._Learning(mine, data, None, Place(1, gpu=False))
                try:
                    with learning.run.closing():
                        learning.go(lambda point, task=task: tell(task, point))
                except RunError as error:
                    mine.end("failed", str(error))
            if mine.outcome == "kept":
                mine.end("kept")

    return train


def keep_little(monkeypatch) -> None:
    """Keep a model without its pictures and its program, which take longer than all else."""
    monkeypatch.setattr(trial, "keep", lambda run, fitted, data: discard(fitted.checkpoint))


def draw_nothing(monkeypatch) -> None:
    """Keep a model with empty pictures."""
    for name in ("learning_curves", "confusion_matrix", "spectrograms"):
        monkeypatch.setattr(pictures, name, lambda *_: Figure(figsize=(1, 1)))


def told(run, name="val_accuracy") -> list[tuple[int, float]]:
    """Steps and values of a metric, each as often as MLflow has it."""
    points = mlflow.MlflowClient(run.uri).get_metric_history(run.id, name)
    return sorted((point.step, point.value) for point in points)
