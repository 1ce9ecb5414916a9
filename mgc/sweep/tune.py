"""Search a space of configurations, train the best again with fresh seeds, and say what regularisation bought.

    python -m mgc.tune --features FEATURES --trials 20

A sweep goes through three stages: the search (Optuna proposes, ASHA stops what lags); the best few trained again with
seeds that the search has not seen, because the best of many trials is partly lucky; and the winner without one
regulariser at a time. A sweep is a folder, ``mlflow_runs/sweeps/NAME``; killed, ``--resume NAME`` goes on with it.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from mgc.config import PRESETS, SweepConfig, TrainConfig
from mgc.core.atomic_files import write_text
from mgc.core.errors import InputError, RunError
from mgc.core.progress import say
from mgc.dataset.protocols import LearningSet, learning_set
from mgc.sweep import pbt as population
from mgc.sweep import results as sweep_view
from mgc.sweep import sweep_page as sweep_report
from mgc.sweep.ray_tune import Tuner
from mgc.sweep.space import DEFAULT, DEFAULT_PBT, Space, field_of
from mgc.sweep.sweep_folder import SEARCHED, Course, Sweep, Task, Trial
from mgc.tracking import runs as tracking
from mgc.tracking import store
from mgc.tracking.runs import Run
from mgc.training.placement import choose_feed
from mgc.training.run_logging import describe, open_for_learning

if TYPE_CHECKING:
    from mgc.features.feature_set import FeatureSet

BEST_CONFIG = "best_config.json"
"""The winner's configuration, in the sweep's folder; ``--config`` reads it."""


def tune(
    features: str | Path,
    config: TrainConfig,
    sweep_config: SweepConfig | None = None,
    *,
    space: Path | None = None,
    name: str | None = None,
    resume: str | None = None,
    allow_leaks: bool = False,
) -> dict[str, Any]:
    """Search a space of configurations for the best validation accuracy, and find out what of it is luck.

    Parameters
    ----------
    features
        A finished feature set.
    config
        What the trials start from; its epochs are the most a trial gets.
    sweep_config
        How it is searched, and what is done with what is found.
    space
        What is searched: a file as ``mgc.sweep.space`` describes it, or the default one.
    resume
        Name of an interrupted sweep to go on with; it keeps its own configuration, settings and space.

    Returns
    -------
    dict
        ``parent_run_id``, ``name``, ``trials``, ``failed``, ``pruned``, ``stopped``, ``best_run_id`` and
        ``val_accuracy`` (of the search's best trial), ``winner_run_id`` (the run that holds the models of the best
        configuration; with ``top`` 0 that trial), ``again`` and ``without`` (a dict a configuration trained again:
        ``run_id``, ``name``, ``val_accuracy``, ``val_accuracy_sd``, ``train_accuracy``, of those again also
        ``first_val_accuracy`` and ``shrinkage``), ``bought`` (``sweep_view.Bought`` of each thing left out), ``said``
        (the same in words), ``best_config`` (the winner's, a tree), ``config_file`` (the same, for ``--config``),
        ``report`` (where the page is).

    Raises
    ------
    InputError
        The feature set, the space or the settings cannot be used, or there is no such sweep.
    RunError
        No trial ran to its end, or none could be trained again.
    """
    feature_set = open_for_learning(features, allow_leaks=allow_leaks)
    sweeps = store.home(feature_set.folder) / "sweeps"
    if resume:
        sweep = _resumed(sweeps / resume, feature_set)
    else:
        folder = sweeps / (name or time.strftime("sweep-%Y%m%d-%H%M%S"))
        sweep = _begun(folder, feature_set, config, sweep_config or SweepConfig(), space)
    say(f"tune: sweep {sweep.folder.name} (interrupted, it goes on with --resume {sweep.folder.name})")
    with sweep.parent.closing():
        result = _Sweeping(sweep, feature_set).go()
    view = sweep_view.read(sweep.parent)  # now, because its page says whether it is finished
    result["bought"] = [asdict(each) for each in view.bought]
    result["said"] = [sweep_report.sentence(each) for each in view.bought]
    return result | {"report": sweep_report.publish(view).report}


def summary(result: dict[str, Any]) -> str:
    """What a sweep came to, for a terminal."""
    ended = ", ".join(f"{result[what]} {what}" for what in ("pruned", "failed", "stopped") if result[what])
    lines = [f"sweep {result['name']}: {result['trials']} trials{f' ({ended})' if ended else ''}"]
    lines.append(f"best of the search: {result['val_accuracy']:.3f} in validation, run {result['best_run_id']}")
    if result["again"]:
        lines.append(f"{'trained again':<22}{'search':>8}{'mean ± sd':>16}{'shrank by':>11}{'training':>10}")
    for each in result["again"]:
        mark = "winner" if each["run_id"] == result["winner_run_id"] else ""
        again = f"{each['val_accuracy']:.3f} ± {each['val_accuracy_sd']:.3f}"
        figures = (
            f"{each['first_val_accuracy']:>8.3f}{again:>16}{each['shrinkage']:>11.3f}{each['train_accuracy']:>10.3f}"
        )
        lines.append(f"{each['name'].removeprefix('again: '):<22}{figures}  {mark}".rstrip())
    lines += result["said"]
    lines.append(f"winner: run {result['winner_run_id']}; its configuration: {result['config_file']}")
    return "\n".join([*lines, f"report: {result['report']}"])


def _begun(
    folder: Path, feature_set: FeatureSet, config: TrainConfig, sweep_config: SweepConfig, file: Path | None
) -> Sweep:
    if folder.exists():
        raise InputError(f"--name {folder.name}: is there already; use --resume {folder.name} or another name")
    pbt = sweep_config.search == "pbt"
    space = Space.read(file or (DEFAULT_PBT if pbt else DEFAULT), config)
    if pbt:
        population.check(space)
        if sweep_config.workers_per_trial > 1:
            raise InputError(f"--workers-per-trial {sweep_config.workers_per_trial}: not with --search pbt")
    if sweep_config.search == "grid":
        sweep_config = replace(sweep_config, trials=math.prod(map(len, space.grid().values())))
    for field in sweep_config.without:
        _off(field, config)
    uri = store.open_store(feature_set.folder)
    settings = {**vars(sweep_config), "space": {each.field: str(each) for each in space.dimensions}, **config.to_dict()}
    parent = Run.start(uri, tracking.EXPERIMENT, name=folder.name, step="tune", config=settings)
    describe(parent, feature_set, config)
    for artifact, tree in ((sweep_view.SPACE, space.tree()), (sweep_view.BASE, config.to_dict())):
        parent.text(json.dumps(tree, indent=1) + "\n", artifact)
    place, fingerprint = str(feature_set.folder), feature_set.manifest.fingerprint
    sweep = Sweep(folder, place, fingerprint, config.to_dict(), space.tree(), sweep_config, uri, parent.id)
    sweep.write()
    return sweep


def _resumed(folder: Path, feature_set: FeatureSet) -> Sweep:
    sweep = Sweep.read(folder)
    if sweep.fingerprint != feature_set.manifest.fingerprint:
        raise InputError(f"--resume {folder.name}: was started on another feature set, {sweep.features}")
    Run.find(sweep.uri, sweep.parent_run_id).reopen()
    return sweep


@dataclass(frozen=True)
class _Again:
    """A configuration that is trained again with fresh seeds, in a run of its own that is nested in the sweep's."""

    name: str
    course: Course
    tags: dict[str, str]
    first: float | None = None
    """The search's figure."""


class _Sweeping:
    """A sweep under way."""

    def __init__(self, sweep: Sweep, feature_set: FeatureSet) -> None:
        self.sweep, self.config, self.parent = sweep, sweep.config, sweep.parent
        self.feature_set = feature_set
        self.base = sweep.train_config({})
        self.tuner: Tuner | None = None
        self.data: LearningSet | None = None

    def go(self) -> dict[str, Any]:
        """Search, train again, leave out; what is done already is not done again."""
        trials = self._search()
        outcomes = [trial.outcome for trial in trials]
        counts = {"trials": len(trials)} | {what: outcomes.count(what) for what in ("pruned", "failed", "stopped")}
        kept = [trial for trial in trials if trial.outcome == "kept"]
        if not kept:
            raise RunError(
                f"tune: none of {len(trials)} trials ran to its end ({counts['failed']} failed); see «mgc ui»"
            )
        # of equals the one of the lowest loss, as within a fit
        figures = {trial.name: trial.figures for trial in kept}
        ranked = sorted(kept, key=lambda trial: (-figures[trial.name]["val_accuracy"], figures[trial.name]["val_loss"]))
        best = ranked[0]
        assert best.run
        result = {**counts, "best_run_id": best.run.id, "val_accuracy": figures[best.name]["val_accuracy"]}
        self.parent.tag({tracking.BEST_TAG: best.run.id})
        self.parent.metrics({"best_val_accuracy": result["val_accuracy"], **counts})
        winner, course, result["again"] = best.run.id, self._course(best), []
        if self.config.top:
            winner, course, result["again"] = self._again(ranked[: self.config.top])
        self.parent.tag({tracking.WINNER_TAG: winner})
        result["without"] = self._without(winner, course) if self.config.top else []
        config = self.sweep.train_config(course[-1][1]).to_dict()
        file = self.sweep.folder / BEST_CONFIG
        write_text(json.dumps(config, indent=1) + "\n", file)
        self.parent.file(file)
        about = {"parent_run_id": self.parent.id, "name": self.sweep.folder.name, "winner_run_id": winner}
        return about | result | {"best_config": config, "config_file": str(file)}

    def _search(self) -> list[Trial]:
        """The trials of the search, which is over."""
        note = self.sweep.folder / SEARCHED
        if not note.exists():
            space = Space.of(self.sweep.space, self.base)
            if self.config.search == "pbt":
                train = self._tuner().train
                names = population.evolve(self.sweep, space, self._learning(), train)
            else:
                names = self._tuner().search(space)
            write_text(json.dumps(names) + "\n", note)
        trials = [self.sweep.trial(name) for name in json.loads(note.read_text())]
        for trial in trials:
            if trial.outcome == "kept":
                trial.end("kept")  # its process may have died before it said so
        return trials

    def _again(self, best: list[Trial]) -> tuple[str, Course, list[dict[str, Any]]]:
        """Train the best again; return the run and the course of the one with the best mean, and what came of all."""
        groups = []
        for trial in best:
            assert trial.run
            tags = {tracking.STAGE_TAG: "again", tracking.OF_TAG: trial.run.id}
            groups.append(_Again(f"again: {trial.name}", self._course(trial), tags, trial.figures["val_accuracy"]))
        results = self._train(groups, f"again: top {len(best)} × {self.config.seeds} fresh seeds")
        if not results:
            raise RunError("tune: none of the best could be trained again; see «mgc ui»")
        winner = max(results, key=lambda result: result["val_accuracy"])
        course = next(group.course for group in groups if group.name == winner["name"])
        self.parent.metrics({"winner_val_accuracy": winner["val_accuracy"], "winner_shrinkage": winner["shrinkage"]})
        return winner["run_id"], course, results

    def _without(self, winner: str, course: Course) -> list[dict[str, Any]]:
        """Train the winner without one thing at a time; of what it is without already, with what the base has."""
        groups = []
        for field in self.config.without:
            value = field_of(self.sweep.train_config(course[-1][1]), field)
            off, base = _off(field, self.base), field_of(self.base, field)
            word, other = ("without", off) if value != off else ("with", base)
            if other == value:
                say(f"tune: neither the winner nor the base has {field}; nothing to compare")
                continue
            tags = {tracking.STAGE_TAG: "without", tracking.OF_TAG: winner, tracking.FIELD_TAG: field}
            tags |= {tracking.VALUE_TAG: str(value), tracking.OFF_TAG: str(other)}
            changed = [(first, differences | {field: other}) for first, differences in course]
            groups.append(_Again(f"{word} {field}", changed, tags))
        return self._train(groups, f"without: {len(groups)} × {self.config.seeds} seeds")

    def _train(self, groups: list[_Again], title: str) -> list[dict[str, Any]]:
        """Train configurations with fresh seeds, the same for all; leave out those of which a model failed."""
        runs = {group.name: self._run(group) for group in groups}
        tasks = {
            group.name: [
                Task(f"{group.name.replace(':', '')}, seed {seed}", group.course, seed, runs[group.name].id)
                for seed in range(self.base.seed + 1, self.base.seed + 1 + self.config.seeds)
            ]
            for group in groups
        }
        waiting = [task for each in tasks.values() for task in each]
        if any(self.sweep.trial(task.name).outcome is None for task in waiting):
            self._tuner().train(waiting, title)
        results = []
        for group in groups:
            run = runs[group.name]
            models = [self.sweep.trial(task.name) for task in tasks[group.name]]
            if any(model.outcome != "kept" for model in models):
                run.tag({tracking.REASON_TAG: "not all of its models could be trained"})
                run.finish("FAILED")
                say(f"tune: {group.name}: not all of its models could be trained; see «mgc ui»")
                continue
            for model in models:
                model.end("kept")
            figures = [model.figures for model in models]
            result = {
                "val_accuracy": mean(each["val_accuracy"] for each in figures),
                "val_accuracy_sd": stdev(each["val_accuracy"] for each in figures),
                "train_accuracy": mean(each["train_accuracy"] for each in figures),
            }
            if group.first is not None:
                result |= {"first_val_accuracy": group.first, "shrinkage": group.first - result["val_accuracy"]}
            if run.record().status != "FINISHED":
                run.metrics(result)
                run.finish("FINISHED")
            results.append({"run_id": run.id, "name": group.name, **result})
        return results

    def _run(self, group: _Again) -> Run:
        """The MLflow run of a configuration that is trained again: the one that there is, or a new one."""
        uri, key = self.sweep.uri, f"{self.parent.id} {group.name}"
        if run := Run.finished(uri, tracking.EXPERIMENT, key):
            return run
        run, resumed = Run.resume_or_start(
            uri,
            tracking.EXPERIMENT,
            key,
            name=group.name,
            step="seeds",
            config={**group.course[-1][1], "seeds": self.config.seeds},
            tags=group.tags,
            parent=self.parent.id,
        )
        if not resumed:
            describe(run, self.feature_set, self.base)
        return run

    def _course(self, trial: Trial) -> Course:
        """What a trial of the search was trained with."""
        if self.config.search == "pbt":
            return population.course(self.sweep, trial.name)
        return trial.task.course

    def _tuner(self) -> Tuner:
        """Ray, which a sweep that is done does not start."""
        if self.tuner is None:
            say("tune: starting Ray …")
            self.tuner = Tuner(self.sweep, self._learning())
            self.data = self.tuner.data
        return self.tuner

    def _learning(self) -> LearningSet:
        if self.data is None:
            _, lazily = choose_feed(None, self.feature_set, self.base, copies=2)  # here, and Ray's copy
            self.data = learning_set(self.feature_set, self.base, lazily=lazily)
        return self.data


def _off(field: str, config: TrainConfig) -> Any:
    """What a field is when it is off: false, zero, or what the plain network of the baseline has.

    Raises
    ------
    InputError
        There is no such field, or it cannot be off.
    """
    try:
        value = field_of(config, field)
    except InputError as error:
        raise InputError(f"--without {field}: {error}") from None
    if isinstance(value, bool | int | float):
        off: Any = type(value)(0)
    else:
        off = field_of(PRESETS["baseline"], field)
    return off
