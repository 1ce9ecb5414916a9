"""Ray Tune at work for a sweep: a search (a sampler proposes, ASHA stops what lags), or a list of models to train."""

from __future__ import annotations

import logging
import os
import shutil
import time
from typing import TYPE_CHECKING, Any

import optuna
import ray
from ray import tune as ray_tune

from mgc.core.ray_session import connect
from mgc.sweep.callbacks import TimeBudget, TrialWatch, reason_of
from mgc.sweep.resources import share
from mgc.sweep.searcher import FolderSearcher, asha, ended_curves
from mgc.sweep.trial import METRIC, run_trial

if TYPE_CHECKING:
    from mgc.dataset.protocols import LearningSet
    from mgc.sweep.space import Space
    from mgc.sweep.sweep_folder import SweepFolder, Task

SNAPSHOT_SECONDS = "3600"
"""How often Tune writes a snapshot of its own, of which nothing is read."""


class TuneSession:
    """Trains a sweep's trials on Ray, which it starts or joins.

    Parameters
    ----------
    sweep
        The sweep whose folder holds the trials.
    data
        Training and validation clips of all trials; a copy goes to Ray's object store.

    Raises
    ------
    InputError
        The machine or the cluster has not the CPUs or GPUs that a trial is to have.
    """

    def __init__(self, sweep: SweepFolder, data: LearningSet) -> None:
        self.sweep = sweep
        self.folder = sweep.folder / "tune"
        cpus = connect()
        gpus = float(ray.cluster_resources().get("GPU", 0))
        self.concurrent, self.resources = share(sweep.config, cpus, gpus)
        shared = ray.put(data)
        trainable = ray_tune.with_parameters(run_trial, sweep=sweep, shared={"data": shared}, resources=self.resources)
        # a trial with workers leaves the CPUs to them; Tune wants it to take something
        own = {"memory": 2.0**20} if sweep.config.workers_per_trial > 1 else self.resources
        self.trainable = ray_tune.with_resources(trainable, own)
        os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # whose banner ignores verbose=0
        os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", SNAPSHOT_SECONDS)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a trial's error is kept with its run, and said

    def search(self, space: Space) -> list[str]:
        """Run the search, or what is left of it.

        Parameters
        ----------
        space
            The search space.

        Returns
        -------
        list of str
            Names of the trials, all of which have ended.

        Raises
        ------
        KeyboardInterrupt
            The search was interrupted; it can be resumed.
        """
        config, begun = self.sweep.config, self.sweep.searched()
        ended = ended_curves(begun)
        budget = TimeBudget(config.time_budget)
        if left := config.trials - len(ended):
            self._fit(
                TrialWatch(self.sweep, "search", config.trials, ended),
                stop=budget,
                search_alg=FolderSearcher(self.sweep, space, begun, ended),
                num_samples=left,
                scheduler=asha(self.sweep.epochs, ended) if config.asha else None,
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
        """Train models, but for those that have ended already.

        Parameters
        ----------
        tasks
            The models.
        title
            Of the table that is shown meanwhile.

        Raises
        ------
        KeyboardInterrupt
            It was interrupted; it can be resumed.
        """
        waiting = [task for task in tasks if self.sweep.trial(task.name).outcome is None]
        for task in waiting:
            self.sweep.trial(task.name).assign(task)
        if waiting:
            sample = {"trial": ray_tune.grid_search([task.name for task in waiting])}
            self._fit(TrialWatch(self.sweep, title, len(waiting), {}), sample)

    def _fit(
        self, watch: TrialWatch, sample: dict[str, Any] | None = None, stop: TimeBudget | None = None, **tune: Any
    ) -> None:
        """Run trials on Tune; what lasts is in the trials' folders, so Tune's own files are deleted."""
        tuner = ray_tune.Tuner(
            self.trainable,
            param_space=sample or {},
            tune_config=ray_tune.TuneConfig(
                # ASHA has been told the metric already, because it has been told of ended trials
                **({} if tune.get("scheduler") else {"metric": METRIC, "mode": "max"}),
                max_concurrent_trials=self.concurrent,
                trial_dirname_creator=lambda trial: str(trial.config["trial"]),
                reuse_actors=True,  # a new process takes seconds to import what it needs
                **tune,
            ),
            run_config=ray_tune.RunConfig(
                name=str(time.time_ns()), storage_path=str(self.folder), verbose=0, callbacks=[watch], stop=stop
            ),
        )
        tuner.fit()
        for each in watch.trials:
            trial = self.sweep.trial(each.config["trial"])
            if each.status == each.ERROR and trial.outcome != "kept":
                trial.end("failed", reason_of(each))
        shutil.rmtree(self.folder, ignore_errors=True)
        if not all(each.is_finished() for each in watch.trials):  # Tune takes Ctrl-C for itself
            raise KeyboardInterrupt
