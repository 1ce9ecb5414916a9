"""Ray Tune at work for a sweep: Optuna proposes and ASHA stops what lags; or a list of models is trained."""

from __future__ import annotations

import logging
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import ray
from ray import tune as ray_tune

from mgc.errors import InputError
from mgc.fit_state import history
from mgc.ray_session import connect
from mgc.scoreboard import Scoreboard
from mgc.space import Space
from mgc.sweep import TRIALS, Sweep, Task, Trial
from mgc.trial import METRIC, run_trial

if TYPE_CHECKING:
    from mgc.learning import LearningSet

SNAPSHOT_SECONDS = "1"
"""How often Tune writes down what it knows; a killed driver loses no more of the sampler's history."""
GRACE = 4
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
        trainable = ray_tune.with_parameters(
            run_trial, sweep=sweep, shared={"data": ray.put(data)}, resources=self.resources
        )
        own = {"cpu": 0.0, "gpu": 0.0} if sweep.config.workers_per_trial > 1 else self.resources
        self.trainable = ray_tune.with_resources(trainable, own)
        self.epochs = int(sweep.base["epochs"])
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
        from optuna.samplers import RandomSampler, TPESampler
        from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
        from ray.tune.search.optuna import OptunaSearch

        config = self.sweep.config
        over = _Budget(config.time_budget)
        watch = _Watch(self.sweep, "search", config.trials)
        path = self.folder / "search"
        if ray_tune.Tuner.can_restore(str(path)):  # not before Tune's first snapshot
            tuner = ray_tune.Tuner.restore(str(path), self.trainable, resume_unfinished=True, restart_errored=False)
        else:
            grid, searcher, seed = {}, None, int(self.sweep.base["seed"])
            if config.search == "grid":
                grid = {name: ray_tune.grid_search(choices) for name, choices in space.grid().items()}
            else:
                samplers = {"tpe": TPESampler, "random": RandomSampler}
                searcher = OptunaSearch(space.suggest, METRIC, mode="max", sampler=samplers[config.search](seed=seed))
            asha = ASHAScheduler(
                time_attr="epoch",
                max_t=self.epochs,
                grace_period=max(1, self.epochs // GRACE),
                reduction_factor=GRACE,
            )
            tuner = ray_tune.Tuner(
                self.trainable,
                param_space=grid,
                tune_config=ray_tune.TuneConfig(
                    metric=METRIC,
                    mode="max",
                    num_samples=1 if grid else config.trials,
                    max_concurrent_trials=self.concurrent,
                    search_alg=searcher,
                    scheduler=asha if config.asha else FIFOScheduler(),
                    trial_dirname_creator=_Names(self.sweep.folder / TRIALS),
                    reuse_actors=True,  # a new process takes seconds to import what it needs
                ),
                run_config=ray_tune.RunConfig(
                    name=path.name, storage_path=str(path.parent), verbose=0, callbacks=[watch], stop=over
                ),
            )
        names = self._fit(tuner, over)
        for trial in self.sweep.trials():
            if trial.name not in names:  # it began after what Tune last wrote down
                trial.forget()
        if len(names) < config.trials and not over.passed:
            raise KeyboardInterrupt
        return names

    def train(self, tasks: list[Task], title: str) -> None:
        """Train models, but for those that are kept or have failed.

        Raises
        ------
        KeyboardInterrupt
            It was interrupted; it can be gone on with.
        """
        waiting = [task for task in tasks if self.sweep.trial(task.name).outcome is None]
        if not waiting:
            return
        watch = _Watch(self.sweep, title, len(waiting))
        tuner = ray_tune.Tuner(
            self.trainable,
            param_space={"task": ray_tune.grid_search([asdict(task) for task in waiting])},
            tune_config=ray_tune.TuneConfig(
                metric=METRIC,
                mode="max",
                max_concurrent_trials=self.concurrent,
                trial_dirname_creator=_task_name,
                reuse_actors=True,
            ),
            run_config=ray_tune.RunConfig(
                name=f"{title} {time.time_ns()}", storage_path=str(self.folder), verbose=0, callbacks=[watch]
            ),
        )
        self._fit(tuner, None)

    def _fit(self, tuner: Any, budget: _Budget | None) -> list[str]:
        """Run a tuner; say how trials ended that did not say so themselves; return the names of those that ended."""
        trials = tuner.fit()._experiment_analysis.trials
        ended = {Path(trial.local_path).name: trial for trial in trials if trial.is_finished()}
        for name, tune_trial in ended.items():
            trial = self.sweep.trial(name)
            outcome = trial.outcome
            if outcome == "kept":
                trial.end("kept")
            elif tune_trial.status == "ERROR":
                trial.end("failed", _reason(tune_trial))
            elif outcome is None and budget:
                trial.end("stopped", f"the time budget of {budget.seconds:g} s was over")
        if len(ended) < len(trials):  # Tune takes Ctrl-C for itself
            raise KeyboardInterrupt
        return list(ended)


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


class _Names:
    """Names trials in the order in which they begin."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, tune_trial: Any) -> str:
        number = 1
        while True:
            try:
                (self.folder / f"trial {number}").mkdir()
            except FileExistsError:
                number += 1
            else:
                return f"trial {number}"


def _task_name(tune_trial: Any) -> str:
    return str(tune_trial.config["task"]["name"])


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

    def __init__(self, sweep: Sweep, title: str, total: int) -> None:
        self.sweep, self.title, self.total = sweep, title, total
        self.board: Scoreboard | None = None

    def setup(self, **_: Any) -> None:
        self.board = Scoreboard(self.title, self.total, int(self.sweep.base["epochs"]))
        self.board.start()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        mine, task = self._mine(trial), trial.config.get("task")
        if self.board:
            if points := history(mine.folder):  # of an earlier process
                best, train = max(point.val_accuracy for point in points), points[-1].train_accuracy
                self.board.resume(mine.name, {}, "running", points[-1].epoch, best, train)
            self.board.began(mine.name, task["course"][-1][1] if task else trial.config)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        if self.board:
            self.board.epoch(self._mine(trial).name, result["epoch"], result[METRIC], result["train_accuracy"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        mine, epoch = self._mine(trial), trial.last_result.get("epoch", 0)
        if mine.outcome is None and "task" not in trial.config:
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
        return self.sweep.trial(Path(trial.local_path).name)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"board": None}


def _reason(trial: Any) -> str:
    """Why a trial failed, in one line."""
    return str(trial.get_error() or "its process died").strip().splitlines()[-1]
