"""How good a set of predictions is, with its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Scores:
    """Figures of one model on one split."""

    n: int
    """Clips."""
    accuracy: float
    ci95: tuple[float, float]
    """Wilson's 95 % interval of the accuracy."""
    macro_f1: float
    """Mean of the genres' F1."""
    per_genre: dict[str, dict[str, float]]
    """Precision, recall, F1 and clips (``support``) of each genre."""
    confusion: list[list[int]]
    """Row = true genre, column = predicted genre."""


def score(labels_N: NDArray[np.int64], predicted_N: NDArray[np.int64], genres: tuple[str, ...]) -> Scores:
    """Score predicted labels against true ones.

    A genre that is neither there nor predicted has precision, recall and F1 of 0, as in scikit-learn.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    codes = np.arange(len(genres))
    columns = precision_recall_fscore_support(labels_N, predicted_N, labels=codes, zero_division=0.0)
    per_genre = {
        genre: {"precision": float(p), "recall": float(r), "f1": float(f1), "support": int(n)}
        for genre, p, r, f1, n in zip(genres, *columns, strict=True)
    }
    correct = int((labels_N == predicted_N).sum())
    return Scores(
        n=len(labels_N),
        accuracy=correct / len(labels_N),
        ci95=wilson(correct, len(labels_N)),
        macro_f1=float(columns[2].mean()),
        per_genre=per_genre,
        confusion=confusion_matrix(labels_N, predicted_N, labels=codes).tolist(),
    )


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion (E. B. Wilson, JASA 1927); unlike the normal one it stays in [0, 1].

    Examples
    --------
    >>> tuple(round(bound, 3) for bound in wilson(312, 800))
    (0.357, 0.424)
    """
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)
