"""Compare two evaluated runs clip by clip, on the predictions that they keep: no new look at the test split."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np

from mgc.core.errors import InputError
from mgc.core.storage import Folder
from mgc.evaluation.metrics import Paired, paired, wilson
from mgc.evaluation.predictions import Predictions
from mgc.tracking.runs import FEATURES_TAG, Run
from mgc.tracking.store import existing_store

LEVEL = 0.05
"""Below this probability a difference is more than chance."""


def compare(run_a: str, run_b: str, *, split: str = "test") -> dict[str, Any]:
    """Compare two runs on a split that ``mgc evaluate`` scored both on; of a parent run it is the ensemble.

    Returns
    -------
    dict
        ``split``, ``n``, ``leaky``, ``a`` and ``b`` (each ``run_id``, ``name``, ``accuracy``, ``ci95``), ``difference``
        (B's accuracy minus A's) and its ``difference_ci95`` (paired bootstrap), ``p`` (McNemar, exact), ``only_a`` and
        ``only_b`` (clips that one alone has right), ``verdict`` (a sentence). The statistics are ``metrics.paired``.

    Raises
    ------
    InputError
        There is no such run, one is not evaluated on this split, or they were evaluated on different clips.
    """
    uri = existing_store(Folder.at(Path.cwd()))
    return between(Run.find(uri, run_a), Run.find(uri, run_b), split=split)


def between(run_a: Run, run_b: Run, *, split: str = "test") -> dict[str, Any]:
    """As ``compare``, of runs that are found already."""
    a, b = evaluated(run_a, split), evaluated(run_b, split)
    if a.source.fingerprint != b.source.fingerprint:
        raise InputError(
            f"run {run_b.id}: evaluated on another feature set ({b.source.features}) than run {run_a.id} "
            f"({a.source.features}); evaluate both on one"
        )
    if a.source.protocol != b.source.protocol:
        raise InputError(
            f"run {run_b.id}: is of the {b.source.protocol} split, run {run_a.id} of the {a.source.protocol} one; "
            "their clips differ, so nothing can be said"
        )
    order_a, order_b = np.argsort(a.track_ids_N), np.argsort(b.track_ids_N)
    if not np.array_equal(a.track_ids_N[order_a], b.track_ids_N[order_b]):
        raise InputError(f"run {run_b.id}: evaluated on other clips than run {run_a.id}; evaluate both again")
    statistics = paired(a.right[order_a], b.right[order_b])
    sides = [_side(run, predictions) for run, predictions in ((run_a, a), (run_b, b))]
    return {
        "split": split,
        "n": len(a.labels_N),
        "leaky": bool(a.source.leak or b.source.leak),
        "a": sides[0],
        "b": sides[1],
        "difference": statistics.difference,
        "difference_ci95": statistics.ci95,
        "p": statistics.p,
        "only_a": statistics.only_a,
        "only_b": statistics.only_b,
        "verdict": _verdict(statistics, len(a.labels_N)),
    }


def summary(result: dict[str, Any]) -> str:
    """Say which run is better, for a terminal."""
    low, high = result["difference_ci95"]
    lines = [f"{result['split']}{', LEAKY' * result['leaky']}, {result['n']} clips"]
    for letter in "ab":
        side = result[letter]
        bounds = "[{:.3f}, {:.3f}]".format(*side["ci95"])
        alone = f"{result[f'only_{letter}']} that it alone has right"
        lines.append(f"{letter.upper()}  {side['accuracy']:.3f} {bounds}  {side['name']} ({side['run_id']}), {alone}")
    lines.append(f"B - A  {result['difference']:+.3f} [{low:+.3f}, {high:+.3f}], McNemar p = {result['p']:.3g}")
    return "\n".join([*lines, result["verdict"]])


def evaluated(run: Run, split: str) -> Predictions:
    """What ``mgc evaluate`` kept of a run's split.

    Raises
    ------
    InputError
        Nothing; the message says which command it takes.
    """
    kept = Predictions.kept(run, split)
    if kept is None:
        features = shlex.quote(run.record().tags.get(FEATURES_TAG, "FEATURES"))
        command = f"mgc evaluate --run {run.id} --features {features}" + (
            f" --split {split}" if split != "test" else ""
        )
        raise InputError(f"run {run.id}: not evaluated on split «{split}» yet; run «{command}»")
    return kept


def _side(run: Run, predictions: Predictions) -> dict[str, Any]:
    right_N = predictions.right
    return {
        "run_id": run.id,
        "name": run.record().name,
        "accuracy": float(right_N.mean()),
        "ci95": wilson(int(right_N.sum()), len(right_N)),
    }


def _verdict(statistics: Paired, n: int) -> str:
    low, high = (100 * bound for bound in statistics.ci95)
    points = (
        f"{100 * statistics.difference:+.1f} points (95 % interval {low:+.1f} to {high:+.1f}; p = {statistics.p:.2g})"
    )
    if statistics.p < LEVEL:
        better, worse = ("B", "A") if statistics.difference > 0 else ("A", "B")
        return f"{better} is better than {worse}: B - A is {points}."
    return f"Neither is shown to be better: B - A is {points}, which {n} clips cannot tell from chance."
