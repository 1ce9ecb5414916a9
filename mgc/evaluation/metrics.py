"""Metrics of predictions with their uncertainty, and of differences between models.

Shape suffixes: N clips, G genres, S seeds, K kinds of clip, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BINS = 15
"""Of the calibration error, as in Guo et al."""
RESAMPLES = 10_000
"""Of a bootstrap."""


@dataclass(frozen=True)
class Bin:
    """Clips whose most probable genre has about the same probability."""

    confidence: float
    """Mean probability of what was predicted."""
    accuracy: float
    """Share of the clips that are right."""
    clips: int


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
    ece: float
    """Expected calibration error: how far confidence is from accuracy, on the mean over clips."""
    per_genre: dict[str, dict[str, float]]
    """Precision, recall, F1 and clips (``support``) of each genre."""
    confusion: list[list[int]]
    """Row = true genre, column = predicted genre."""
    reliability: tuple[Bin, ...]
    """The calibration error's bins that have clips, by confidence."""


@dataclass(frozen=True)
class Paired:
    """Two models on the same clips; a difference is B's accuracy minus A's."""

    difference: float
    ci95: tuple[float, float]
    """Bootstrap percentile interval of the difference, over clips."""
    p: float
    """McNemar's exact test, two-sided: how probable so uneven a share of the discordant clips is by chance."""
    only_a: int
    """Clips that A alone has right."""
    only_b: int
    """Clips that B alone has right."""


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval."""

    mean: float
    ci95: tuple[float, float]

    @property
    def chance(self) -> bool:
        """Whether the interval holds zero: the mean cannot be told from chance."""
        return self.ci95[0] <= 0 <= self.ci95[1]


def score(labels_N: NDArray[np.int64], probabilities_NG: NDArray[np.float32], genres: tuple[str, ...]) -> Scores:
    """Score the most probable genres against the true ones, and the calibration of the probabilities.

    A genre that is neither there nor predicted has precision, recall and F1 of 0, as in scikit-learn.

    Parameters
    ----------
    labels_N : np.ndarray [shape=(N,)]
        True genres, as places in ``genres``.
    probabilities_NG : np.ndarray [shape=(N, G)]
        Rows that sum to 1.
    genres
        Names of the labels.

    Returns
    -------
    Scores
        The figures.
    """
    from sklearn.metrics import precision_recall_fscore_support

    predicted_N = probabilities_NG.argmax(1)
    codes = np.arange(len(genres))
    columns = precision_recall_fscore_support(labels_N, predicted_N, labels=codes, zero_division=0.0)
    per_genre = {
        genre: {"precision": float(p), "recall": float(r), "f1": float(f1), "support": int(n)}
        for genre, p, r, f1, n in zip(genres, *columns, strict=True)
    }
    confusion_GG = np.zeros((len(genres), len(genres)), np.int64)  # scikit-learn's warns of a split of one genre
    np.add.at(confusion_GG, (labels_N, predicted_N), 1)
    right_N = labels_N == predicted_N
    reliability = bins(probabilities_NG.max(1), right_N)
    return Scores(
        n=len(labels_N),
        accuracy=float(right_N.mean()),
        ci95=wilson(int(right_N.sum()), len(labels_N)),
        macro_f1=float(columns[2].mean()),
        ece=_calibration_error(reliability),
        per_genre=per_genre,
        confusion=confusion_GG.tolist(),
        reliability=reliability,
    )


def calibration_error(confidence_N: NDArray[np.floating[Any]], right_N: NDArray[np.bool_]) -> float:
    """Compute the expected calibration error: how far confidence is from accuracy in ``bins``, on the mean over clips.

    Parameters
    ----------
    confidence_N : np.ndarray [shape=(N,)]
        Probability of the predicted genre.
    right_N : np.ndarray [shape=(N,), dtype=bool]
        Whether it is the true one.
    """
    return _calibration_error(bins(confidence_N, right_N))


def _calibration_error(reliability: tuple[Bin, ...]) -> float:
    clips = sum(each.clips for each in reliability)
    return sum(each.clips * abs(each.accuracy - each.confidence) for each in reliability) / clips


def bins(confidence_N: NDArray[np.floating[Any]], right_N: NDArray[np.bool_]) -> tuple[Bin, ...]:
    """Sort clips by confidence into ``BINS`` bins of equal width; a bin holds its upper edge.

    C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger: «On Calibration of Modern Neural Networks» (ICML 2017), section 2.

    Parameters
    ----------
    confidence_N : np.ndarray [shape=(N,)]
        Probability of the predicted genre.
    right_N : np.ndarray [shape=(N,), dtype=bool]
        Whether it is the true one.

    Returns
    -------
    tuple of Bin
        The bins that have clips, by confidence.
    """
    confidence_N = confidence_N.astype(np.float64)
    bin_N = np.digitize(confidence_N, np.linspace(0, 1, BINS + 1)[1:-1], right=True)
    groups = [bin_N == index for index in range(BINS)]
    return tuple(
        Bin(float(confidence_N[group].mean()), float(right_N[group].mean()), int(group.sum()))
        for group in groups
        if group.any()
    )


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Compute Wilson's 95 % interval of a proportion (E. B. Wilson, JASA 1927); unlike the normal one it is in [0, 1].

    Parameters
    ----------
    successes
        How often it happened.
    n
        Of how many.

    Returns
    -------
    tuple of float
        Lower and upper bound.

    Examples
    --------
    >>> tuple(round(bound, 3) for bound in wilson(312, 800))
    (0.357, 0.424)
    """
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def paired(right_a_N: NDArray[np.bool_], right_b_N: NDArray[np.bool_]) -> Paired:
    """Compare two models clip by clip.

    The test is McNemar's (Psychometrika 1947), exact: of the clips that one model alone has right, each is as likely
    to be A's as B's if they are equally good. The interval is the paired bootstrap's (B. Efron, R. J. Tibshirani, 1993,
    chapter 13): clips are drawn anew with replacement, ``RESAMPLES`` times. A clip counts for A, for B or for neither,
    so a resample is a multinomial draw of three numbers.

    Parameters
    ----------
    right_a_N, right_b_N : np.ndarray [shape=(N,), dtype=bool]
        Whether each model has each clip right, the clips in the same order.

    Returns
    -------
    Paired
        Difference, interval and p.
    """
    from scipy.stats import binomtest

    n = len(right_a_N)
    only_a, only_b = int((right_a_N & ~right_b_N).sum()), int((right_b_N & ~right_a_N).sum())
    shares = [only_a / n, only_b / n, (n - only_a - only_b) / n]
    drawn = np.random.default_rng(0).multinomial(n, shares, RESAMPLES)
    low, high = np.quantile((drawn[:, 1] - drawn[:, 0]) / n, [0.025, 0.975])
    discordant = only_a + only_b
    p = binomtest(only_b, discordant, 0.5).pvalue if discordant else 1.0
    return Paired((only_b - only_a) / n, (float(low), float(high)), float(p), only_a, only_b)


