"""Search a space of configurations, retrain the best with fresh seeds, and ablate the winner's regularisers.

    mgc tune --features FEATURES --trials 20

A sweep has three stages: the search (a sampler proposes, ASHA stops what lags); retraining of the best few with seeds
that the search has not seen, because the best of many trials is partly lucky; and the winner with one field off at a
time. A sweep is a folder in the storage, ``sweeps/NAME``, from which a killed one resumes.
"""

from __future__ import annotations

import json
import math
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from mgc.config import DEFAULT_PRESET, PRESETS, SweepConfig, TrainConfig, overlay
from mgc.core.errors import InputError, RunError, StoreError
from mgc.core.progress import say
from mgc.core.ray_session import check_sockets
from mgc.core.results import Result
from mgc.dataset.protocols import learning_set
from mgc.model.pretrained import check_encoder
from mgc.sweep import results, sweep_page
from mgc.sweep.confirm import SeedScores, ablate, off_value, retrain
from mgc.sweep.ray_tune import Room, TuneSession
from mgc.sweep.samplers import SEARCHES
from mgc.sweep.space import FIXED, Space, default
from mgc.sweep.sweep_folder import SEARCHED, SWEEP, SweepFolder, TrialFolder, begun_elsewhere, check_name
from mgc.tracking import store
from mgc.tracking.runs import BEST_TAG, EXPERIMENT, STORAGE_TAG, WINNER_TAG, Run
from mgc.training.hardware import load_clips
from mgc.training.run_logging import describe, open_for_learning

if TYPE_CHECKING:
    from mgc.core.storage import Folder
    from mgc.features.feature_set import FeatureSet
    from mgc.sweep.results import Effect
    from mgc.sweep.sweep_folder import Task

BEST_CONFIG = "best_config.json"
"""The winner's configuration, in the sweep's folder and among its artifacts."""


@dataclass(frozen=True)
class SweepResult(Result):
    """A finished sweep."""

    parent_run_id: str
    """MLflow run of the sweep."""
    name: str
    trials: int
    """Of the search."""
    pruned: int
    """Trials that ASHA stopped."""
    failed: int
    """Trials that raised an error or died."""
    stopped: int
    """Trials that the time budget ended."""
    best_run_id: str
    """Best trial of the search."""
    val_accuracy: float
    """Validation accuracy of that trial."""
    winner_run_id: str
    """Run that holds the models of the best configuration; with ``top=0`` the best trial."""
    retrained: tuple[SeedScores, ...]
    """The best configurations, retrained with fresh seeds."""
    ablated: tuple[SeedScores, ...]
    """The winner with one field off at a time."""
    effects: tuple[Effect, ...]
    """Of each ablated field: the winner minus the winner with the field off."""
    sentences: tuple[str, ...]
    """The effects in words."""
    best_config: TrainConfig
    """The winner's."""
    config_file: str
    """The same as a file, which ``read_config`` reads."""
    report: str
    """Address of the sweep's page."""

    @property
    def run_id(self) -> str:
        """The winner's run."""
        return self.winner_run_id

    def to_dict(self) -> dict[str, Any]:
        """Plain values: retrained, ablated, effects and sentences are ``again``, ``without``, ``bought``, ``said``."""
        tree = asdict(self)
        for name in ("retrained", "ablated", "effects", "sentences"):
            del tree[name]
        return tree | {
            "again": [each.to_dict() for each in self.retrained],
            "without": [each.to_dict() for each in self.ablated],
            "bought": [each.to_dict() for each in self.effects],
            "said": list(self.sentences),
            "best_config": self.best_config.to_dict(),
        }

    def __str__(self) -> str:
        """The trials' counts, a line for each retrained configuration and effect, and where the rest is."""
        counts = {"pruned": self.pruned, "failed": self.failed, "stopped": self.stopped}
        ended = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        lines = [f"sweep {self.name}: {self.trials} trials{f' ({ended})' if ended else ''}"]
        lines.append(f"best of the search: {self.val_accuracy:.3f} in validation, run {self.best_run_id}")
        if self.retrained:
            lines.append(f"{'retrained':<22}{'search':>8}{'mean ± sd':>16}{'shrank by':>11}{'training':>10}")
        for each in self.retrained:
            mean = f"{each.val_accuracy:.3f} ± {each.val_accuracy_sd:.3f}"
            line = f"{each.name.removeprefix('again: '):<22}{each.first_val_accuracy:>8.3f}{mean:>16}"
            line += f"{each.shrinkage:>11.3f}{each.train_accuracy:>10.3f}"
            lines.append(line + ("  winner" if each.run_id == self.winner_run_id else ""))
        lines += self.sentences
        lines.append(f"winner: run {self.winner_run_id}; its configuration: {self.config_file}")
        return "\n".join([*lines, f"report: {self.report}"])


