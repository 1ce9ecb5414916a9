"""Ray Tune at work for a sweep: a search (a sampler proposes, ASHA stops what lags), or a list of models to train."""

from __future__ import annotations

import logging
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import optuna
import ray
from ray import tune as ray_tune

from mgc.core.cluster import Demand, ask_nodes, check_shared, total, working_nodes
from mgc.core.errors import InputError
from mgc.core.ray_session import connect, mute, on_cluster
from mgc.core.storage import without_password
from mgc.sweep.callbacks import TimeBudget, TrialWatch
from mgc.sweep.resources import share
from mgc.sweep.searcher import FolderSearcher, asha, ended_curves
from mgc.sweep.trial import METRIC, run_trial
from mgc.tracking.store import unreachable

if TYPE_CHECKING:
    from mgc.config import SweepConfig
    from mgc.core.storage import Folder
    from mgc.dataset.protocols import LearningSet
    from mgc.sweep.space import Space
    from mgc.sweep.sweep_folder import SweepFolder, Task

RAY_FILES = "tune"
"""Tune's own files, in the folder of the sweep, of which nothing is read."""
RESTARTS = 3
"""How often a trial begins again, from its last epoch, because its process or its node died."""
SNAPSHOT_SECONDS = "3600"
"""How often Tune writes a snapshot of its own, of which nothing is read."""


class Room:
    """What a sweep asks of Ray: joined, waited for, and its nodes asked whether they see what trials need.

    Parameters
    ----------
    config
        How the sweep divides CPUs and GPUs among its trials.
    storage
        Where the sweep's folder is.
    uri
        Of the MLflow store, to which each trial logs.
    minutes
        How long to wait for the CPUs and GPUs of one trial.

    Raises
    ------
    InputError
        The machine has not the CPUs or GPUs that a trial is to have, they did not come in time, or a node sees neither
        the storage nor the MLflow store.
    """

    def __init__(self, config: SweepConfig, storage: Folder, uri: str, minutes: float) -> None:
        connect()
        cpus, gpus = max(1, int(total("CPU"))), total("GPU")
        self.concurrent, self.resources = share(config, cpus, gpus, cluster=on_cluster())
        each = {name.upper(): amount for name, amount in self.resources.items() if amount}
        if config.workers_per_trial > 1:
            self.demand = Demand("workers of a trial", config.workers_per_trial, each, minutes)
        else:
            self.demand = Demand("trials", 1, each, minutes)
        self.demand.wait()
        check_shared("storage", storage)
        for node, answer in ask_nodes(partial(unreachable, uri)):
            raise InputError(
                f"MLflow store {without_password(uri)}: node {node} cannot reach it ({answer}); "
                "start «mlflow server» where all nodes reach it, and set MLFLOW_TRACKING_URI"
            )


class TuneSession:
    """Trains a sweep's trials on Ray.

    Parameters
    ----------
    sweep
        The sweep whose folder holds the trials.
    data
        Training and validation clips of all trials; a copy goes to Ray's object store.
    room
        The CPUs and GPUs of a trial.
    """

    def __init__(self, sweep: SweepFolder, data: LearningSet, room: Room) -> None:
        self.sweep, self.room = sweep, room
        trainable = ray_tune.with_parameters(
            run_trial, sweep=sweep, shared={"data": ray.put(data)}, resources=room.resources
        )
        # a trial with workers leaves the CPUs to them; Tune wants it to take something
        own = {"memory": 2.0**20} if sweep.config.workers_per_trial > 1 else room.resources
        self.trainable = ray_tune.with_resources(trainable, own)
        os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # whose banner ignores verbose=0
        os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", SNAPSHOT_SECONDS)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        mute("ray.tune", level=logging.CRITICAL)  # a trial's error is kept with its run, and said

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
        filesystem, path = self.sweep.folder.filesystem
        tuner = ray_tune.Tuner(
            self.trainable,
            param_space=sample or {},
            tune_config=ray_tune.TuneConfig(
                # ASHA has been told the metric already, because it has been told of ended trials
                **({} if tune.get("scheduler") else {"metric": METRIC, "mode": "max"}),
                max_concurrent_trials=self.room.concurrent,
                trial_dirname_creator=lambda trial: str(trial.config["trial"]),
                reuse_actors=True,  # a new process takes seconds to import what it needs
                **tune,
            ),
            run_config=ray_tune.RunConfig(
                name=RAY_FILES,
                storage_path=path,
                storage_filesystem=filesystem,
                failure_config=ray_tune.FailureConfig(max_failures=RESTARTS),
                verbose=0,
                callbacks=[watch],
                stop=stop,
            ),
        )
        self.sweep.folder.remove_folder(RAY_FILES)  # of a process that was killed
        began, stage = time.monotonic(), watch.title.partition(":")[0]
        with self.room.demand.watched():
            tuner.fit()
            seconds = time.monotonic() - began
            self.sweep.parent.metrics({"nodes": len(working_nodes()), f"{stage}_seconds": seconds})
            self.sweep.folder.remove_folder(RAY_FILES)
            if not all(each.is_finished() for each in watch.trials):  # Tune takes Ctrl-C for itself
                raise KeyboardInterrupt
