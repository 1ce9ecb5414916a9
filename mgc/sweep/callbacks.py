"""What Ray Tune calls while trials run: the clock of the time budget, and who shows and records how trials end."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ray import tune as ray_tune

from mgc.core.errors import InputError, last_line
from mgc.sweep.live_table import LiveTable
from mgc.sweep.trial import METRIC
from mgc.tracking.runs import REASON_TAG
from mgc.training.fit_state import history

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from mgc.sweep.searcher import Curves
    from mgc.sweep.sweep_folder import SweepFolder, TrialFolder


class TimeBudget(ray_tune.Stopper):  # type: ignore[misc]
    """Ends a search after a time; a resumed search has all of it again.

    Parameters
    ----------
    seconds
        From now on; 0 is no limit.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.began = time.time()

    @property
    def passed(self) -> bool:
        """Whether the time is over."""
        return bool(self.seconds) and time.time() - self.began >= self.seconds

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether to stop one trial: never."""
        return False

    def stop_all(self) -> bool:
        """Whether to stop all trials."""
        return self.passed

    def __getstate__(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class TrialWatch(ray_tune.Callback):  # type: ignore[misc]
    """Shows running trials in a table, and records those that ASHA stops as pruned.

    Parameters
    ----------
    sweep
        The sweep whose folder holds the trials.
    title
        Of the table.
    total
        How many trials there are, of this and of earlier processes.
    ended
        Curves of trials of earlier processes.
    """

    def __init__(self, sweep: SweepFolder, title: str, total: int, ended: Curves) -> None:
        self.sweep, self.title, self.total, self.ended = sweep, title, total, ended
        self.table: LiveTable | None = None
        self.trials: list[Trial] = []
        """All of Tune's trials, when the experiment has ended."""

    # The methods are Tune's; their parameters are described at ray.tune.Callback.

    def setup(self, **_: Any) -> None:
        """Show the table, with the trials of earlier processes."""
        self.table = LiveTable(self.title, self.total, self.sweep.epochs)
        self.table.start()
        for name, curve in self.ended.items():
            trial, best = self.sweep.trial(name), max(curve.values(), default=None)
            self.table.update(
                name,
                differences=trial.task.differences,
                state=trial.outcome,
                epoch=max(curve, default=0),
                val_accuracy=best,
                earlier=True,
            )

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """Show a trial, which may have epochs of an earlier process behind it."""
        mine = self._folder_of(trial)
        if self.table:
            self.table.update(mine.name, differences=mine.task.differences, state="running")
            with suppress(InputError):  # a damaged state, which the trial itself will fail on
                for point in history(mine.folder):
                    self.table.update(
                        mine.name,
                        epoch=point.epoch,
                        val_accuracy=point.val_accuracy,
                        train_accuracy=point.train_accuracy,
                        earlier=True,
                    )

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **_: Any
    ) -> None:
        """Show an epoch."""
        if self.table:
            name, train_accuracy = self._folder_of(trial).name, result["train_accuracy"]
            self.table.update(name, epoch=result["epoch"], val_accuracy=result[METRIC], train_accuracy=train_accuracy)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """Show and record an end: kept, stopped by ASHA, or failed by an error, which the trial has recorded."""
        mine = self._folder_of(trial)
        if mine.outcome is None:
            epoch = trial.last_result.get("epoch", 0)
            mine.end("pruned", f"ASHA stopped it after epoch {epoch}: it was not among the best there")
        if self.table:
            reason = mine.run.record().tags.get(REASON_TAG, "") if mine.outcome == "failed" and mine.run else ""
            self.table.update(mine.name, state=mine.outcome, reason=reason)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """Record and show the end of a trial whose process died again and again."""
        mine, reason = self._folder_of(trial), died(trial)
        if mine.outcome is None:
            mine.end("failed", reason)
        if self.table:
            self.table.update(mine.name, state=mine.outcome, reason=reason)

    def on_experiment_end(self, trials: list[Trial], **_: Any) -> None:
        """Leave the table as it is."""
        self.trials = trials
        if self.table:
            self.table.stop()

    def _folder_of(self, trial: Trial) -> TrialFolder:
        return self.sweep.trial(trial.config["trial"])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"table": None, "trials": []}


def died(trial: Trial) -> str:
    """Why a trial's process died, in one line."""
    return last_line(str(trial.get_error() or "its process died"))
