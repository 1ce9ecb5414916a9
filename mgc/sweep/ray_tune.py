"""Ray Tune at work for a sweep: Optuna proposes and ASHA stops what lags; or a list of models is trained."""

from __future__ import annotations

import itertools
import logging
import math
import os
import shutil
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeAlias

import optuna
import ray
from ray import tune as ray_tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from mgc.core.errors import InputError
from mgc.core.ray_session import connect
from mgc.sweep.live_table import Scoreboard
from mgc.sweep.samplers import Drawing
from mgc.sweep.sweep_folder import Sweep, Task, Trial, trial_name
from mgc.sweep.trial import METRIC, run_trial
from mgc.training.fit_state import history

if TYPE_CHECKING:
    from mgc.dataset.protocols import LearningSet
    from mgc.sweep.space import Space

SNAPSHOT_SECONDS = "3600"
"""How often Tune writes down what it knows, of which nothing is read."""
Reached: TypeAlias = dict[str, dict[int, float]]
"""Of trials that ended in an earlier process, by name: the best validation accuracy so far, by epoch."""
PART = 4
"""ASHA looks at a trial first after this part of its epochs, and lets the best of so many go on."""


class Tuner:
    """A sweep's trials on Ray.

    Raises
    ------
    InputError
        The machine or the cluster has not the GPUs that a trial is to have.
    """

    def __init__(self, sweep: Sweep, data: LearningSet) -> None:
        self.sweep = sweep
        self.folder = sweep.folder / "tune"
        cpus = connect()
        gpus = float(ray.cluster_resources().get("GPU", 0))
        self.concurrent, self.resources = share(sweep, cpus, gpus)
        shared = ray.put(data)
        self.data: LearningSet = ray.get(shared)
        """As it lies in Ray's object store, once a machine; who drops what was given has it in memory once."""
        trainable = ray_tune.with_parameters(run_trial, sweep=sweep, shared={"data": shared}, resources=self.resources)
        # a trial with workers leaves the CPUs to them; Tune wants it to take something
        own = {"memory": 2.0**20} if sweep.config.workers_per_trial > 1 else self.resources
        self.trainable = ray_tune.with_resources(trainable, own)
        os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # whose banner ignores verbose=0
        os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", SNAPSHOT_SECONDS)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a trial's error is kept with its run, and said

    def search(self, space: Space) -> list[str]:
        """Search the space, or go on with it; return the names of the trials, all of which have ended.

        Raises
        ------
        KeyboardInterrupt
            The search was interrupted; it can be gone on with.
        """
        config, known = self.sweep.config, self.sweep.searched()
        left = config.trials - sum(trial.outcome is not None for trial in known)
        budget = _Budget(config.time_budget)
        asha = ASHAScheduler(
            time_attr="epoch",
            max_t=self.sweep.epochs,
            grace_period=max(1, self.sweep.epochs // PART),
            reduction_factor=PART,
        )
        reached = {trial.name: _accuracies(trial) for trial in known if trial.outcome}
        if config.asha:
            _remember(asha, reached)
        if left:
            proposer = _Proposer(self.sweep, space, known, reached)
            watch = _Watch(self.sweep, "search", config.trials, reached)
            self._fit(
                watch,
                {"search_alg": proposer, "num_samples": left, "scheduler": asha if config.asha else None},
                {"stop": budget},
            )
        trials = self.sweep.searched()
        for trial in trials:
            if trial.outcome is None:
                if not budget.passed:
                    raise KeyboardInterrupt
                trial.end("stopped", f"the time budget of {budget.seconds:g} s was over")
        if len(trials) < config.trials and not budget.passed:
            raise KeyboardInterrupt
        return [trial.name for trial in trials]

    def train(self, tasks: list[Task], title: str) -> None:
        """Do tasks, but for those that are done or have failed.

        Raises
        ------
        KeyboardInterrupt
            It was interrupted; it can be gone on with.
        """
        waiting = []
        for task in tasks:
            trial = self.sweep.trial(task.name)
            if trial.outcome is None and not (task.until and len(history(trial.folder)) >= task.until):
                trial.assign(task)
                waiting.append(task.name)
        if waiting:
            watch = _Watch(self.sweep, title, len(waiting), {})
            self._fit(watch, {}, {}, {"trial": ray_tune.grid_search(waiting)})

    def _fit(
        self, watch: _Watch, how: dict[str, Any], run: dict[str, Any], sample: dict[str, Any] | None = None
    ) -> None:
        """Run trials on Tune, of which nothing is needed once they have ended: what is to last is in their folders.

        Raises
        ------
        KeyboardInterrupt
            It was interrupted.
        """
        tuner = ray_tune.Tuner(
            self.trainable,
            param_space=sample or {},
            tune_config=ray_tune.TuneConfig(
                metric=METRIC,
                mode="max",
                max_concurrent_trials=self.concurrent,
                trial_dirname_creator=lambda trial: str(trial.config["trial"]),
                reuse_actors=True,  # a new process takes seconds to import what it needs
                **how,
            ),
            run_config=ray_tune.RunConfig(
                name=str(time.time_ns()), storage_path=str(self.folder), verbose=0, callbacks=[watch], **run
            ),
        )
        trials = tuner.fit()._experiment_analysis.trials
        for each in trials:
            trial = self.sweep.trial(each.config["trial"])
            if each.status == "ERROR" and trial.outcome != "kept":
                trial.end("failed", _reason(each))
        shutil.rmtree(self.folder, ignore_errors=True)
        if not all(each.is_finished() for each in trials):  # Tune takes Ctrl-C for itself
            raise KeyboardInterrupt


class _Proposer(Searcher):  # type: ignore[misc]
    """Hands out a search's trials: first those that an earlier process could not end, then new ones.

    Tune's own ``OptunaSearch`` goes on from a snapshot that lags behind what the trials have come to, and that a kill
    can spoil. Here the history is that of the trials' folders.
    """

    def __init__(self, sweep: Sweep, space: Space, known: list[Trial], reached: Reached) -> None:
        super().__init__(metric=METRIC, mode="max")
        self.sweep = sweep
        self.drawing = Drawing(space, sweep.config.search, sweep.seed)
        self.number = len(known)
        self.waiting = [trial for trial in known if trial.name not in reached]
        self.drawn: dict[str, int] = {}
        for number, trial in enumerate(known, 1):
            self.drawing.again(number, trial.task.course[0][1])
            if trial.name in reached:
                self.drawing.learn(number, max(reached[trial.name].values(), default=None))

    def suggest(self, trial_id: str) -> dict[str, Any]:
        if self.waiting:
            trial = self.waiting.pop(0)
        else:
            self.number += 1
            trial = self.sweep.trial(trial_name(self.number))
            differences = self.drawing.draw(self.number)
            parent = self.sweep.parent_run_id
            trial.assign(Task(trial.name, [(1, differences)], self.sweep.seed, parent))
        self.drawn[trial_id] = int(trial.name.rpartition(" ")[2])
        return {"trial": trial.name}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.drawing.learn(self.drawn.pop(trial_id), result[METRIC] if result and METRIC in result else None)

    def save(self, checkpoint_path: str) -> None:
        """There is nothing to save."""

    def restore(self, checkpoint_path: str) -> None:
        """There is nothing to restore."""


def _accuracies(trial: Trial) -> dict[int, float]:
    """The best validation accuracy so far, by epoch, of a trial of an earlier process."""
    points = trial.run.history(("epoch/val_accuracy",)) if trial.run else []
    best = itertools.accumulate((point["epoch/val_accuracy"] for point in points), max)
    return {int(point["epoch"]): value for point, value in zip(points, best, strict=True)}


def _remember(asha: ASHAScheduler, reached: Reached) -> None:
    """Tell ASHA what trials that have ended came to, which it compares others with."""
    for name, accuracies in reached.items():
        for epoch, accuracy in accuracies.items():
            asha._brackets[0].on_result(SimpleNamespace(trial_id=name), epoch, accuracy)


def share(sweep: Sweep, cpus: int, gpus: float) -> tuple[int, dict[str, float]]:
    """How many trials run at a time, and what each has of the machine's or the cluster's CPUs and GPUs.

    By default a trial has a GPU, or, where there is none, a CPU.

    Raises
    ------
    InputError
        There are not the GPUs or CPUs that even one trial is to have.
    """
    config = sweep.config
    if config.gpus_per_trial and not gpus:
        raise InputError(f"--gpus-per-trial {config.gpus_per_trial:g}: there is no GPU; leave it out")
    workers = config.workers_per_trial
    if workers > 1:
        units = int(gpus or cpus)
        if units < workers:
            kind = "GPUs" if gpus else "CPUs"
            raise InputError(f"--workers-per-trial {workers}: there are {units} {kind}; take fewer")
        return config.concurrent or units // workers, {"cpu": 1.0, "gpu": float(bool(gpus))}
    if not gpus:
        concurrent = config.concurrent or cpus
        return concurrent, {"cpu": _part(cpus, concurrent), "gpu": 0.0}
    on_one = math.ceil((config.concurrent or gpus) / gpus)  # Ray gives no trial parts of two
    each = config.gpus_per_trial or _part(1, on_one)
    concurrent = config.concurrent or max(1, int(gpus)) * int(1 / each)
    return concurrent, {"cpu": _part(cpus, concurrent), "gpu": each}


def _part(units: float, of: int) -> float:
    """A share of units in Ray's precision, of whole ones where there are enough."""
    return float(units // of) if units >= of else math.floor(10_000 * units / of) / 10_000


class _Budget(ray_tune.Stopper):  # type: ignore[misc]
    """Ends a search that has taken its time; a search that is gone on with has it anew."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.began = time.time()

    @property
    def passed(self) -> bool:
        return bool(self.seconds) and time.time() - self.began >= self.seconds

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.passed

    def __getstate__(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class _Watch(ray_tune.Callback):  # type: ignore[misc]
    """Shows how trials go, and says of those that ASHA stops that they are pruned."""

    def __init__(self, sweep: Sweep, title: str, total: int, reached: Reached) -> None:
        self.sweep, self.title, self.total, self.reached = sweep, title, total, reached
        self.board: Scoreboard | None = None

    def setup(self, **_: Any) -> None:
        self.board = Scoreboard(self.title, self.total, self.sweep.epochs)
        self.board.start()
        for name, accuracies in self.reached.items():
            trial, epoch = self.sweep.trial(name), max(accuracies, default=0)
            if outcome := trial.outcome:
                best = max(accuracies.values(), default=None)
                self.board.resume(name, trial.task.course[-1][1], outcome, epoch, best, None)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        mine = self._mine(trial)
        if self.board:
            with suppress(InputError):  # a damaged state, which the trial itself will fail on
                if points := history(mine.folder):  # of an earlier process
                    best, train = max(point.val_accuracy for point in points), points[-1].train_accuracy
                    self.board.resume(mine.name, {}, "running", points[-1].epoch, best, train)
            self.board.began(mine.name, mine.task.course[-1][1])

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        if self.board:
            self.board.epoch(self._mine(trial).name, result["epoch"], result[METRIC], result["train_accuracy"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        mine, epoch = self._mine(trial), trial.last_result.get("epoch", 0)
        if mine.outcome is None and mine.task.until is None:
            mine.end("pruned", f"ASHA stopped it after epoch {epoch}: it was not among the best there")
        if self.board:
            self.board.ended(mine.name, mine.outcome or "paused")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        if self.board:
            self.board.ended(self._mine(trial).name, "failed", _reason(trial))

    def on_experiment_end(self, trials: list[Any], **_: Any) -> None:
        if self.board:
            self.board.stop()

    def _mine(self, trial: Any) -> Trial:
        return self.sweep.trial(trial.config["trial"])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"board": None}


def _reason(trial: Any) -> str:
    """Why a trial failed, in one line."""
    return str(trial.get_error() or "its process died").strip().splitlines()[-1]
