import numpy as np
import pytest
from sklearn.metrics import f1_score

from mgc.metrics import score, wilson


def test_wilson_is_the_textbook_interval():
    z, p, n = 1.959964, 312 / 800, 800
    centre, half = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    assert wilson(312, 800) == pytest.approx(((centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)))


@pytest.mark.parametrize(("right", "n"), [(0, 5), (5, 5), (1, 1), (0, 1)])
def test_wilson_stays_between_nothing_and_all(right, n):
    low, high = wilson(right, n)
    assert 0 <= low <= right / n <= high <= 1


def test_scores_agree_with_scikit_learn_and_with_counting():
    generator = np.random.default_rng(0)
    labels, predicted = generator.integers(0, 3, 200), generator.integers(0, 3, 200)
    scores = score(labels, predicted, ("a", "b", "c"))
    assert scores.n == 200
    assert scores.accuracy == (labels == predicted).mean()
    assert scores.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert scores.confusion[1][2] == ((labels == 1) & (predicted == 2)).sum()
    assert scores.per_genre["b"]["support"] == (labels == 1).sum()
    assert scores.ci95[0] < scores.accuracy < scores.ci95[1]


def test_a_genre_that_is_not_there_scores_zero_and_keeps_its_place():
    scores = score(np.array([0, 0]), np.array([0, 0]), ("a", "b"))
    assert scores.per_genre["b"] == {"precision": 0, "recall": 0, "f1": 0, "support": 0}
    assert scores.confusion == [[2, 0], [0, 0]]
