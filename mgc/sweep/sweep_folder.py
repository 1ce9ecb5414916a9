"""A sweep as its folder remembers it: what was asked for, its trials, and how each ended. No Ray.

sweeps/NAME/sweep.json           what was asked for
sweeps/NAME/searched.json        the trials of the search, once it is over
sweeps/NAME/population.json      of population based training: who trains what, generation by generation
sweeps/NAME/trials/TRIAL/        one model: its task, its fit's state or checkpoint, its MLflow run, how it ended
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from mgc.config import SweepConfig, TrainConfig, overlay
from mgc.core.atomic_files import write_text
from mgc.core.errors import InputError
from mgc.core.storage import Folder
from mgc.model import checkpoint
from mgc.sweep.space import nested
from mgc.tracking import runs as tracking
from mgc.tracking.runs import LEAKY_TAG, OUTCOME_TAG, REASON_TAG, Run
from mgc.training.loop import is_kept

Outcome: TypeAlias = Literal["kept", "pruned", "failed", "stopped"]
"""A model that was trained to its end; stopped because it lagged, because it raised or died, or for lack of time."""
STATUS = {"kept": "FINISHED", "pruned": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
SWEEP, SEARCHED, POPULATION, TRIALS = "sweep.json", "searched.json", "population.json", "trials"
TASK, RUN_ID, OUTCOME = "task.json", "run_id", "outcome"
"""Files in a trial's folder: what it is to do, its MLflow run, and how it ended if not with a kept model."""

Course: TypeAlias = list[tuple[int, dict[str, Any]]]
"""What a model is trained with: from which epoch, and what differs from the sweep's base, by dotted names. One entry,
but for models of population based training."""


@dataclass(frozen=True)
class Task:
    """One model to train."""

    name: str
    """Of its folder and its MLflow run."""
    course: Course
    seed: int
    parent: str
    """MLflow run that it is nested under."""
    until: int | None = None
    """Epoch to pause after; None trains to the end and keeps the model."""
    own_from: int = 1
    """The epochs before were another model's, which this one has taken up."""


@dataclass(frozen=True)
class Sweep:
    """What was asked for."""

    folder: Path
    features: str
    fingerprint: str
    base: dict[str, Any]
    """The configuration that trials change."""
    space: dict[str, Any]
    """As ``mgc.sweep.space.Space.of`` reads it."""
    config: SweepConfig
    uri: str
    parent_run_id: str

    @classmethod
    def read(cls, folder: Path) -> Sweep:
        """The sweep of a folder.

        Raises
        ------
        InputError
            There is none.
        """
        try:
            facts = json.loads((folder / SWEEP).read_text())
            tree = facts.pop("config")
            return cls(folder, **facts, config=SweepConfig(**tree | {"without": tuple(tree["without"])}))
        except OSError:
            known = ", ".join(sorted(path.parent.name for path in folder.parent.glob(f"*/{SWEEP}"))) or "none"
            raise InputError(f"--resume {folder.name}: no such sweep; there are: {known}") from None
        except (ValueError, TypeError, KeyError, AttributeError, InputError) as error:
            raise InputError(f"{folder / SWEEP}: damaged ({error}); start a new sweep") from None

    def write(self) -> None:
        """Make the folder; from now on the sweep can be gone on with."""
        (self.folder / TRIALS).mkdir(parents=True)
        facts = {name: value for name, value in asdict(self).items() if name != "folder"}
        write_text(json.dumps(facts, indent=1) + "\n", self.folder / SWEEP)

    @property
    def epochs(self) -> int:
        """The most that a trial gets."""
        return int(self.base["epochs"])

    @property
    def seed(self) -> int:
        """Of the search."""
        return int(self.base["seed"])

    @property
    def parent(self) -> Run:
        """The MLflow run of the sweep."""
        return Run(self.uri, self.parent_run_id)

    def train_config(self, differences: dict[str, Any], seed: int | None = None) -> TrainConfig:
        """The whole configuration of a model."""
        config = overlay(overlay(TrainConfig(), self.base), nested(differences))
        return config if seed is None else replace(config, seed=seed)

    def trial(self, name: str) -> Trial:
        """A trial by its name."""
        return Trial(self, name)

    def searched(self) -> list[Trial]:
        """The trials of the search that have begun, in their order."""
        begun = (self.trial(trial_name(number)) for number in itertools.count(1))
        return list(itertools.takewhile(lambda trial: (trial.folder / TASK).exists(), begun))


def trial_name(number: int) -> str:
    """What a trial of the search is called."""
    return f"trial {number}"


@dataclass(frozen=True)
class Trial:
    """One model of a sweep."""

    sweep: Sweep
    name: str
    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", self.sweep.folder / TRIALS / self.name)

    @property
    def run(self) -> Run | None:
        """Its MLflow run; None while it has none."""
        note = self.folder / RUN_ID
        return Run(self.sweep.uri, note.read_text()) if note.exists() else None

    @property
    def outcome(self) -> Outcome | None:
        """How it ended; None while it has not."""
        if is_kept(self.folder):
            return "kept"
        note = self.folder / OUTCOME
        return note.read_text() if note.exists() else None  # type: ignore[return-value]

    @property
    def task(self) -> Task:
        """What it was given to do."""
        return Task(**json.loads((self.folder / TASK).read_text()))

    def assign(self, task: Task) -> None:
        """Give it something to do; from now on it has begun."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(json.dumps(asdict(task), indent=1) + "\n", self.folder / TASK)

    @property
    def figures(self) -> dict[str, Any]:
        """Of the kept model, as its card has them."""
        return checkpoint.read(self.folder)[1].figures

    def begin(self, leak: str) -> Run:
        """Its MLflow run: the one that it has, taken up again, or a new one, whose parameters are what differs."""
        run, task = self.run, self.task
        if run:
            run.reopen()
            return run
        config = {**task.course[0][1], "seed": task.seed}
        facts = json.dumps([task.parent, self.name, config])  # its process may die before it has noted the run
        key = hashlib.sha256(facts.encode()).hexdigest()
        run, _ = Run.resume_or_start(
            self.sweep.uri,
            tracking.EXPERIMENT,
            key,
            name=self.name,
            step="trial",
            config=config,
            parent=task.parent,
            tags={LEAKY_TAG: "true"} if leak else {},
        )
        run.features(Folder.at(self.sweep.features), self.sweep.fingerprint, "training")
        write_text(run.id, self.folder / RUN_ID)
        return run

    def end(self, outcome: Outcome, reason: str = "") -> None:
        """Say how it ended, here and in MLflow; once."""
        if outcome != "kept":
            write_text(outcome, self.folder / OUTCOME)
        if run := self.run:
            record = run.record()
            if OUTCOME_TAG not in record.tags:
                run.tag({OUTCOME_TAG: outcome} | ({REASON_TAG: reason[:5000]} if reason else {}))
            if record.status != STATUS[outcome]:
                run.finish(STATUS[outcome])
