"""The command ``mgc blend``: a weighted mean of the probabilities of several runs, from the predictions that they keep.

The weights are those of a mixture under which the true genres of validation clips are the most probable, found by
expectation-maximisation (Dempster, Laird & Rubin, 1977). Of validation itself a clip is scored with weights that were
found without it.

Shape suffixes: M runs, N clips, G genres.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mgc.core.errors import InputError
from mgc.core.results import Result
from mgc.core.storage import Folder
from mgc.evaluation.compare import on_the_same_clips
from mgc.evaluation.metrics import Scores
from mgc.evaluation.test_evaluations import counted_test_evaluation
from mgc.tracking.runs import EXPERIMENT, LEAKY_TAG, TRACK_TAG, Run, run_id_of
from mgc.tracking.store import existing_store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mgc.tracking.runs import RunLike

PARTS = 10
"""Parts of the validation clips; the weights of a part are found on the others."""
STEPS = 500
"""Of expectation-maximisation; for two to five runs the weights stand still long before."""
SEED = 0


@dataclass(frozen=True)
class Blended(Scores, Result):
    """How good several runs are together."""

    run_id: str
    """The blend's own run, which keeps its predictions: «mgc compare» takes it."""
    split: str
    leaky: bool
    """Whether the figures flatter."""
    names: tuple[str, ...]
    """Of the runs."""
    accuracies: tuple[float, ...]
    """Of each run alone, on the same clips."""
    weights: tuple[float, ...]
    """Of each run, found on all validation clips."""

    def __str__(self) -> str:
        """Return the accuracy with its interval, and a line a run."""
        (low, high), split = self.ci95, f"{self.split}{', LEAKY' * self.leaky}"
        return "\n".join(
            [
                f"{split}: accuracy {self.accuracy:.3f} [{low:.3f}, {high:.3f}] of {self.n} "
                f"clips, macro-F1 {self.macro_f1:.3f}, calibration error {self.ece:.3f}; run {self.run_id}",
                *(
                    f"weight {weight:.2f}  {accuracy:.3f} alone  {name}"
                    for weight, accuracy, name in zip(self.weights, self.accuracies, self.names, strict=True)
                ),
            ]
        )


def blend(runs: Sequence[RunLike], *, split: str = "validation") -> Blended:
    """Score the weighted mean of the probabilities of several runs; nothing is predicted again.

    Parameters
    ----------
    runs : sequence of str or object with ``run_id``
        Two or more runs that ``evaluate`` scored on validation and on ``split``, all on the same clips. Cross-validated
        ones, whose validation clips are many, give the surest weights.
    split
        ``validation``, each clip with weights that were found without it, or ``test``, which counts as an evaluation.

    Returns
    -------
    Blended
        The figures; ``print`` shows them.

    Raises
    ------
    InputError
        There are fewer than two runs, there is no such run, one was not evaluated on these splits, or they were
        evaluated on different clips.
    RunError
        The MLflow store does not answer.
    """
    uri = existing_store(Folder.at(Path.cwd()))
    found = [Run.find(uri, run_id_of(run)) for run in runs]
    if len({run.id for run in found}) < max(2, len(found)):
        raise InputError("`runs`: two or more are needed, each another")
    known = on_the_same_clips(found, "validation")
    wanted = known if split == "validation" else on_the_same_clips(found, split)
    true_MN = _of_truth([each.probabilities_NG for each in known], known[0].labels_N)
    weights_M = mixture(true_MN)
    stacked_MNG = np.stack([each.probabilities_NG for each in wanted]).astype(np.float64)
    mean_NG = _apart(stacked_MNG, true_MN) if split == "validation" else np.tensordot(weights_M, stacked_MNG, 1)
    names = tuple(run.record().name for run in found)
    leak = next((each.source.leak for each in wanted if each.source.leak), "")
    config = {"runs": [run.id for run in found], "split": split}
    tracks = sorted({run.record().tags.get(TRACK_TAG, "from scratch") for run in found})
    tags = {TRACK_TAG: " + ".join(tracks)} | ({LEAKY_TAG: "true"} if leak else {})
    run = Run.start(uri, EXPERIMENT, name=" + ".join(names)[:200], step="blend", config=config, tags=tags)
    source = replace(wanted[0].source, members=(), leak=leak)
    with run.closing(), counted_test_evaluation(run, source) as (count, _):
        source = replace(source, test_evaluations=count)
        predictions = replace(wanted[0], source=source, probabilities_NG=mean_NG.astype(np.float32))
        predictions.keep(run)
        scores = predictions.score()
        run.metrics({f"{split}_accuracy": scores.accuracy, f"{split}_macro_f1": scores.macro_f1})
        run.metrics({f"weight_{number}": float(weight) for number, weight in enumerate(weights_M, 1)})
    alone = tuple(float(each.right.mean()) for each in wanted)
    return Blended(
        **vars(scores),
        run_id=run.id,
        split=split,
        leaky=bool(leak),
        names=names,
        accuracies=alone,
        weights=tuple(weights_M.tolist()),
    )


def mixture(true_MN: NDArray[np.float64]) -> NDArray[np.float64]:
    """Find the weights under which the mean of several models makes the true genres most probable.

    Parameters
    ----------
    true_MN : np.ndarray [shape=(M, N)]
        Probability that each model gives to each clip's true genre.

    Returns
    -------
    np.ndarray [shape=(M,)]
        Weights, which sum to 1: those of the least mean cross-entropy.

    Examples
    --------
    >>> mixture(np.array([[0.9, 0.8], [0.2, 0.3]])).round(3)
    array([1., 0.])
    """
    weights_M = np.full(len(true_MN), 1 / len(true_MN))
    for _ in range(STEPS):
        shares_MN = weights_M[:, None] * true_MN
        weights_M = (shares_MN / shares_MN.sum(0)).mean(1)
    return weights_M


def _of_truth(probabilities: Sequence[NDArray[np.float32]], labels_N: NDArray[np.int64]) -> NDArray[np.float64]:
    rows_N = np.arange(len(labels_N))
    return np.stack([each_NG[rows_N, labels_N] for each_NG in probabilities]).astype(np.float64).clip(1e-6)


def _apart(stacked_MNG: NDArray[np.float64], true_MN: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of each clip with weights that were found on the clips of other parts."""
    count = true_MN.shape[1]
    part_N = np.random.default_rng(SEED).permutation(count) % PARTS
    mean_NG = np.empty(stacked_MNG.shape[1:])
    for part in np.unique(part_N):
        weights_M = mixture(true_MN[:, part_N != part])
        mean_NG[part_N == part] = np.tensordot(weights_M, stacked_MNG[:, part_N == part], 1)
    return mean_NG
