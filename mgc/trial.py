"""One trial of a sweep: a plain function around ``mgc.fit``, its MLflow run, and how it ended.

A trial's folder, ``SWEEP/trials/ID``, holds the fit's checkpoint and state, the id of its run, and, if its model was
not kept, a note of how it ended.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import tune as ray_tune

from mgc import checkpoint, tracking
from mgc.config import TrainConfig, overlay
from mgc.errors import InputError
from mgc.files import write_text
from mgc.fit import fit, is_kept
from mgc.fit_run import keep
from mgc.fit_state import Epoch
from mgc.folder import Folder
from mgc.learning import LearningSet
from mgc.space import nested

METRIC = "val_accuracy"
SWEEP = "sweep.json"
RUN_ID, OUTCOME = "run_id", "outcome"
"""Files in a trial's folder: its MLflow run, and how it ended if not with a kept model."""


@dataclass(frozen=True)
class Sweep:
    """A sweep as its folder remembers it."""

    features: str
    fingerprint: str
    base: dict[str, Any]
    """The configuration that the trials change."""
    trials: int
    concurrent: int
    uri: str
    parent_run_id: str
    space: dict[str, Any]
    """As ``mgc.space.Space.of`` reads it."""
    search: str

    @classmethod
    def read(cls, folder: Path) -> Sweep:
        """The sweep of a folder.

        Raises
        ------
        InputError
            There is none.
        """
        try:
            return cls(**json.loads((folder / SWEEP).read_text()))
        except OSError:
            known = ", ".join(sorted(path.parent.name for path in folder.parent.glob(f"*/{SWEEP}"))) or "none"
            raise InputError(f"--resume {folder.name}: no such sweep; there are: {known}") from None
        except (ValueError, TypeError) as error:
            raise InputError(f"{folder / SWEEP}: damaged ({error}); start a new sweep") from None


def run_trial(
    sample: dict[str, Any], *, sweep: Sweep, folder: Path, data: LearningSet, resources: dict[str, float]
) -> None:
    """One trial, in its own process; it owns its MLflow run, and takes it up again when the sweep is resumed.

    Tune hears of the best accuracy so far after each epoch, but of the last one only when the model is kept: stopping
    a trial there costs nothing.
    """
    work = folder / "trials" / ray_tune.get_context().get_trial_id()
    torch.set_num_threads(int(resources["cpu"]))
    config = overlay(overlay(TrainConfig(), sweep.base), nested(sample))
    if not is_kept(work):
        run = _own_run(sweep, work, config)
        best = 0.0

        def report(point: Epoch) -> None:
            nonlocal best
            best = max(best, point.val_accuracy)
            run.metrics(point.metrics(), epoch=point.epoch, at=point.ended)
            if point.epoch < config.epochs:
                ray_tune.report({METRIC: best, "epoch": point.epoch})

        with run.closing():
            device = "cuda" if resources["gpu"] > 0 else "cpu"
            keep(run, fit(config, data, work, on_epoch=report, device=device), data)
    ray_tune.report({METRIC: checkpoint.read(work)[1].figures[METRIC], "epoch": config.epochs})


def _own_run(sweep: Sweep, work: Path, config: TrainConfig) -> tracking.Run:
    """The trial's MLflow run: the one its folder names, or a new one."""
    if run := run_of(sweep, work):
        run.reopen()
        return run
    run = tracking.Run.start(
        sweep.uri,
        tracking.EXPERIMENT,
        name=work.name,
        step="trial",
        config=config.to_dict(),
        parent=sweep.parent_run_id,
    )
    run.features(Folder.at(sweep.features), sweep.fingerprint, "training")
    work.mkdir(parents=True, exist_ok=True)
    write_text(run.id, work / RUN_ID)
    return run


def run_of(sweep: Sweep, work: Path) -> tracking.Run | None:
    """The MLflow run that a trial's folder names; None while it has none."""
    note = work / RUN_ID
    return tracking.Run(sweep.uri, note.read_text()) if note.exists() else None


def outcome_of(work: Path) -> str | None:
    """How a trial ended: kept, pruned or failed; None while it has not."""
    if is_kept(work):
        return "kept"
    note = work / OUTCOME
    return note.read_text() if note.exists() else None


def close(sweep: Sweep, work: Path, status: str, tags: dict[str, str]) -> None:
    """End the run of a trial that was stopped or killed before it could."""
    if run := run_of(sweep, work):
        run.tag(tags)
        run.finish(status)
