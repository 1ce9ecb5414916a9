"""What of a search's result is luck, and what is due to each field: retraining with fresh seeds, and ablation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, TypeAlias

from mgc.config import TrainConfig
from mgc.core.errors import InputError, RunError
from mgc.core.progress import say
from mgc.core.results import Result
from mgc.sweep.space import field_of
from mgc.sweep.sweep_folder import Task
from mgc.tracking.runs import EXPERIMENT, FIELD_TAG, OF_TAG, OFF_TAG, REASON_TAG, STAGE_TAG, VALUE_TAG, Run
from mgc.training.run_logging import describe

if TYPE_CHECKING:
    from collections.abc import Callable

    from mgc.features.feature_set import FeatureSet
    from mgc.sweep.sweep_folder import SweepFolder, TrialFolder

    Train: TypeAlias = Callable[[list[Task], str], None]
    """Trains models, under a title, and returns when all have ended."""


@dataclass(frozen=True)
class SeedScores(Result):
    """A configuration trained with several fresh seeds; accuracies are means over the seeds."""

    run_id: str
    """MLflow run that holds its models."""
    name: str
    val_accuracy: float
    val_accuracy_sd: float
    """Standard deviation over the seeds."""
    train_accuracy: float
    first_val_accuracy: float | None = None
    """Of a retrained configuration: its accuracy in the search."""
    shrinkage: float | None = None
    """Of a retrained configuration: how much of that was luck, its accuracy in the search minus the mean."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the fields that an ablation does not have."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class _Group:
    """A configuration to train with fresh seeds, in a run of its own that is nested in the sweep's."""

    name: str
    differences: dict[str, Any]
    tags: dict[str, str]
    first: float | None = None


def retrain(
    sweep: SweepFolder, feature_set: FeatureSet, best: list[TrialFolder], train: Train
) -> list[tuple[TrialFolder, SeedScores]]:
    """Train the best configurations of a search with seeds that it has not seen.

    Parameters
    ----------
    sweep
        The sweep.
    feature_set
        What it learns from.
    best
        Kept trials of the search.
    train
        Trains models, under a title, and returns when all have ended.

    Returns
    -------
    list of tuple
        The best with their scores; one of which a model failed is left out.

    Raises
    ------
    RunError
        None of them could be trained.
    """
    groups = []
    for trial in best:
        assert trial.run
        tags = {STAGE_TAG: "again", OF_TAG: trial.run.id}
        first = trial.figures["val_accuracy"]
        groups.append(_Group(f"again: {trial.name}", trial.task.differences, tags, first))
    title = f"retrain: top {len(best)} × {sweep.config.seeds} fresh seeds"
    scores = {each.name: each for each in _train(sweep, feature_set, groups, train, title)}
    if not scores:
        raise RunError("tune: none of the best could be retrained; see «mgc ui»")
    pairs = zip(best, groups, strict=True)
    return [(trial, scores[group.name]) for trial, group in pairs if group.name in scores]


def ablate(
    sweep: SweepFolder, feature_set: FeatureSet, winner: str, differences: dict[str, Any], train: Train
) -> list[SeedScores]:
    """Train the winner with one field off at a time (``SweepConfig.without``), with the same seeds as the winner.

    A field that is off in the winner is set to the base configuration's value instead.

    Parameters
    ----------
    sweep
        The sweep.
    feature_set
        What it learns from.
    winner
        MLflow run that holds the winner's models.
    differences
        The winner's values that differ from the base configuration, by dotted field name.
    train
        Trains models, under a title, and returns when all have ended.

    Returns
    -------
    list of SeedScores
        For each field; one of which a model failed is left out.
    """
    base, config = sweep.train_config({}), sweep.train_config(differences)
    groups = []
    for field in sweep.config.without:
        value, off = field_of(config, field), off_value(field, base)
        word, other = ("without", off) if value != off else ("with", field_of(base, field))
        if other == value:
            say(f"tune: {field} is off in the winner and in the base configuration; nothing to compare")
            continue
        tags = {STAGE_TAG: "without", OF_TAG: winner, FIELD_TAG: field, VALUE_TAG: str(value), OFF_TAG: str(other)}
        groups.append(_Group(f"{word} {field}", differences | {field: other}, tags))
    return _train(sweep, feature_set, groups, train, f"ablate: {len(groups)} × {sweep.config.seeds} seeds")


def off_value(field: str, config: TrainConfig) -> Any:
    """The value by which a field is off: false, zero, or, of a choice, that of the plain CNN.

    Parameters
    ----------
    field
        Dotted name.
    config
        A configuration that has the field.

    Raises
    ------
    InputError
        There is no such field.
    """
    try:
        value = field_of(config, field)
    except InputError as error:
        raise InputError(f"`without={field}`: {error}") from None
    if isinstance(value, bool | int | float):
        return type(value)(0)
    return field_of(TrainConfig(), field)  # whose defaults are the plain CNN


def _train(
    sweep: SweepFolder, feature_set: FeatureSet, groups: list[_Group], train: Train, title: str
) -> list[SeedScores]:
    """Train configurations, all with the same fresh seeds; leave out those of which a model failed."""
    first = sweep.seed + 1
    runs = {group.name: _run(sweep, feature_set, group) for group in groups}
    tasks = {
        group.name: [
            Task(f"{group.name.replace(':', '')}, seed {seed}", group.differences, seed, runs[group.name].id)
            for seed in range(first, first + sweep.config.seeds)
        ]
        for group in groups
    }
    every = [task for each in tasks.values() for task in each]
    if any(sweep.trial(task.name).outcome is None for task in every):
        train(every, title)
    scores = []
    for group in groups:
        run, models = runs[group.name], [sweep.trial(task.name) for task in tasks[group.name]]
        if any(model.outcome != "kept" for model in models):
            run.tag({REASON_TAG: "not all of its models could be trained"})
            run.finish("FAILED")
            say(f"tune: {group.name}: not all of its models could be trained; see «mgc ui»")
            continue
        for model in models:
            model.end("kept")
        figures = [model.figures for model in models]
        accuracies = [each["val_accuracy"] for each in figures]
        shrinkage = None if group.first is None else group.first - mean(accuracies)
        training = mean(each["train_accuracy"] for each in figures)
        scores.append(
            SeedScores(run.id, group.name, mean(accuracies), stdev(accuracies), training, group.first, shrinkage)
        )
        if run.record().status != "FINISHED":
            run.metrics({name: value for name, value in scores[-1].to_dict().items() if isinstance(value, float)})
            run.finish("FINISHED")
    return scores


def _run(sweep: SweepFolder, feature_set: FeatureSet, group: _Group) -> Run:
    """The MLflow run of a group: finished, resumed or new."""
    key = f"{sweep.parent_run_id} {group.name}"
    if done := Run.finished(sweep.uri, EXPERIMENT, key):
        return done
    run, resumed = Run.resume_or_start(
        sweep.uri,
        EXPERIMENT,
        key,
        name=group.name,
        step="seeds",
        config={**group.differences, "seeds": sweep.config.seeds},
        tags=group.tags,
        parent=sweep.parent_run_id,
    )
    if not resumed:
        describe(run, feature_set, sweep.train_config({}))
    return run
