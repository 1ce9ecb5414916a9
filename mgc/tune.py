"""Search a space of configurations with Ray Tune: Optuna proposes, ASHA stops what lags, MLflow keeps every trial.

    python -m mgc.tune --features FEATURES --trials 20 --concurrent 2

A trial is a plain function around ``mgc.fit`` on one device: the features are loaded once and shared through Ray's
object store. A sweep is a folder, ``mlflow_runs/sweeps/NAME``; killed, ``--resume NAME`` goes on with it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from ray import tune as ray_tune

from mgc import checkpoint, store, tracking
from mgc.config import TrainConfig, overlay
from mgc.console import Progress, say
from mgc.errors import InputError, RunError
from mgc.files import write_text
from mgc.fit import is_kept
from mgc.fit_run import describe, open_for_learning
from mgc.learning import LearningSet, learning_set
from mgc.ray_session import connect
from mgc.space import DEFAULT, Space
from mgc.trial import METRIC, OUTCOME, SWEEP, Sweep, close, outcome_of, run_of, run_trial

SEARCHES = Literal["tpe", "random", "grid"]

BEST_CONFIG = "best_config.json"
"""The winner's configuration, in the sweep's folder; ``--config`` reads it."""


def tune(
    features: str | Path,
    config: TrainConfig,
    *,
    trials: int = 20,
    concurrent: int = 2,
    space: Path | None = None,
    search: SEARCHES = "tpe",
    name: str | None = None,
    resume: str | None = None,
    allow_leaks: bool = False,
) -> dict[str, Any]:
    """Search a space of configurations for the best validation accuracy.

    Parameters
    ----------
    features
        A finished feature set.
    config
        What the trials start from; its epochs are the most a trial gets. A resumed sweep keeps its own.
    trials
        Configurations to try; a grid has its own number.
    concurrent
        Trials at a time; the CPUs (and GPUs) are shared out among them.
    space
        What is searched: a file as ``mgc.space`` describes it, or the default one. A resumed sweep keeps its own.
    search
        Optuna's tree-structured Parzen estimator, random draws, or all combinations of choices.
    resume
        Name of an interrupted sweep to go on with.

    Returns
    -------
    dict
        ``parent_run_id``, ``trials``, ``failed``, ``pruned``, ``best_run_id``, ``best_config`` (a tree),
        ``val_accuracy`` (of the best trial's kept model), ``config_file`` (the best configuration, for ``--config``),
        ``name``.

    Raises
    ------
    InputError
        The feature set or the space cannot be used, or there is no such sweep.
    RunError
        Every trial failed.
    """
    for flag, value in (("trials", trials), ("concurrent", concurrent)):
        if value < 1:
            raise InputError(f"--{flag} {value}: must be at least 1")
    feature_set = open_for_learning(features, allow_leaks=allow_leaks)
    sweeps = store.home(feature_set.folder) / "sweeps"
    name = resume or name or time.strftime("sweep-%Y%m%d-%H%M%S")
    folder = sweeps / name
    if resume:
        sweep = Sweep.read(folder)
        if sweep.fingerprint != feature_set.manifest.fingerprint:
            raise InputError(f"--resume {resume}: was started on another feature set, {sweep.features}")
        parent = tracking.Run.find(sweep.uri, sweep.parent_run_id)
        parent.reopen()
        say(f"tune: sweep {name} goes on with its own settings: {sweep.trials} trials, {sweep.concurrent} at a time")
    else:
        if folder.exists():
            raise InputError(f"--name {name}: this sweep is there already; use --resume {name} or another name")
        dimensions = Space.read(space or DEFAULT, config)
        if search == "grid":
            trials = math.prod(map(len, dimensions.grid().values()))
        uri = store.open_store(feature_set.folder)
        searched = {each.field: str(each) for each in dimensions.dimensions}
        settings = {"trials": trials, "concurrent": concurrent, "search": search, "space": searched, **config.to_dict()}
        parent = tracking.Run.start(uri, tracking.EXPERIMENT, name=name, step="tune", config=settings)
        describe(parent, feature_set, config)
        base, fingerprint = config.to_dict(), feature_set.manifest.fingerprint
        tree = dimensions.tree()
        sweep = Sweep(str(feature_set.folder), fingerprint, base, trials, concurrent, uri, parent.id, tree, search)
        folder.mkdir(parents=True)
        write_text(json.dumps(asdict(sweep), indent=1) + "\n", folder / SWEEP)
    with parent.closing():
        say(f"tune: sweep {name} (interrupted, it goes on with --resume {name}); starting Ray …")
        data = learning_set(feature_set, overlay(TrainConfig(), sweep.base))
        results = _run(sweep, folder, data, resume=resume is not None)
        return _conclude(sweep, folder, results, parent) | {"name": name}


def _run(sweep: Sweep, folder: Path, data: LearningSet, *, resume: bool) -> Any:
    """Run or resume the trials; return Tune's result grid."""
    cpus = connect()
    import ray
    from optuna.samplers import RandomSampler, TPESampler
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # whose banner ignores verbose=0
    for name in ("optuna", "ray.tune"):  # a trial's error is shown by _Watch and kept with its run
        logging.getLogger(name).setLevel(logging.CRITICAL)
    epochs, seed = int(sweep.base["epochs"]), int(sweep.base["seed"])
    gpus = float(ray.cluster_resources().get("GPU", 0))
    resources = {"cpu": max(1, cpus // sweep.concurrent), "gpu": min(1.0, gpus / sweep.concurrent)}
    trainable = ray_tune.with_parameters(run_trial, sweep=sweep, folder=folder, data=data, resources=resources)
    trainable = ray_tune.with_resources(trainable, resources)
    space = Space.of(sweep.space, overlay(TrainConfig(), sweep.base))
    grid, searcher = {}, None
    if sweep.search == "grid":
        grid = {name: ray_tune.grid_search(choices) for name, choices in space.grid().items()}
    else:
        samplers = {"tpe": TPESampler, "random": RandomSampler}
        searcher = OptunaSearch(space.suggest, METRIC, mode="max", sampler=samplers[sweep.search](seed=seed))
    path = folder / "tune"
    if resume and ray_tune.Tuner.can_restore(str(path)):  # not before Tune's first snapshot
        tuner = ray_tune.Tuner.restore(str(path), trainable, resume_unfinished=True, restart_errored=False)
    else:
        tuner = ray_tune.Tuner(
            trainable,
            param_space=grid,
            tune_config=ray_tune.TuneConfig(
                metric=METRIC,
                mode="max",
                num_samples=1 if grid else sweep.trials,
                max_concurrent_trials=sweep.concurrent,
                search_alg=searcher,
                scheduler=ASHAScheduler(time_attr="epoch", max_t=epochs, grace_period=max(1, epochs // 4)),
                trial_dirname_creator=_trial_id,
            ),
            run_config=ray_tune.RunConfig(
                name=path.name, storage_path=str(folder), verbose=0, callbacks=[_Watch(sweep.trials, folder)]
            ),
        )
    return tuner.fit()


def _trial_id(trial: Any) -> str:
    return str(trial.trial_id)


class _Watch(ray_tune.Callback):  # type: ignore[misc]
    """Shows the sweep's progress, and notes how each trial ended whose model was not kept: pruned or failed."""

    def __init__(self, trials: int, folder: Path) -> None:
        self.trials = trials
        self.folder = folder
        self.progress: Progress | None = None
        self.best = 0.0

    def setup(self, **_: Any) -> None:
        self.progress = Progress("tune", self.trials, "trials")
        self.progress.resume(sum(outcome_of(work) is not None for work in (self.folder / "trials").glob("*")))

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        self.best = max(self.best, result[METRIC])
        self._advance(0, trials)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._ended(trial, trials, "pruned")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._ended(trial, trials, "failed")
        say(f"tune: trial {trial.trial_id} failed")

    def _ended(self, trial: Any, trials: list[Any], outcome: str) -> None:
        work = self.folder / "trials" / trial.trial_id
        if not is_kept(work):
            work.mkdir(parents=True, exist_ok=True)
            write_text(outcome, work / OUTCOME)
        self._advance(1, trials)

    def _advance(self, count: int, trials: list[Any]) -> None:
        running = sum(trial.status == "RUNNING" for trial in trials)
        if self.progress:
            self.progress.advance(count, f"{running} running; best validation accuracy {self.best:.3f}")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"progress": None}


def _conclude(sweep: Sweep, folder: Path, results: Any, parent: tracking.Run) -> dict[str, Any]:
    """Close what the trials left open, choose the best of those whose model is kept, and keep its configuration."""
    trials = {folder / "trials" / Path(result.path).name: result.error for result in results}
    outcomes = {work: outcome_of(work) for work in trials}
    for work, outcome in outcomes.items():
        if outcome == "pruned":
            close(sweep, work, "FINISHED", {"mgc.pruned": "true"})
        elif outcome == "failed":
            close(sweep, work, "FAILED", {"mgc.error": str(trials[work]).strip().splitlines()[-1][:5000]})
        elif outcome is None:
            close(sweep, work, "KILLED", {})
    ended = [outcome for outcome in outcomes.values() if outcome]
    if len(ended) < sweep.trials:
        say(f"tune: {len(ended)} of {sweep.trials} trials ended; go on with --resume {folder.name}")
        raise KeyboardInterrupt
    kept = [(checkpoint.read(work)[1], work) for work, outcome in outcomes.items() if outcome == "kept"]
    counts = {"trials": len(ended), "failed": ended.count("failed"), "pruned": ended.count("pruned")}
    if not kept:
        raise RunError(f"tune: none of {len(ended)} trials ran to its end ({counts['failed']} failed); see «mgc ui»")
    # of equals the one of the lowest loss, as within a fit
    card, work = max(kept, key=lambda pair: (pair[0].figures[METRIC], -pair[0].figures["val_loss"]))
    config, config_file = card.config.to_dict(), folder / BEST_CONFIG
    write_text(json.dumps(config, indent=1) + "\n", config_file)
    best_run = run_of(sweep, work)
    assert best_run is not None
    parent.file(config_file)
    parent.metrics({"best_val_accuracy": card.figures[METRIC], **counts})
    parent.tag({"mgc.best_run_id": best_run.id})
    return {
        "parent_run_id": parent.id,
        **counts,
        "best_run_id": best_run.id,
        "best_config": config,
        "val_accuracy": card.figures[METRIC],
        "config_file": str(config_file),
    }


if __name__ == "__main__":
    from mgc.cli import main

    main(["tune", *sys.argv[1:]])
