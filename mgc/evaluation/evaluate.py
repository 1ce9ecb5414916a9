"""The command ``mgc evaluate``: a run's model, or its models as an ensemble, scored on a split of a feature set.

Figures, plots and predictions are kept with the run. A leak (``mgc.dataset.protocols.leak``) does not stop an
evaluation: the figures, the run and the page are marked LEAKY.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from mgc.core.progress import say
from mgc.core.results import Result
from mgc.dataset.protocols import gap, held_out
from mgc.evaluation import figures, run_card, run_page
from mgc.evaluation.calibration import PRECISION, Calibrated, check_precision
from mgc.evaluation.metrics import Scores
from mgc.evaluation.predictions import Member, Predictions, Source
from mgc.evaluation.test_evaluations import counted_test_evaluation
from mgc.evaluation.trained_models import (
    calibration_of,
    check,
    ensemble,
    predict_clips,
    predict_validation,
    read_models,
)
from mgc.features.feature_set import FeatureSet
from mgc.tracking.metric_names import SPLITS
from mgc.tracking.runs import LEAKY_TAG, Run, run_id_of
from mgc.tracking.store import existing_store

if TYPE_CHECKING:
    from pathlib import Path

    from mgc.evaluation.trained_models import TrainedModel
    from mgc.tracking.runs import RunLike


@dataclass(frozen=True)
class Evaluation(Scores, Result):
    """How good a run is on a split: the figures of ``metrics.Scores``, and what they are of."""

    run_id: str
    split: str
    leak: str
    """Why the figures flatter; empty where nothing is known against them."""
    test_evaluations: int
    """How often this test set has been evaluated on, this time included; 0 of other splits."""
    members: tuple[Member, ...]
    """The models of a parent run; empty of a single one."""
    calibrated: Calibrated | None
    """Temperature and ``unsure``; None where the run keeps no validation predictions of its feature set."""
    report: str
    """Address of the run's page."""

    @property
    def leaky(self) -> bool:
        """Whether the figures flatter."""
        return bool(self.leak)

    @property
    def accuracy_mean(self) -> float:
        """Mean accuracy of the members, each alone."""
        return mean(member.accuracy for member in self.members)

    @property
    def accuracy_sd(self) -> float:
        """Standard deviation of the members' accuracies."""
        return stdev(member.accuracy for member in self.members)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: the fields, ``leaky`` for ``leak``, ``looks`` for ``test_evaluations``."""
        facts = asdict(self)
        del facts["leak"]
        facts |= {"leaky": self.leaky, "looks": facts.pop("test_evaluations")}
        facts = {name: value for name, value in facts.items() if name not in ("members", "calibrated") or value}
        if not self.members:
            return facts
        return facts | {"accuracy_mean": self.accuracy_mean, "accuracy_sd": self.accuracy_sd}

    def __str__(self) -> str:
        """Return accuracy with its interval, a line a genre, and where the page is."""
        low, high = self.ci95
        lines = [
            f"{self.split}{', LEAKY' * self.leaky}: accuracy {self.accuracy:.3f} [{low:.3f}, {high:.3f}] of "
            f"{self.n} clips, macro-F1 {self.macro_f1:.3f}, calibration error {self.ece:.3f}"
        ]
        if self.members:
            count = len(self.members)
            apart = self.split == "validation" and self.members[0].fold
            lines[0] += ", each clip by a model not trained on it" if apart else f", ensemble of {count} models"
            lines.append(f"one model: {self.accuracy_mean:.3f} ± {self.accuracy_sd:.3f} (mean ± sd of {count})")
        lines.append(str(self.calibrated or run_page.NOT_CALIBRATED))
        if self.test_evaluations:
            lines.append(f"test-set evaluations so far: {self.test_evaluations}")
        width = max(map(len, self.per_genre))
        lines += [f"{genre:<{width}}  F1 {row['f1']:.3f} of {row['support']}" for genre, row in self.per_genre.items()]
        return "\n".join([*lines, f"report: {self.report}"])


def evaluate(
    run: RunLike, features: str | Path | FeatureSet, *, split: str = "test", precision: float = PRECISION
) -> Evaluation:
    """Score the model of a run, or the ensemble of a parent run's models, on one split of a feature set.

    Runs on the GPU if there is one. The probabilities of an ensemble are the mean of its members'. On ``validation`` a
    cross-validation is scored on all its clips, each by the model, or the ensemble of seeds, not trained on its fold.
    The run keeps figures, plots, the predictions, a page and the model card; the members of a parent keep their own.

    Parameters
    ----------
    run : str or object with ``run_id``
        A training run, a trial of a sweep, or a parent run of seeds or folds.
    features
        Path or URI of a finished feature set of the same genres and log-Mel recipe; not necessarily the one trained on.
    split
        ``training``, ``validation`` or ``test``. Evaluations on ``test`` are counted.
    precision
        Share of right answers, on validation clips, that is left when what is marked unsure is left out.

    Returns
    -------
    Evaluation
        The figures; ``print`` shows them.

    Raises
    ------
    InputError
        There is no such run, run and feature set do not go together, the training split is asked for of folds, or
        ``precision`` is no share.
    RunError
        The MLflow store does not answer.

    Examples
    --------
    >>> scores = evaluate(run, "features")  # doctest: +SKIP
    >>> scores.accuracy, scores.ci95  # doctest: +SKIP
    (0.54, (0.505, 0.574))
    """
    feature_set = FeatureSet.open(features)
    found = Run.find(existing_store(feature_set.folder), run_id_of(run))
    return _evaluate(found, read_models(found), feature_set, split, precision)


def evaluate_once(
    run: RunLike, features: str | Path | FeatureSet, *, split: str = "test", precision: float = PRECISION
) -> Evaluation:
    """As ``evaluate``, but from kept predictions, if the run has some of these models on this split.

    Then it is no further test-set evaluation; figures, plots and page are made again from the predictions.

    Parameters
    ----------
    run : str or object with ``run_id``
        As of ``evaluate``.
    features
        As of ``evaluate``.
    split
        As of ``evaluate``.
    precision
        As of ``evaluate``.

    Returns
    -------
    Evaluation
        As of ``evaluate``; ``test_evaluations`` is the number that it was.

    Raises
    ------
    InputError
        As ``evaluate``.
    RunError
        As ``evaluate``.
    """
    feature_set = FeatureSet.open(features)
    found = Run.find(existing_store(feature_set.folder), run_id_of(run))
    kept, models = Predictions.kept(found, split), read_models(found)
    source = Source.of(feature_set, split, models[0].card.config.split)
    if kept is None or not kept.are_of(model.run.id for model in models) or not kept.source.same_clips(source):
        return _evaluate(found, models, feature_set, split, precision)
    say(f"evaluate: run {found.id} keeps its predictions of split «{split}»: no further evaluation")
    return _published(found, models, kept, *_log(found, models, kept, precision), precision)


def _evaluate(
    run: Run, models: list[TrainedModel], feature_set: FeatureSet, split: str, precision: float
) -> Evaluation:
    check(models, feature_set, run.id, split)
    check_precision(precision)
    source = Source.of(feature_set, split, models[0].card.config.split)
    of_folds = split == "validation" and models[0].card.config.fold
    # read before it counts: what cannot be read is no test-set evaluation
    clips = None if of_folds else held_out(feature_set, split, source.protocol)
    if clips is not None and (missing := gap(source.genres, clips.labels_N, split, "their F1 counts as 0")):
        say(f"evaluate: {missing}")
    with counted_test_evaluation(run, source) as (count, logged):
        if clips is None:
            each, whole = predict_validation(models, feature_set)
        else:
            each = predict_clips(models, clips, replace(source, test_evaluations=count))
            whole = ensemble(models, each)
        if len(models) > 1:
            for model, its in zip(models, each, strict=True):
                _log(model.run, [model], its, precision)
                run_card.keep(model.run, [model], precision=precision)
        scores, calibrated = _log(run, models, whole, precision)
        if logged:
            logged.metrics(_metrics(whole.source, scores, calibrated))
    return _published(run, models, whole, scores, calibrated, precision)


def _published(
    run: Run,
    models: list[TrainedModel],
    predictions: Predictions,
    scores: Scores,
    calibrated: Calibrated | None,
    precision: float,
) -> Evaluation:
    """Make the run's page, and the result."""
    source = predictions.source
    page = run_page.make(run, models=models, predictions=predictions, precision=precision)
    return Evaluation(
        **vars(scores),
        run_id=run.id,
        split=source.split,
        leak=source.leak,
        test_evaluations=source.test_evaluations,
        members=source.members,
        calibrated=calibrated,
        report=page.report,
    )