def tune(
    features: str | Path | FeatureSet,
    config: TrainConfig = PRESETS[DEFAULT_PRESET],
    sweep_config: SweepConfig | None = None,
    *,
    space: Path | None = None,
    name: str | None = None,
    resume: str | None = None,
    storage: str | Path | None = None,
    wait: float = 15.0,
    allow_leaks: bool = False,
) -> SweepResult:
    """Search a space of configurations for the best validation accuracy, and measure what of it is luck.

    Parameters
    ----------
    features
        A finished feature set, by its path or URI, or opened.
    config
        The base configuration, which trials change; its epochs are the most that a trial gets.
    sweep_config
        How to search, and what to retrain and to ablate; the defaults if None.
    space
        YAML file of the search space, as ``mgc.sweep.space`` describes it; the regularisers by default.
    name
        Of the sweep; date and time by default. A sweep of this name with the same settings is resumed.
    resume
        Name of an interrupted sweep to resume; it keeps its own configuration, settings and space.
    storage
        Path or URI of the folder for the sweep's folder, which all nodes must see; ``MGC_STORAGE`` by default, or the
        folder of the default MLflow store.
    wait
        Minutes to wait for the CPUs and GPUs of a trial on a cluster.
    allow_leaks
        Learn from a set with artists in more than one split; the runs are tagged ``mgc.leaky``.

    Returns
    -------
    SweepResult
        The winner, what was retrained and ablated, and where the page is.

    Raises
    ------
    InputError
        The feature set, the space or the settings cannot be used, there is no such sweep or it is running, or a node
        does not see the storage.
    RunError
        No trial was trained to its end, or none of the best could be retrained.

    Examples
    --------
    >>> result = tune("features", sweep_config=SweepConfig(trials=20))  # doctest: +SKIP
    >>> print(result)  # doctest: +SKIP
    """
    check_sockets()
    feature_set = open_for_learning(features, allow_leaks=allow_leaks)
    workers = _Workers(feature_set, store.storage(storage, feature_set.folder), wait)
    sweeps = workers.storage / "sweeps"
    if resume:
        begun = SweepFolder.read(_found(sweeps / resume, feature_set))
        folder, config = begun.folder, begun.train_config({})
    else:
        asked = _Asked.check(config, sweep_config or SweepConfig(), space)
        folder = sweeps / check_name(time.strftime("sweep-%Y%m%d-%H%M%S") if name is None else name)
        folder = _found(folder, feature_set, asked)
    check_encoder(config.model.encoder, feature_set.manifest.spec)
    for gap in learning_set(feature_set, config, lazily=True).gaps:  # refused here, a set leaves nothing behind
        say(f"tune: {gap}")
    with store.made(folder).claim("tune: this very sweep is running,", "then see «mgc ui»"):
        sweep = _resume(folder, feature_set) if resume else _begin(folder, workers, asked)
        say(f"tune: sweep {sweep.name} (if interrupted: --resume {quote(sweep.name)}, in Python resume={sweep.name!r})")
        with sweep.parent.closing():
            facts = _stages(sweep, workers)
    view = results.read(sweep.parent)  # now, because its page says whether it is finished
    sentences = tuple(sweep_page.sentence(each) for each in view.effects)
    return SweepResult(**facts, effects=view.effects, sentences=sentences, report=sweep_page.make(view).report)


