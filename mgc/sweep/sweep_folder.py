"""The folder of a sweep: its settings, its trials and how each ended, from which an interrupted sweep resumes. No Ray.

STORAGE/sweeps/NAME/sweep.json           the settings
STORAGE/sweeps/NAME/searched.json        names of the trials of the search, once it is over
STORAGE/sweeps/NAME/trials/TRIAL/        one model: its task, its fit's state or checkpoint, its MLflow run, its end
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias

from mgc.config import SweepConfig, TrainConfig, overlay
from mgc.core.errors import InputError
from mgc.core.storage import Folder, without_password
from mgc.model import checkpoint
from mgc.sweep.space import nested
from mgc.tracking.metric_names import EPOCH
from mgc.tracking.runs import EXPERIMENT, LEAKY_TAG, OUTCOME_TAG, REASON_TAG, STEP_TAG, STORAGE_TAG, TRACK_TAG, Run
from mgc.tracking.store import search
from mgc.training.loop import is_kept

Outcome: TypeAlias = Literal["kept", "pruned", "failed", "stopped"]
"""Trained to the end; stopped early by ASHA; raised an error or died; stopped because the time budget was over."""
STATUS = {"kept": "FINISHED", "pruned": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
"""MLflow status by outcome."""
SWEEP, SEARCHED, TRIALS = "sweep.json", "searched.json", "trials"
TASK, RUN_ID, OUTCOME = "task.json", "run_id", "outcome"
"""Files in a trial's folder; ``outcome`` is missing where the model was kept."""
LONGEST_NAME = 200
"""Bytes of a sweep's name, of the 255 that file systems take."""
CURVE = f"{EPOCH}val_accuracy"
"""MLflow metric with the validation accuracy of each epoch of a trial."""


@dataclass(frozen=True)
class Task:
    """One model to train."""

    name: str
    """Of its folder and its MLflow run."""
    differences: dict[str, Any]
    """Values that differ from the sweep's base configuration, by dotted field name."""
    seed: int
    parent: str
    """Id of the MLflow run that its run is nested under."""

    @classmethod
    def of(cls, text: bytes) -> Task:
        """Read a ``task.json``, also of a version with population based training, whose tasks had a ``course``."""
        facts = json.loads(text)
        differences = facts["differences"] if "differences" in facts else facts["course"][0][1]
        return cls(facts["name"], differences, facts["seed"], facts["parent"])


@dataclass(frozen=True)
class SweepFolder:
    """A sweep in storage: what was asked for, and where its trials are."""

    folder: Folder
    features: str
    """Path or URI of the feature set."""
    fingerprint: str
    """Of the feature set."""
    base: dict[str, Any]
    """The configuration that trials change, as a tree."""
    space: dict[str, Any]
    """The search space, as ``Space.of`` reads it."""
    config: SweepConfig
    uri: str
    """Of the MLflow store."""
    parent_run_id: str
    """MLflow run of the sweep."""

    @classmethod
    def read(cls, folder: Folder) -> SweepFolder:
        """Read the sweep of a folder.

        Raises
        ------
        InputError
            There is none, it is damaged, or it is one of population based training, which is no longer there.
        """
        try:
            facts = json.loads(folder.read(SWEEP))
            tree = facts.pop("config")
            sweep = cls(folder, **facts, config=SweepConfig(**tree | {"without": tuple(tree["without"])}))
        except OSError:
            sweeps, _ = folder.parent
            known = ", ".join(name for name in sweeps.folders() if (sweeps / name).kind(SWEEP)) or "none"
            raise InputError(f"`resume={folder.name}`: no such sweep; there are: {known}") from None
        except (ValueError, TypeError, KeyError, AttributeError, InputError) as error:
            raise InputError(f"{folder}/{SWEEP}: damaged ({error}); start a new sweep") from None
        if tree.get("search") == "pbt":
            raise InputError(
                f"`resume={folder.name}`: population based training is no longer part of mgc; start a new sweep "
                f"(the page of this one can still be made: «mgc report {sweep.parent_run_id}»)"
            )
        return sweep

    def write(self) -> None:
        """Make the folder; from now on the sweep can be resumed.

        The store's password is not written: whoever resumes gives it again (MLFLOW_TRACKING_URI).
        """
        self.folder.make(TRIALS)
        facts = {name: value for name, value in asdict(self).items() if name != "folder"}
        facts["uri"] = without_password(self.uri)
        self.folder.write(SWEEP, (json.dumps(facts, indent=1) + "\n").encode())

    @property
    def name(self) -> str:
        """Name of the sweep."""
        return self.folder.name

    @property
    def epochs(self) -> int:
        """The most that a trial gets."""
        return int(self.base["epochs"])

    @property
    def seed(self) -> int:
        """Of the search and of all its trials."""
        return int(self.base["seed"])

    @property
    def parent(self) -> Run:
        """The MLflow run of the sweep."""
        return Run(self.uri, self.parent_run_id)

    def train_config(self, differences: dict[str, Any], seed: int | None = None) -> TrainConfig:
        """The whole configuration of a model.

        Parameters
        ----------
        differences
            Values that differ from the base configuration, by dotted field name.
        seed
            In place of the base configuration's.
        """
        config = overlay(overlay(TrainConfig(), self.base), nested(differences))
        return config if seed is None else replace(config, seed=seed)

    def trial(self, name: str) -> TrialFolder:
        """The folder of a trial, which need not be there yet."""
        return TrialFolder(self, name)

    def searched(self) -> list[TrialFolder]:
        """The trials of the search that have begun, in their order."""
        begun = (self.trial(trial_name(number)) for number in itertools.count(1))
        return list(itertools.takewhile(lambda trial: trial.folder.kind(TASK), begun))


