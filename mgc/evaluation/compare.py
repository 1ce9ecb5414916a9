"""The command ``mgc compare``: two evaluated runs clip by clip, from the predictions that they keep."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mgc.core.errors import InputError
from mgc.core.results import Result
from mgc.core.storage import Folder
from mgc.evaluation.metrics import Paired, paired, wilson
from mgc.evaluation.predictions import Predictions
from mgc.tracking.runs import FEATURES_TAG, Run, run_id_of
from mgc.tracking.store import existing_store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mgc.tracking.runs import RunLike

LEVEL = 0.05
"""Below this probability a difference is more than chance."""


@dataclass(frozen=True)
class Side:
    """One of two runs that are compared."""

    run_id: str
    name: str
    accuracy: float
    ci95: tuple[float, float]
    """Wilson's interval of the accuracy."""


@dataclass(frozen=True)
class Comparison(Result):
    """Two runs on the same clips; a difference is B's accuracy minus A's."""

    split: str
    n: int
    """Clips."""
    leaky: bool
    """Whether the figures of either flatter."""
    a: Side
    b: Side
    difference: float
    difference_ci95: tuple[float, float]
    """Paired bootstrap over clips."""
    p: float
    """McNemar's exact test, two-sided."""
    only_a: int
    """Clips that A alone predicts right."""
    only_b: int
    """Clips that B alone predicts right."""
    verdict: str
    """What follows, as a sentence."""

    def __str__(self) -> str:
        """Return a line for each run, one for their difference, and the verdict."""
        lines = [f"{self.split}{', LEAKY' * self.leaky}, {self.n} clips"]
        for letter, side, alone in (("A", self.a, self.only_a), ("B", self.b, self.only_b)):
            low, high = side.ci95
            lines.append(
                f"{letter}  {side.accuracy:.3f} [{low:.3f}, {high:.3f}]  {side.name} ({side.run_id}), "
                f"{alone} that it alone has right"
            )
        low, high = self.difference_ci95
        lines.append(f"B - A  {self.difference:+.3f} [{low:+.3f}, {high:+.3f}], McNemar p = {self.p:.3g}")
        return "\n".join([*lines, self.verdict])


def compare(run_a: RunLike, run_b: RunLike, *, split: str = "test") -> Comparison:
    """Compare two runs that were evaluated on the same clips; nothing is predicted again.

    Parameters
    ----------
    run_a, run_b : str or object with ``run_id``
        Runs that ``evaluate`` scored on this split; of a parent run the ensemble.
    split
        ``training``, ``validation`` or ``test``.

    Returns
    -------
    Comparison
        The difference, its interval and p; ``print`` shows them. The statistics are those of ``metrics.paired``.

    Raises
    ------
    InputError
        There is no such run, one was not evaluated on this split, or they were evaluated on different clips.
    RunError
        The MLflow store does not answer.
    """
    uri = existing_store(Folder.at(Path.cwd()))
    return between(Run.find(uri, run_id_of(run_a)), Run.find(uri, run_id_of(run_b)), split=split)


def between(run_a: Run, run_b: Run, *, split: str = "test") -> Comparison:
    """As ``compare``, of runs of a store that is open.

    Parameters
    ----------
    run_a, run_b
        The runs.
    split
        As of ``compare``.

    Returns
    -------
    Comparison
        As of ``compare``.

    Raises
    ------
    InputError
        As ``compare``.
    """
    a, b = on_the_same_clips([run_a, run_b], split)
    statistics, n = paired(a.right, b.right), len(a.labels_N)
    return Comparison(
        split,
        n,
        bool(a.source.leak or b.source.leak),
        _side(run_a, a),
        _side(run_b, b),
        statistics.difference,
        statistics.ci95,
        statistics.p,
        statistics.only_a,
        statistics.only_b,
        _verdict(statistics, n),
    )


def on_the_same_clips(runs: Sequence[Run], split: str) -> list[Predictions]:
    """Read the predictions that evaluations kept, all in the order of the track ids.

    The feature sets may differ, as those of two log-Mel recipes do, if they have the same clips.

    Parameters
    ----------
    runs
        The runs.
    split
        ``training``, ``validation`` or ``test``.

    Returns
    -------
    list of Predictions
        A run's each.

    Raises
    ------
    InputError
        A run was not evaluated on this split, or on other clips than the first one.
    """
    first, *others = found = [_by_id(evaluated(run, split)) for run in runs]
    for run, other in zip(runs[1:], others, strict=True):
        if first.source.protocol != other.source.protocol:
            raise InputError(
                f"run {run.id}: is of the {other.source.protocol} split, run {runs[0].id} of the "
                f"{first.source.protocol} one; their clips differ, so they cannot be compared"
            )
        same = (np.array_equal(first.track_ids_N, other.track_ids_N), np.array_equal(first.labels_N, other.labels_N))
        if not all(same) or (first.paths, first.source.genres) != (other.paths, other.source.genres):
            raise InputError(
                f"run {run.id}: evaluated on other clips ({other.source.features}) than run {runs[0].id} "
                f"({first.source.features}); evaluate both on the same"
            )
    return found


def _by_id(predictions: Predictions) -> Predictions:
    order_N = np.argsort(predictions.track_ids_N)
    return replace(
        predictions,
        track_ids_N=predictions.track_ids_N[order_N],
        paths=tuple(predictions.paths[row] for row in order_N),
        labels_N=predictions.labels_N[order_N],
        probabilities_NG=predictions.probabilities_NG[order_N],
    )


def evaluated(run: Run, split: str) -> Predictions:
    """Read the predictions that an evaluation kept with a run.

    Parameters
    ----------
    run
        The run.
    split
        ``training``, ``validation`` or ``test``.

    Returns
    -------
    Predictions
        Of the run's model, or of the ensemble of a parent's.

    Raises
    ------
    InputError
        The run was not evaluated on this split.
    """
    kept = Predictions.kept(run, split)
    if kept is None:
        features = run.record().tags.get(FEATURES_TAG)
        where = f", on its feature set {features}" if features else ""
        raise InputError(f"run {run.id}: not evaluated on split «{split}» yet; evaluate it first{where}")
    return kept


def _side(run: Run, predictions: Predictions) -> Side:
    right_N = predictions.right
    return Side(run.id, run.record().name, float(right_N.mean()), wilson(int(right_N.sum()), len(right_N)))


def _verdict(statistics: Paired, n: int) -> str:
    low, high = (100 * bound for bound in statistics.ci95)
    points = (
        f"{100 * statistics.difference:+.1f} points (95 % interval {low:+.1f} to {high:+.1f}; p = {statistics.p:.2g})"
    )
    if statistics.p < LEVEL:
        better, worse = ("B", "A") if statistics.difference > 0 else ("A", "B")
        return f"{better} is better than {worse}: B - A is {points}."
    return f"Neither is shown to be better: B - A is {points}, which {n} clips cannot tell from chance."