@dataclass(frozen=True)
class _Asked:
    """Settings of a sweep that can be."""

    config: TrainConfig
    sweep_config: SweepConfig
    space: Space

    @classmethod
    def check(cls, config: TrainConfig, sweep_config: SweepConfig, file: Path | None) -> _Asked:
        if sweep_config.search not in SEARCHES:
            raise InputError(f"`search={sweep_config.search}`: must be one of {', '.join(SEARCHES)}")
        space = Space.read(file or default(config), config)
        if sweep_config.search == "grid":
            sweep_config = replace(sweep_config, trials=math.prod(map(len, space.grid().values())))
        for field in sweep_config.without:
            if field in FIXED:
                raise InputError(f"`without={field}`: cannot be ablated: it is the same in all models")
            off_value(field, config)
        return cls(config, sweep_config, space)

    def is_of(self, sweep: SweepFolder) -> bool:
        """Whether a sweep was begun with these settings."""
        own = [self.config.to_dict(), self.space.tree(), asdict(self.sweep_config)]
        its = [overlay(TrainConfig(), sweep.base).to_dict(), sweep.space, asdict(sweep.config)]
        return bool(json.loads(json.dumps(own)) == json.loads(json.dumps(its)))  # lists, no tuples


def _begin(folder: Folder, workers: _Workers, asked: _Asked) -> SweepFolder:
    """A new sweep, or the one of this name that was begun with the same settings."""
    feature_set, config = workers.feature_set, asked.config
    if folder.kind(SWEEP):
        sweep = _resume(folder, feature_set)
        if not asked.is_of(sweep):
            raise InputError(
                f"`name={sweep.name}`: is there already, with other settings; choose another, or `resume={sweep.name}`"
            )
        return sweep
    uri = store.open_store(feature_set.folder)
    workers.make_room(asked.sweep_config, uri)
    dimensions = {each.field: str(each) for each in asked.space.dimensions}
    settings = {**vars(asked.sweep_config), "space": dimensions, **config.to_dict()}
    parent = Run.start(uri, EXPERIMENT, name=folder.name, step="tune", config=settings)
    with parent.ending():
        parent.tag({STORAGE_TAG: str(folder)})
        describe(parent, feature_set, config)
        for artifact, tree in ((results.SPACE, asked.space.tree()), (results.BASE, config.to_dict())):
            parent.text(json.dumps(tree, indent=1) + "\n", artifact)
        place, fingerprint, base = str(feature_set.folder), feature_set.manifest.fingerprint, config.to_dict()
        sweep = SweepFolder(folder, place, fingerprint, base, asked.space.tree(), asked.sweep_config, uri, parent.id)
        sweep.write()
    return sweep


def _resume(folder: Folder, feature_set: FeatureSet) -> SweepFolder:
    sweep = SweepFolder.read(folder)
    if sweep.fingerprint != feature_set.manifest.fingerprint:
        raise InputError(f"`resume={folder.name}`: was started on another feature set, {sweep.features}")
    sweep = replace(sweep, uri=_store_of(sweep, feature_set), features=str(feature_set.folder))
    Run.find(sweep.uri, sweep.parent_run_id).reopen()
    return sweep


def _found(folder: Folder, feature_set: FeatureSet, asked: _Asked | None = None) -> Folder:
    """The folder of a sweep: this, or one of the same set and settings that another working directory has begun."""
    if folder.kind(SWEEP):
        return folder
    with suppress(InputError, StoreError):  # there is no store yet, or the sweep's storage is out of reach
        for other in begun_elsewhere(store.existing_store(feature_set.folder), folder.name):
            sweep = SweepFolder.read(other)
            same = sweep.fingerprint == feature_set.manifest.fingerprint
            if same and (asked is None or asked.is_of(sweep)):
                say(f"tune: sweep {sweep.name} is in {other}")
                return other
    return folder


def _store_of(sweep: SweepFolder, feature_set: FeatureSet) -> str:
    """The MLflow store of now if it has the sweep's run, as in a moved or copied project; else the sweep's own."""
    with suppress(InputError):
        uri = store.existing_store(feature_set.folder)
        return Run.find(uri, sweep.parent_run_id).uri
    if why := store.unreachable(sweep.uri):
        raise InputError(
            f"`resume={sweep.name}`: its MLflow store {sweep.uri} cannot be reached ({why}); set MLFLOW_TRACKING_URI"
        )
    return sweep.uri