def begun_elsewhere(uri: str, name: str) -> list[Folder]:
    """Return the folders of the sweeps of a name that other working directories have begun, newest first.

    Parameters
    ----------
    uri
        Of the MLflow store, whose runs say where their sweeps are.
    name
        Of the sweep.
    """
    found = sorted(search(uri, EXPERIMENT, {STEP_TAG: "tune"}), key=lambda run: -int(run.info.start_time))
    said = [run.data.tags.get(STORAGE_TAG) for run in found if run.info.run_name == name]
    return [folder for place in said if place and (folder := Folder.at(place)).kind(SWEEP)]


def check_name(name: str) -> str:
    """Return the name of a new sweep, which its folder is to have.

    Parameters
    ----------
    name
        As the user gave it.

    Raises
    ------
    InputError
        No folder can have it.
    """
    if not name.strip(".") or "/" in name or not name.isprintable() or len(os.fsencode(name)) > LONGEST_NAME:
        raise InputError(
            f"`name={name!r}`: names a folder; give printable characters without «/», at most {LONGEST_NAME} bytes"
        )
    return name


def trial_name(number: int) -> str:
    """Name of a trial of the search: ``"trial 1"``."""
    return f"trial {number}"


@dataclass(frozen=True)
class TrialFolder:
    """One model of a sweep in storage: its task, its MLflow run and how it ended."""

    sweep: SweepFolder
    name: str
    folder: Folder = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or "/" in self.name or self.name in ("", ".", ".."):
            raise InputError(f"{self.sweep.folder}: names a trial {self.name!r}: damaged; start a new sweep")
        object.__setattr__(self, "folder", self.sweep.folder / TRIALS / self.name)

    @property
    def run(self) -> Run | None:
        """Its MLflow run; None while it has none."""
        run_id = self._note(RUN_ID)
        return Run(self.sweep.uri, run_id) if run_id else None

    @property
    def outcome(self) -> Outcome | None:
        """How it ended; None while it has not."""
        if is_kept(self.folder):
            return "kept"
        return self._note(OUTCOME)  # type: ignore[return-value]

    @property
    def task(self) -> Task:
        """What it is to train."""
        return Task.of(self.folder.read(TASK))

    def assign(self, task: Task) -> None:
        """Write its task down; from now on it has begun."""
        self.folder.make()
        self.folder.write(TASK, (json.dumps(asdict(task), indent=1) + "\n").encode())

    @property
    def figures(self) -> dict[str, Any]:
        """Accuracies and loss of the kept model, from its checkpoint's card."""
        return checkpoint.read(self.folder)[1].figures

    def begin(self, leak: str) -> Run:
        """Resume its MLflow run, or start it; the run's parameters are the differences and the seed.

        Parameters
        ----------
        leak
            Why the feature set leaks; empty if it does not.
        """
        run, task = self.run, self.task
        if run:
            run.reopen()
            return run
        config = {**task.differences, "seed": task.seed}
        facts = json.dumps([task.parent, self.name, config])  # its process may die before it has noted the run
        key = hashlib.sha256(facts.encode()).hexdigest()
        run, _ = Run.resume_or_start(
            self.sweep.uri,
            EXPERIMENT,
            key,
            name=self.name,
            step="trial",
            config=config,
            parent=task.parent,
            tags={TRACK_TAG: self.sweep.train_config({}).track, STORAGE_TAG: str(self.folder)}
            | ({LEAKY_TAG: "true"} if leak else {}),
        )
        run.features(Folder.at(self.sweep.features), self.sweep.fingerprint, "training")
        self.folder.write(RUN_ID, run.id.encode())
        return run

    def end(self, outcome: Outcome, reason: str = "") -> None:
        """Record how it ended, here and in MLflow; the first record stands.

        Parameters
        ----------
        outcome
            How it ended.
        reason
            Why it was not kept, as a sentence.
        """
        if outcome != "kept":
            self.folder.write(OUTCOME, outcome.encode())
        if run := self.run:
            record = run.record()
            if OUTCOME_TAG not in record.tags:
                run.tag({OUTCOME_TAG: outcome} | ({REASON_TAG: reason[:5000]} if reason else {}))
            if record.status != STATUS[outcome]:
                run.finish(STATUS[outcome])

    def _note(self, name: str) -> str | None:
        """A line that was written into the folder, if it was."""
        try:
            return self.folder.read(name).decode()
        except FileNotFoundError:
            return None