def over_seeds(values_SN: NDArray[np.int64], shifts_S: NDArray[np.float64] | None = None) -> Estimate:
    """Estimate a mean over seeds and clips, with an interval that counts both as samples.

    All seeds have the same clips, so the two are crossed: the bootstrap resamples both, independently, and a resample
    has every drawn clip of every drawn seed (A. B. Owen, «The pigeonhole bootstrap», Annals of Applied Statistics 2007;
    it is never too narrow for many of both). The bias of few seeds is corrected: their drawn shares are moved away from
    the mean by √(S / (S − 1)). Clips with the same values in all seeds are one kind, so that their draw is a
    multinomial one of the kinds. Of one seed, the interval is over clips alone.

    Parameters
    ----------
    values_SN : np.ndarray [shape=(S, N), dtype=int]
        A small whole number for each seed and clip: right or not, or the difference of two models of one seed.
    shifts_S : np.ndarray [shape=(S,)]
        Added to the values of each seed; zero by default.

    Returns
    -------
    Estimate
        The mean and its interval.
    """
    seeds, n = values_SN.shape
    shifts_S = np.zeros(seeds) if shifts_S is None else shifts_S
    kinds_SK, clips_K = np.unique(values_SN, axis=1, return_counts=True)
    generator = np.random.default_rng(0)
    clips_RK = generator.multinomial(n, clips_K / n, RESAMPLES) / n
    seeds_RS = generator.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES) / seeds
    if seeds > 1:
        seeds_RS = 1 / seeds + (seeds_RS - 1 / seeds) * np.sqrt(seeds / (seeds - 1))
    means_R = np.einsum("rs,sk,rk->r", seeds_RS, kinds_SK, clips_RK, optimize=True) + seeds_RS @ shifts_S
    low, high = np.quantile(means_R, [0.025, 0.975])
    return Estimate(float(values_SN.mean() + shifts_S.mean()), (float(low), float(high)))