def _stages(sweep: SweepFolder, workers: _Workers) -> dict[str, Any]:
    """Search, retrain, ablate, but for what is done already; return fields of the result."""
    parent, feature_set = sweep.parent, workers.feature_set
    train = partial(workers.train, sweep)
    trials = _search(sweep, workers)
    outcomes = [trial.outcome for trial in trials]
    counts = {"trials": len(trials)} | {what: outcomes.count(what) for what in ("pruned", "failed", "stopped")}
    figures = {trial.name: trial.figures for trial in trials if trial.outcome == "kept"}
    if not figures:
        raise RunError(f"tune: none of {len(trials)} trials ended well ({counts['failed']} failed); see «mgc ui»")
    # of equals the one of the lowest loss, as within a fit
    ranked = sorted(
        (trial for trial in trials if trial.name in figures),
        key=lambda trial: (-figures[trial.name]["val_accuracy"], figures[trial.name]["val_loss"]),
    )
    best = ranked[0]
    assert best.run
    val_accuracy = figures[best.name]["val_accuracy"]
    parent.tag({BEST_TAG: best.run.id})
    parent.metrics({"val_accuracy": val_accuracy, **counts})
    winner, differences = best.run.id, best.task.differences
    retrained: tuple[SeedScores, ...] = ()
    ablated: tuple[SeedScores, ...] = ()
    if sweep.config.top:
        scores = retrain(sweep, feature_set, ranked[: sweep.config.top], train)
        trial, score = max(scores, key=lambda pair: pair[1].val_accuracy)
        parent.metrics({"winner_val_accuracy": score.val_accuracy, "winner_shrinkage": score.shrinkage or 0.0})
        winner, differences, retrained = score.run_id, trial.task.differences, tuple(each for _, each in scores)
    parent.tag({WINNER_TAG: winner})
    if sweep.config.top:
        ablated = tuple(ablate(sweep, feature_set, winner, differences, train))
    config = sweep.train_config(differences)
    text = json.dumps(config.to_dict(), indent=1) + "\n"
    sweep.folder.write(BEST_CONFIG, text.encode())
    parent.text(text, BEST_CONFIG)
    about = {"parent_run_id": parent.id, "name": sweep.name, "best_run_id": best.run.id, "val_accuracy": val_accuracy}
    found = {"winner_run_id": winner, "retrained": retrained, "ablated": ablated}
    return counts | about | found | {"best_config": config, "config_file": f"{sweep.folder}/{BEST_CONFIG}"}


def _search(sweep: SweepFolder, workers: _Workers) -> list[TrialFolder]:
    """The trials of the search, which is over."""
    if not sweep.folder.kind(SEARCHED):
        space = Space.of(sweep.space, sweep.train_config({}))
        names = workers.session(sweep).search(space)
        sweep.folder.write(SEARCHED, (json.dumps(names) + "\n").encode())
    trials = [sweep.trial(name) for name in json.loads(sweep.folder.read(SEARCHED))]
    for trial in trials:
        if trial.outcome == "kept":
            trial.end("kept")  # its process may have died before it said so
    return trials


class _Workers:
    """Ray and its Tune, started when they are first needed: a finished sweep needs none."""

    def __init__(self, feature_set: FeatureSet, storage: Folder, minutes: float) -> None:
        self.feature_set, self.storage, self.minutes = feature_set, storage, minutes
        self._room: Room | None = None
        self._session: TuneSession | None = None

    def make_room(self, config: SweepConfig, uri: str) -> Room:
        if self._room is None:
            say("tune: starting Ray …")
            self._room = Room(config, self.storage, uri, self.minutes)
        return self._room

    def session(self, sweep: SweepFolder) -> TuneSession:
        if self._session is None:
            room, base = self.make_room(sweep.config, sweep.uri), sweep.train_config({})
            _, clips = load_clips(self.feature_set, base, self.storage, on_ray=True)
            self._session = TuneSession(sweep, learning_set(self.feature_set, base, clips=clips), room)
        return self._session

    def train(self, sweep: SweepFolder, tasks: list[Task], title: str) -> None:
        self.session(sweep).train(tasks, title)
