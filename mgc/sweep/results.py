"""A sweep as MLflow has it: its trials, the configurations retrained with fresh seeds, and the ablated fields.

Shape suffixes: N clips, S seeds.
"""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mgc.config import TrainConfig, overlay
from mgc.core.errors import InputError
from mgc.core.results import Result
from mgc.evaluation.metrics import Estimate, over_seeds
from mgc.evaluation.predictions import Predictions
from mgc.sweep.space import Space
from mgc.sweep.sweep_folder import CURVE
from mgc.tracking.runs import (
    BEST_TAG,
    FIELD_TAG,
    OF_TAG,
    OFF_TAG,
    OUTCOME_TAG,
    REASON_TAG,
    STAGE_TAG,
    STEP_TAG,
    VALUE_TAG,
    WINNER_TAG,
    Run,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mgc.tracking.runs import Record

SPACE, BASE = "space.json", "base.json"
"""Artifacts of a sweep: its search space, and the configuration that its trials change."""


@dataclass(frozen=True)
class Trial:
    """One configuration of the search."""

    run_id: str
    name: str
    outcome: str
    """``kept``, ``pruned``, ``failed``, ``stopped``, or ``running``."""
    reason: str
    """Why it was not kept."""
    values: dict[str, Any]
    """Its values by dotted field name; a conditional dimension may be missing."""
    epochs: tuple[int, ...]
    curve: tuple[float, ...]
    """Validation accuracy after each epoch."""
    val_accuracy: float | None
    """Of the kept model; else the best before it ended; None where there was no epoch."""
    gap: float | None
    """Training minus validation accuracy of the kept model."""

    @property
    def kept(self) -> bool:
        """Whether it was trained to its end."""
        return self.outcome == "kept" and self.val_accuracy is not None


@dataclass(frozen=True, eq=False)
class SeedModel:
    """One of a configuration's models, with a fresh seed."""

    run_id: str
    seed: int
    train_accuracy: float
    track_ids_N: NDArray[np.int64]
    """Of the validation clips, ascending."""
    right_N: NDArray[np.bool_]
    """Whether each validation clip is classified correctly."""

    @property
    def val_accuracy(self) -> float:
        """Share of the validation clips that are classified correctly."""
        return float(self.right_N.mean())


@dataclass(frozen=True)
class Retrained:
    """One of the search's best configurations, retrained with fresh seeds."""

    run_id: str
    name: str
    trial: Trial | None
    """The trial that found it."""
    models: tuple[SeedModel, ...]
    val_accuracy: float
    """Mean over the seeds."""
    sd: float
    """Standard deviation of the validation accuracy over the seeds."""
    train_accuracy: float
    """Mean over the seeds."""
    first: float
    """Validation accuracy of the trial."""
    shrinkage: float
    """How much of that was luck: the trial's accuracy minus the mean."""

    @property
    def configuration(self) -> str:
        """Name of the configuration: the trial's."""
        return self.trial.name if self.trial else self.name


@dataclass(frozen=True)
class Effect(Result):
    """Ablation of one field: winner minus the winner with the field off, paired by seed and clip."""

    field: str
    """Dotted name."""
    value: str
    """In the winner."""
    off: str
    """In the ablated configuration."""
    accuracy: Estimate
    """Difference of the validation accuracies."""
    gap: Estimate
    """Difference of the gaps (training minus validation accuracy): below zero the field closes the gap."""
    seeds: int
    """Pairs of models."""
    clips: int
    """Validation clips."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values; ``accuracy`` under its name of before, ``bought``."""
        tree = asdict(self)
        return {"bought" if name == "accuracy" else name: value for name, value in tree.items()}


@dataclass(frozen=True)
class SweepView:
    """A sweep's parent run and the runs under it."""

    run: Run
    record: Record
    search: str
    """``tpe``, ``random`` or ``grid``; of old sweeps also ``pbt``."""
    space: Space
    trials: tuple[Trial, ...]
    """The best first; those that were not trained to their end behind those that were."""
    best: Trial | None
    """Of the search."""
    retrained: tuple[Retrained, ...]
    """The best mean first."""
    winner: Retrained | None
    """The best mean."""
    effects: tuple[Effect, ...]
    """The largest first."""
    missing: tuple[str, ...]
    """Ablations that could not be compared, and why."""

    @property
    def kept(self) -> tuple[Trial, ...]:
        """Trials that were trained to their end."""
        return tuple(trial for trial in self.trials if trial.kept)


def read(run: Run) -> SweepView:
    """Read a sweep, finished or not, from its parent run.

    Raises
    ------
    InputError
        The run is no sweep, or lacks the artifacts ``space.json`` and ``base.json``.
    """
    record = run.record()
    if record.tags.get(STEP_TAG) != "tune":
        raise InputError(f"run {run.id}: is no sweep but of step «{record.tags.get(STEP_TAG, '?')}»")
    space = Space.of(_tree(run, SPACE), overlay(TrainConfig(), _tree(run, BASE)))
    children = [(child, child.record()) for child in run.children()]
    of_step = {step: [pair for pair in children if pair[1].tags.get(STEP_TAG) == step] for step in ("trial", "seeds")}
    trials = sorted((_trial(child, its, space) for child, its in of_step["trial"]), key=_rank)
    by_id = {trial.run_id: trial for trial in trials}
    repeated = [_retrained(*pair, by_id) for pair in of_step["seeds"] if _is_of(pair[1], "again")]
    retrained = sorted(repeated, key=lambda each: -each.val_accuracy)
    winner = next((each for each in retrained if each.run_id == record.tags.get(WINNER_TAG)), None)
    effects, missing = [], []
    for child, its in of_step["seeds"]:
        if winner and _is_of(its, "without") and its.tags.get(OF_TAG) == winner.run_id:
            try:
                effects.append(_compare(winner.models, _models(child), its, child))
            except InputError as error:
                missing.append(f"{its.tags.get(FIELD_TAG, its.name)}: {error}")
    best = by_id.get(record.tags.get(BEST_TAG, "")) or next((trial for trial in trials if trial.kept), None)
    return SweepView(
        run,
        record,
        record.params.get("search", "?"),
        space,
        tuple(trials),
        best,
        tuple(retrained),
        winner,
        tuple(sorted(effects, key=lambda each: -each.accuracy.mean)),
        tuple(missing),
    )


def effect_of(winner: Run, ablated: Run) -> Effect:
    """Compare the winner with an ablation of one field.

    Parameters
    ----------
    winner
        Parent run of the winner's seeds.
    ablated
        Parent run of the same seeds with the field off.

    Raises
    ------
    InputError
        The two have no seed in common, or were validated on different clips.
    """
    return _compare(_models(winner), _models(ablated), ablated.record(), ablated)


def _compare(winner: tuple[SeedModel, ...], ablated: tuple[SeedModel, ...], record: Record, run: Run) -> Effect:
    """The two paired by seed."""
    by_seed = {model.seed: model for model in ablated}
    pairs = [(model, by_seed[model.seed]) for model in winner if model.seed in by_seed]
    if not pairs:
        raise InputError(f"run {run.id}: no seed is finished here and in what it is compared with")
    clips = pairs[0][0].track_ids_N
    if not all(np.array_equal(clips, model.track_ids_N) for pair in pairs for model in pair):
        raise InputError(f"run {run.id}: validated on other clips than what it is compared with")
    winner_SN, ablated_SN = (np.array([pair[side].right_N for pair in pairs], np.int64) for side in (0, 1))
    training_S = np.array([a.train_accuracy - b.train_accuracy for a, b in pairs])
    return Effect(
        record.tags.get(FIELD_TAG, "?"),
        record.tags.get(VALUE_TAG, "?"),
        record.tags.get(OFF_TAG, "?"),
        over_seeds(winner_SN - ablated_SN),
        over_seeds(ablated_SN - winner_SN, training_S),
        len(pairs),
        len(clips),
    )


def _trial(run: Run, record: Record, space: Space) -> Trial:
    values = {
        each.field: value
        for each in space.dimensions
        if each.field in record.params and (value := each.parse(record.params[each.field])) is not None
    }
    history = [point for point in run.history((CURVE,)) if math.isfinite(point[CURVE])]
    curve = tuple(point[CURVE] for point in history)
    return Trial(
        run.id,
        record.name,
        record.tags.get(OUTCOME_TAG, "running"),
        record.tags.get(REASON_TAG, ""),
        values,
        tuple(int(point["epoch"]) for point in history),
        curve,
        record.metrics.get("val_accuracy", max(curve, default=None)),
        record.metrics.get("gap"),
    )


def _rank(trial: Trial) -> tuple[bool, float]:
    return not trial.kept, 0.0 if trial.val_accuracy is None else -trial.val_accuracy


def _is_of(record: Record, stage: str) -> bool:
    """Whether a run of seeds is of this stage, and finished."""
    return record.tags.get(STAGE_TAG) == stage and record.status == "FINISHED" and "val_accuracy" in record.metrics


def _retrained(run: Run, record: Record, trials: dict[str, Trial]) -> Retrained:
    metrics = record.metrics
    mean = metrics["val_accuracy"]
    first = metrics.get("first_val_accuracy", math.nan)
    return Retrained(
        run.id,
        record.name,
        trials.get(record.tags.get(OF_TAG, "")),
        _models(run),
        mean,
        metrics.get("val_accuracy_sd", math.nan),
        metrics.get("train_accuracy", math.nan),
        first,
        metrics.get("shrinkage", first - mean),
    )


def _models(run: Run) -> tuple[SeedModel, ...]:
    """The models of a run of seeds whose predictions of the validation clips are there, by their seed."""
    models = []
    for child in run.children():
        record, kept = child.record(), Predictions.kept(child, "validation")
        if kept is not None and {"seed"} <= record.params.keys() and "train_accuracy" in record.metrics:
            order = np.argsort(kept.track_ids_N)
            seed, train_accuracy = int(record.params["seed"]), record.metrics["train_accuracy"]
            models.append(SeedModel(child.id, seed, train_accuracy, kept.track_ids_N[order], kept.right[order]))
    return tuple(sorted(models, key=lambda model: model.seed))


def _tree(run: Run, artifact: str) -> dict[str, Any]:
    """An artifact that is a JSON object."""
    with tempfile.TemporaryDirectory() as folder:
        file = run.fetch(artifact, Path(folder))
        if file is None:
            raise InputError(f"run {run.id}: keeps no {artifact}, by which its trials are read (an older sweep?)")
        tree: dict[str, Any] = json.loads(file.read_text())
        return tree
