"""The champion: the one run whose model is in MLflow's registry as the best, until another is shown to be better.

A challenger must be evaluated on the test split. The comparison reads what both runs keep of that: no new look.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgc.core.errors import InputError
from mgc.core.storage import Folder
from mgc.evaluation.compare import LEVEL, between, evaluated
from mgc.evaluation.predictions import read_models
from mgc.model.cnn import together
from mgc.tracking import registry
from mgc.tracking.registry import CHAMPION, MODELS_TAG, REGISTERED
from mgc.tracking.runs import FEATURES_TAG, FINGERPRINT_TAG, LEAKY_TAG, PARENT_TAG, Run
from mgc.tracking.store import existing_store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mgc.evaluation.predictions import Predictions, Trained


def crown(run_id: str, features: str | Path | None = None, *, name: str = REGISTERED) -> dict[str, Any]:
    """Register a run's model and make it champion, if there is none or the run is shown to be better on the test split.

    Better is McNemar's exact test, p < ``compare.LEVEL``, on the clips that both were evaluated on. What is registered
    is what was tested: the run's model, or, of a parent run, its models as one that gives the mean of their
    probabilities. Interrupted, the same call does what is left to do.

    Parameters
    ----------
    run_id
        A training run, a trial, or a parent run, evaluated on the test split.
    features
        A feature set beside which the store is, in a Ray job.
    name
        Of the registered model.

    Returns
    -------
    dict
        ``run_id``, ``champion`` (the run that is champion now), ``version`` (its number in the registry), ``crowned``
        (whether this call made it champion), ``reason`` (a sentence), ``comparison`` (what ``compare`` says, A being
        the champion before; None if nothing was compared).

    Raises
    ------
    InputError
        There is no such run, it is leaky, or it is not evaluated on the test split of what it was trained on.
    """
    uri = existing_store(Folder.at(Path.cwd() if features is None else features))
    run, before = Run.find(uri, run_id), registry.champion(uri, name)

    def result(champion: str, version: str, reason: str, comparison: dict[str, Any] | None) -> dict[str, Any]:
        crowned = champion == run_id and (before is None or before.run_id != run_id)
        facts = {"run_id": run_id, "champion": champion, "version": version, "crowned": crowned}
        return facts | {"reason": reason, "comparison": comparison}

    if before and before.run_id == run_id:
        return result(run_id, before.number, "It is the champion already.", None)
    said, models = evaluated(run, "test"), read_models(run)
    _check(run, said, models)
    reason, comparison = "There was no champion.", None
    if before:
        try:
            comparison = between(_present(uri, before.run_id, name), run)
        except InputError as error:
            unknown = f"The champion stays, for it cannot be said which is better: {error}."
            return result(before.run_id, before.number, unknown, None)
        margin = f"{100 * comparison['difference']:+.1f} points, p = {comparison['p']:.2g}"
        if not (comparison["p"] < LEVEL and comparison["difference"] > 0):
            stays = f"The champion stays, for the run is not shown to be better: {margin}."
            return result(before.run_id, before.number, stays, comparison)
        reason = f"It is better than the champion before, run {before.run_id}: {margin}."
    members = tuple(model.run.id for model in models)
    model_id = _program(run, models, members)
    if registry.champion(uri, name) != before:  # another was crowned in these seconds: it is the one to beat
        return crown(run_id, features, name=name)
    number = registry.register(uri, name, model_id, run_id, members, _facts(said))
    registry.crown(uri, name, number)
    return result(run_id, number, reason, comparison)


def summary(result: dict[str, Any]) -> str:
    """Say who is champion and why, for a terminal."""
    return f"{result['reason']}\nchampion: run {result['champion']}, version {result['version']} in the model registry"


def _check(run: Run, said: Predictions, models: Sequence[Trained]) -> None:
    """Refuse a challenger whose figures cannot be believed, or are not of its models."""
    record = run.record()
    if record.deleted:
        raise InputError(f"run {run.id}: is deleted; restore it in «mgc ui»")
    related = [model.run for model in models if model.run != run]
    related += [Run.find(run.uri, parent) for parent in [record.tags.get(PARENT_TAG)] if parent]
    if said.source.leak or LEAKY_TAG in record.tags or any(LEAKY_TAG in each.record().tags for each in related):
        raise InputError(f"run {run.id}: its figures are LEAKY, and what leaks is never registered")
    if not said.are_of(models):
        raise InputError(f"run {run.id}: was evaluated with other models than it has now; evaluate it again")
    if any(model.card.fingerprint != said.source.fingerprint for model in models):
        raise InputError(
            f"run {run.id}: was trained on another feature set than it was evaluated on ({said.source.features}), "
            "of which it may know clips; evaluate it on its own"
        )


def _present(uri: str, run_id: str, name: str) -> Run:
    """The champion's run, to be compared with."""
    try:
        run = Run.find(uri, run_id)
    except InputError:
        pass
    else:
        if not run.record().deleted:
            return run
    raise InputError(f"its run {run_id} is gone or deleted (restore it, or take the alias {CHAMPION} off {name})")


def _program(run: Run, models: Sequence[Trained], members: Sequence[str]) -> str:
    """MLflow's id of what was tested as one program, which a single run has kept already."""
    card = models[0].card
    tags = {MODELS_TAG: ",".join(members)} if len(members) > 1 else {}
    return run.model(together([model.model for model in models]), card.spec.shape, len(card.genres), tags)


def _facts(said: Predictions) -> dict[str, str]:
    """What a version's tags say besides whose it is."""
    source, scores = said.source, said.score()
    facts = {
        "test_accuracy": scores.accuracy,
        "test_ci95_low": scores.ci95[0],
        "test_ci95_high": scores.ci95[1],
        "test_macro_f1": scores.macro_f1,
        "test_clips": scores.n,
        "looks": source.looks,
        "genres": list(source.genres),
    }
    described = {f"mgc.{key}": json.dumps(value, ensure_ascii=False) for key, value in facts.items()}
    return described | {FINGERPRINT_TAG: source.fingerprint, FEATURES_TAG: source.features}
