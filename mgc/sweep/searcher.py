"""What a resumed search knows: trials of earlier processes, for Optuna's sampler and for ASHA.

Tune's own ``OptunaSearch`` resumes from a snapshot that lags behind the trials, and that a kill can spoil. Here the
history is that of the trials' folders and runs.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeAlias

from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from mgc.sweep.samplers import Sampler
from mgc.sweep.sweep_folder import CURVE, Task, trial_name
from mgc.sweep.trial import METRIC

if TYPE_CHECKING:
    from mgc.sweep.space import Space
    from mgc.sweep.sweep_folder import SweepFolder, TrialFolder

Curves: TypeAlias = dict[str, dict[int, float]]
"""Best validation accuracy so far, by epoch, of each ended trial, by name."""
REDUCTION = 4
"""ASHA compares trials first after this part of their epochs, and lets the best of so many go on."""


def ended_curves(trials: list[TrialFolder]) -> Curves:
    """The curves of the trials that have ended, from their MLflow runs."""
    curves: Curves = {}
    for trial in trials:
        if trial.outcome:
            points = trial.run.history((CURVE,)) if trial.run else []
            best = itertools.accumulate((point[CURVE] for point in points), max)
            curves[trial.name] = {int(point["epoch"]): value for point, value in zip(points, best, strict=True)}
    return curves


def asha(epochs: int, ended: Curves) -> ASHAScheduler:
    """Ray's scheduler of asynchronous successive halving, which has seen what ended trials reported.

    Parameters
    ----------
    epochs
        The most that a trial gets.
    ended
        Curves of trials of earlier processes, oldest first, which running trials are compared with.
    """
    scheduler = ASHAScheduler(
        time_attr="epoch",
        metric=METRIC,
        mode="max",
        max_t=epochs,
        grace_period=max(1, epochs // REDUCTION),
        reduction_factor=REDUCTION,
    )
    for name, curve in ended.items():
        trial = SimpleNamespace(trial_id=name)  # of a trial the scheduler asks for nothing else
        scheduler.on_trial_add(None, trial)
        for epoch, accuracy in curve.items():
            scheduler.on_trial_result(None, trial, {"epoch": epoch, METRIC: accuracy})
        scheduler.on_trial_remove(None, trial)
    return scheduler


class FolderSearcher(Searcher):  # type: ignore[misc]
    """Hands trials to Tune: first those that an earlier process could not end, then new ones.

    Parameters
    ----------
    sweep
        The sweep whose folder holds the trials.
    space
        The search space.
    begun
        Trials of earlier processes, in their order.
    ended
        The curves of those that have ended.
    """

    def __init__(self, sweep: SweepFolder, space: Space, begun: list[TrialFolder], ended: Curves) -> None:
        super().__init__(metric=METRIC, mode="max")
        self.sweep = sweep
        self.sampler = Sampler(space, sweep.config.search, sweep.seed)
        self.number = len(begun)
        self.waiting = [trial for trial in begun if trial.name not in ended]
        self.running: dict[str, int] = {}
        """Numbers of trials by Tune's ids."""
        for number, trial in enumerate(begun, 1):
            self.sampler.replay(number, trial.task.differences)
            if trial.name in ended:
                self.sampler.tell(number, max(ended[trial.name].values(), default=None))

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """Give a trial its task.

        Parameters
        ----------
        trial_id
            Tune's id.

        Returns
        -------
        dict
            ``trial``: its name, by which its process finds its folder.
        """
        if self.waiting:
            trial = self.waiting.pop(0)
        else:
            self.number += 1
            trial = self.sweep.trial(trial_name(self.number))
            differences = self.sampler.ask(self.number)
            trial.assign(Task(trial.name, differences, self.sweep.seed, self.sweep.parent_run_id))
        self.running[trial_id] = int(trial.name.rpartition(" ")[2])
        return {"trial": trial.name}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the sampler of a trial that has ended.

        Parameters
        ----------
        trial_id
            Tune's id.
        result
            Its last report, if there was one.
        error
            Whether it failed.
        """
        self.sampler.tell(self.running.pop(trial_id), result[METRIC] if result and METRIC in result else None)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the folders have it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""
