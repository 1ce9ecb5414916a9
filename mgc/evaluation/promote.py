"""The command ``mgc promote``: the champion is the one run whose model is registered as the best so far.

A challenger must have been evaluated on the test set. Both runs are compared by the predictions that they keep. What
leaks (by ``mgc.dataset.protocols.leak``, as the evaluation and the run have it) is never registered.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgc.core.errors import InputError
from mgc.core.results import Result
from mgc.core.storage import Folder
from mgc.evaluation import run_card
from mgc.evaluation.compare import LEVEL, Comparison, between, evaluated
from mgc.evaluation.trained_models import read_models
from mgc.model.cnn import together
from mgc.tracking import registry
from mgc.tracking.registry import CHAMPION, MODELS_TAG, REGISTERED
from mgc.tracking.runs import FEATURES_TAG, FINGERPRINT_TAG, LEAKY_TAG, PARENT_TAG, REGISTERED_TAG, Run, run_id_of
from mgc.tracking.store import existing_store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mgc.evaluation.predictions import Predictions
    from mgc.evaluation.trained_models import TrainedModel
    from mgc.tracking.runs import RunLike


@dataclass(frozen=True)
class Promotion(Result):
    """Which run is the champion after a promotion was tried, and why."""

    run_id: str
    """The challenger."""
    champion: str
    """The run that is the champion now."""
    version: str
    """Its number in the model registry."""
    promoted: bool
    """Whether the challenger became the champion by this call."""
    reason: str
    """A sentence."""
    comparison: Comparison | None
    """The champion before (A) and the challenger (B); None if nothing was compared."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: the fields, and ``crowned``, the name of ``promoted`` before."""
        comparison = self.comparison and self.comparison.to_dict()
        return vars(self) | {"comparison": comparison, "crowned": self.promoted}

    def __str__(self) -> str:
        """Return the reason and the champion."""
        return f"{self.reason}\nchampion: run {self.champion}, version {self.version} in the model registry"


def promote(run: RunLike, features: str | Path | None = None, *, name: str = REGISTERED) -> Promotion:
    """Register a run's model as the champion, if there is none or it is significantly better on the test set.

    Significantly better is McNemar's exact test, p < ``compare.LEVEL``, on the clips that both were evaluated on. The
    registered model is the evaluated one: the run's model, or of a parent run the ensemble. An interrupted promotion is
    completed by the same call.

    Parameters
    ----------
    run : str or object with ``run_id``
        A training run, a trial, or a parent run, evaluated on the test split.
    features
        In a Ray job: the feature set beside which the MLflow store is.
    name
        Of the registered model.

    Returns
    -------
    Promotion
        Who is the champion now; ``print`` shows it.

    Raises
    ------
    InputError
        There is no such run, its figures are leaky, or it was not evaluated on the test split of the feature set that
        it was trained on.
    RunError
        The MLflow store does not answer.
    """
    uri = existing_store(Folder.at(Path.cwd() if features is None else features))
    challenger, before = Run.find(uri, run_id_of(run)), registry.champion(uri, name)

    def stays(reason: str, comparison: Comparison | None = None) -> Promotion:
        assert before
        return Promotion(
            challenger.id, before.run_id, before.number, promoted=False, reason=reason, comparison=comparison
        )

    if before and before.run_id == challenger.id:
        return stays("It is the champion already.")
    predictions, models = evaluated(challenger, "test"), read_models(challenger)
    _check(challenger, predictions, models)
    reason, comparison = "There was no champion.", None
    if before:
        try:
            comparison = between(_present(uri, before.run_id, name), challenger)
        except InputError as error:
            return stays(f"The champion stays, for the two cannot be compared: {error}.")
        margin = f"{100 * comparison.difference:+.1f} points, p = {comparison.p:.2g}"
        if not (comparison.p < LEVEL and comparison.difference > 0):
            return stays(f"The champion stays, for the run is not shown to be better: {margin}.", comparison)
        reason = f"It is better than the champion before, run {before.run_id}: {margin}."
    members = tuple(model.run.id for model in models)
    model_id = _program(challenger, models, members)
    if registry.champion(uri, name) != before:  # another was promoted in these seconds: it is the one to beat
        return promote(run, features, name=name)
    number = registry.register(uri, name, model_id, challenger.id, members, _facts(predictions))
    challenger.tag({REGISTERED_TAG: f"{name}, version {number}"})
    run_card.keep(challenger, models, model_id=model_id)
    registry.set_champion(uri, name, number)
    return Promotion(challenger.id, challenger.id, number, promoted=True, reason=reason, comparison=comparison)


def _check(run: Run, predictions: Predictions, models: Sequence[TrainedModel]) -> None:
    """Refuse a challenger that is deleted or leaky, or whose predictions are not of its models or its feature set."""
    record = run.record()
    if record.deleted:
        raise InputError(f"run {run.id}: is deleted; restore it in «mgc ui»")
    related = [model.run for model in models if model.run != run]
    related += [Run.find(run.uri, parent) for parent in [record.tags.get(PARENT_TAG)] if parent]
    if predictions.source.leak or LEAKY_TAG in record.tags or any(LEAKY_TAG in each.record().tags for each in related):
        raise InputError(f"run {run.id}: its figures are LEAKY, and what leaks is never registered")
    if not predictions.are_of(model.run.id for model in models):
        raise InputError(f"run {run.id}: was evaluated with other models than it has now; evaluate it again")
    if any(model.card.fingerprint != predictions.source.fingerprint for model in models):
        raise InputError(
            f"run {run.id}: was trained on another feature set than it was evaluated on "
            f"({predictions.source.features}), of which it may know clips; evaluate it on its own"
        )


def _present(uri: str, run_id: str, name: str) -> Run:
    """The champion's run, if it is still there."""
    try:
        run = Run.find(uri, run_id)
    except InputError:
        pass
    else:
        if not run.record().deleted:
            return run
    raise InputError(f"its run {run_id} is gone or deleted (restore it, or take the alias {CHAMPION} off {name})")


def _program(run: Run, models: Sequence[TrainedModel], members: Sequence[str]) -> str:
    """MLflow's id of the evaluated model as one program; a single run has logged it already."""
    card = models[0].card
    tags = {MODELS_TAG: ",".join(members)} if len(members) > 1 else {}
    return run.model(together([model.model for model in models]), card.spec.shape, len(card.genres), tags)


def _facts(predictions: Predictions) -> dict[str, str]:
    """Tags of a version besides whose it is."""
    source, scores = predictions.source, predictions.score()
    facts = {
        "test_accuracy": scores.accuracy,
        "test_ci95_low": scores.ci95[0],
        "test_ci95_high": scores.ci95[1],
        "test_macro_f1": scores.macro_f1,
        "test_clips": scores.n,
        "looks": source.test_evaluations,
        "genres": list(source.genres),
    }
    described = {f"mgc.{key}": json.dumps(value, ensure_ascii=False) for key, value in facts.items()}
    return described | {FINGERPRINT_TAG: source.fingerprint, FEATURES_TAG: source.features}
