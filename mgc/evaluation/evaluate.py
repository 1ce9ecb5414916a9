"""Evaluate a run's model, or its models together, on a split: figures, their uncertainty and pictures, kept with it.

A look at a test split is counted, whatever comes of it (``predictions.looking``).
"""

from __future__ import annotations

from dataclasses import asdict, replace
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from mgc.core.errors import InputError
from mgc.core.progress import say
from mgc.dataset.protocols import held_out
from mgc.evaluation import figures as pictures
from mgc.evaluation import run_page as report
from mgc.evaluation.predictions import Predictions, Source, ensemble, judge, looking, on_validation, read_models
from mgc.features.feature_set import FeatureSet
from mgc.tracking.runs import LEAKY_TAG, Run
from mgc.tracking.store import existing_store

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mgc.evaluation.metrics import Scores
    from mgc.evaluation.predictions import Trained


def evaluate(run_id: str, features: str | Path, *, split: str = "test") -> dict[str, Any]:
    """Score the model of an MLflow run, or the ensemble of a parent run's models, on one split of a feature set.

    The figures, two pictures and the predictions are kept with the run, and of a parent with each of its runs too. An
    ensemble's probabilities are the mean of its members'. On ``validation`` a cross-validation is scored on all of its
    clips, each judged by the model, or the ensemble of seeds, that has not learnt from its fold.

    Parameters
    ----------
    run_id
        A training run, a trial of a sweep, or a parent run of seeds or folds.
    features
        A finished feature set of the same genres and log-Mel recipe; not necessarily the one trained on.

    Returns
    -------
    dict
        ``run_id``, ``split``, ``n``, ``accuracy``, ``ci95`` (Wilson), ``macro_f1``, ``ece``, ``per_genre``,
        ``confusion`` (row = true, column = predicted, in the order of ``per_genre``), ``reliability`` (bins of
        ``confidence``, ``accuracy``, ``clips``), ``leaky``, ``looks`` (how often this test split has been looked at,
        this look included; 0 of other splits), ``report`` (where the page is). Of a parent also ``members``
        (``run_id``, ``seed``, ``fold``, ``accuracy`` of each), ``accuracy_mean`` and ``accuracy_sd`` over them.

    Raises
    ------
    InputError
        No such run, run and feature set do not go together, or the training split is asked for of folds.
    """
    feature_set = FeatureSet.open(features)
    run = Run.find(existing_store(feature_set.folder), run_id)
    models = read_models(run)
    _check(models, feature_set, run_id, split)
    source = Source.of(feature_set, split, models[0].card.config.split)
    of_folds = split == "validation" and models[0].card.config.fold
    clips = None if of_folds else held_out(feature_set, split, source.protocol)  # what cannot be read is no look
    with looking(run, source) as (looks, witness):
        if clips is None:
            each, whole = on_validation(models, feature_set)
        else:
            each = judge(models, clips, replace(source, looks=looks))
            whole = ensemble(models, each)
        if len(models) > 1:
            for model, said in zip(models, each, strict=True):
                _keep(model.run, said)
        result = _told(run, whole)
        if witness:
            witness.metrics(_figures(whole.score(), split))
    return result | {"report": report.make(run)["report"]}


def evaluate_once(run_id: str, features: str | Path, *, split: str = "test") -> dict[str, Any]:
    """As ``evaluate``, but what was kept of these models on this split of this feature set is not looked at again.

    Then ``looks`` is the number of the look that it was, and figures, pictures and page are made anew from it.
    """
    feature_set = FeatureSet.open(features)
    run = Run.find(existing_store(feature_set.folder), run_id)
    kept, models = Predictions.kept(run, split), read_models(run)
    source = Source.of(feature_set, split, models[0].card.config.split)
    if kept is None or not kept.are_of(models) or not kept.source.same_clips(source):
        return evaluate(run_id, features, split=split)
    say(f"evaluate: run {run_id} keeps its predictions of split «{split}»: no new look")
    return _told(run, kept) | {"report": report.make(run)["report"]}


def summary(result: dict[str, Any]) -> str:
    """Say how good a run is, for a terminal."""
    low, high = result["ci95"]
    lines = [
        f"{result['split']}{', LEAKY' * result['leaky']}: accuracy {result['accuracy']:.3f} [{low:.3f}, {high:.3f}] of "
        f"{result['n']} clips, macro-F1 {result['macro_f1']:.3f}, calibration error {result['ece']:.3f}"
    ]
    if "members" in result:
        count = len(result["members"])
        apart = result["split"] == "validation" and result["members"][0]["fold"]
        lines[0] += ", each judged by a model that has not learnt it" if apart else f", of {count} models together"
        lines.append(f"one model: {result['accuracy_mean']:.3f} ± {result['accuracy_sd']:.3f} (mean ± sd of {count})")
    if result["looks"]:
        lines.append(f"looks at this test split so far: {result['looks']}")
    width = max(map(len, result["per_genre"]))
    for genre, row in result["per_genre"].items():
        lines.append(f"{genre:<{width}}  F1 {row['f1']:.3f} of {row['support']}")
    return "\n".join([*lines, f"report: {result['report']}"])


def _check(models: Sequence[Trained], feature_set: FeatureSet, run_id: str, split: str) -> None:
    manifest = feature_set.manifest
    for model in models:
        if (model.card.genres, model.card.spec) != (manifest.genres, manifest.spec):
            what = "other genres or another log-Mel recipe"
            raise InputError(f"--features {feature_set.folder}: {what} than run {run_id} was trained on")
        if model.card.config.split == "random" and model.card.fingerprint != manifest.fingerprint:
            raise InputError(
                f"--features {feature_set.folder}: run {run_id} drew its split at random from another feature set"
            )
        if split == "training" and model.card.config.fold:
            raise InputError(f"--split training: run {run_id} is of folds, each with its own; take another split")
        if split == "validation" and model.card.config.fold and model.card.fingerprint != manifest.fingerprint:
            raise InputError(f"--features {feature_set.folder}: the folds of run {run_id} are of another feature set")


def _told(run: Run, whole: Predictions) -> dict[str, Any]:
    """Keep what was predicted with the run, and say it as ``evaluate`` does, but for the page."""
    source, scores = whole.source, _keep(run, whole)
    result = {"run_id": run.id, "split": source.split, **asdict(scores)}
    result |= {"leaky": bool(source.leak), "looks": source.looks}
    if source.members:
        accuracies = [member.accuracy for member in source.members]
        spread = {"accuracy_mean": mean(accuracies), "accuracy_sd": stdev(accuracies)}
        run.metrics({f"{source.split}_{name}": value for name, value in spread.items()})
        result |= {"members": [asdict(member) for member in source.members], **spread}
    return result


def _keep(run: Run, predictions: Predictions) -> Scores:
    """Give a run its figures and pictures of a split, and the predictions that they are of."""
    source, scores = predictions.source, predictions.score()
    predictions.keep(run)
    run.metrics(_figures(scores, source.split))
    run.figure(pictures.confusion_matrix(scores, source.title), f"pictures/confusion_{source.split}.png")
    run.figure(pictures.reliability(scores, source.title), f"pictures/reliability_{source.split}.png")
    if source.leak:
        run.tag({LEAKY_TAG: "true"})
    return scores


def _figures(scores: Scores, split: str) -> dict[str, float]:
    low, high = scores.ci95
    figures = {"accuracy": scores.accuracy, "ci95_low": low, "ci95_high": high}
    figures |= {"macro_f1": scores.macro_f1, "ece": scores.ece, "clips": scores.n}
    return {f"{split}_{name}": value for name, value in figures.items()}