def _log(
    run: Run, models: list[TrainedModel], predictions: Predictions, precision: float
) -> tuple[Scores, Calibrated | None]:
    """Keep predictions with a run: the table, the figures, the plots, and the tag of a leak."""
    source, scores = predictions.source, predictions.score()
    predictions.keep(run)  # and so validation predictions of a model of before calibrate it
    calibration = calibration_of(models)
    calibrated = predictions.calibrated(calibration, models[0].card.fingerprint, precision)
    run.metrics(_metrics(source, scores, calibrated))
    run.figure(figures.confusion_matrix(scores, source.title), f"pictures/confusion_{source.split}.png")
    run.figure(figures.reliability(scores, source.title), f"pictures/reliability_{source.split}.png")
    if calibrated:
        certainty = figures.risk_coverage(predictions, calibration, calibrated)
        run.figure(certainty, f"pictures/risk_coverage_{source.split}.png")
    if source.leak:
        run.tag({LEAKY_TAG: "true"})
    return scores, calibrated


def _metrics(source: Source, scores: Scores, calibrated: Calibrated | None) -> dict[str, float]:
    """Figures by their names in MLflow.

    ``val_accuracy`` of a parent of seeds is the mean of its models: their ensemble is ``val_ensemble_accuracy``.
    """
    prefix, accuracies = SPLITS[source.split], [member.accuracy for member in source.members]
    spread = {"accuracy_mean": mean(accuracies), "accuracy_sd": stdev(accuracies)} if accuracies else {}
    low, high = scores.ci95
    values = {"accuracy": scores.accuracy, "ci95_low": low, "ci95_high": high}
    values |= {"macro_f1": scores.macro_f1, "ece": scores.ece, "clips": scores.n}
    if calibrated:
        values |= {"ece_calibrated": calibrated.ece, "temperature": calibrated.temperature}
        values |= {"sure_precision": calibrated.precision, "sure_share": calibrated.sure_share}
    if calibrated and calibrated.sure_accuracy is not None:
        values |= {"sure_accuracy": calibrated.sure_accuracy}
    voting = len({member.fold for member in source.members}) < len(source.members)
    of_scores = f"{prefix}_ensemble" if voting and source.split != "test" else prefix
    named = {f"{of_scores}_{name}": value for name, value in values.items()}
    return named | {f"{prefix}_{name}": value for name, value in spread.items()}
