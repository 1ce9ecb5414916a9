from math import comb

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import f1_score

from mgc.evaluation import metrics
from mgc.evaluation.metrics import BINS, RESAMPLES, Estimate, bins, over_seeds, paired, score, wilson


def one_hot(predicted, genres):
    return np.eye(genres, dtype=np.float32)[predicted]


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
    labels, probabilities = generator.integers(0, 3, 200), generator.dirichlet([1, 1, 1], 200).astype(np.float32)
    predicted = probabilities.argmax(1)
    scores = score(labels, probabilities, ("a", "b", "c"))
    assert scores.n == 200
    assert scores.accuracy == (labels == predicted).mean()
    assert scores.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert scores.confusion[1][2] == ((labels == 1) & (predicted == 2)).sum()
    assert scores.per_genre["b"]["support"] == (labels == 1).sum()
    assert scores.ci95 == wilson((labels == predicted).sum(), 200)
    assert scores.ci95[0] < scores.accuracy < scores.ci95[1]


def test_a_genre_that_is_not_there_scores_zero_and_keeps_its_place():
    scores = score(np.array([0, 0]), one_hot([0, 0], 2), ("a", "b"))
    assert scores.per_genre["b"] == {"precision": 0, "recall": 0, "f1": 0, "support": 0}
    assert scores.confusion == [[2, 0], [0, 0]]


# Calibration


def test_the_calibration_error_is_that_of_the_formula_clip_by_clip():
    """Guo et al., equation 3, with a loop over bins (m - 1) / M < confidence <= m / M."""
    generator = np.random.default_rng(1)
    labels, probabilities = generator.integers(0, 4, 500), generator.dirichlet([0.5] * 4, 500)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    expected, filled = 0.0, 0
    for m in range(1, 16):
        inside = [i for i in range(500) if (m - 1) / 15 < confidence[i] <= m / 15]
        if inside:
            expected += len(inside) / 500 * abs(right[inside].mean() - confidence[inside].mean())
            filled += 1
    scores = score(labels, probabilities, ("a", "b", "c", "d"))
    assert BINS == 15
    assert scores.ece == pytest.approx(expected)
    assert len(scores.reliability) == filled < 15  # of four genres the most probable has at least a quarter
    assert sum(each.clips for each in scores.reliability) == 500


@pytest.mark.parametrize(
    ("confidence", "right", "ece"),
    [
        ([1.0] * 4, [True] * 4, 0.0),
        ([1.0] * 4, [False] * 4, 1.0),
        ([0.75] * 4, [True, True, True, False], 0.0),
        ([0.9] * 2 + [0.5] * 2, [True, False, True, True], 0.45),  # |.5 - .9| and |1 - .5|, half the clips each
    ],
)
def test_the_calibration_error_of_simple_cases(confidence, right, ece):
    probabilities = np.array([[p, 1 - p] for p in confidence])
    labels = np.where(right, probabilities.argmax(1), 1 - probabilities.argmax(1))
    assert score(labels, probabilities, ("a", "b")).ece == pytest.approx(ece)


def test_a_bin_has_its_upper_edge():
    edge = 3 / 15
    (low, high) = bins(np.array([edge, np.nextafter(edge, 1)]), np.array([True, False]))
    assert (low.confidence, low.accuracy, high.accuracy) == (edge, 1.0, 0.0)


# Two models on the same clips


def discordant(only_a, only_b, both=10, neither=5):
    a = [True] * only_a + [False] * only_b + [True] * both + [False] * neither
    b = [False] * only_a + [True] * only_b + [True] * both + [False] * neither
    return np.array(a), np.array(b)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        (0, 5, 2 / 32),  # five coins that all fall alike
        (1, 9, 2 * (1 + 10) / 1024),
        (6, 16, 2 * sum(comb(22, k) for k in range(7)) / 2**22),
        (3, 3, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemars_test_is_the_binomial_one_on_the_discordant_clips(only_a, only_b, p):
    result = paired(*discordant(only_a, only_b))
    assert (result.only_a, result.only_b) == (only_a, only_b)
    assert result.p == pytest.approx(p, abs=1e-6)
    assert result.p == pytest.approx(min(1.0, 2 * binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)))
    assert result.difference == pytest.approx((only_b - only_a) / (only_a + only_b + 15))


def test_the_interval_is_the_one_of_clips_drawn_again():
    a, b = discordant(20, 45, 100, 35)
    generator = np.random.default_rng(7)
    rows = generator.integers(0, 200, (RESAMPLES, 200))
    differences = b[rows].mean(1) - a[rows].mean(1)
    result = paired(a, b)
    assert result.ci95 == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=0.006)  # a clip is 0.005
    assert result.ci95[0] < result.difference < result.ci95[1]
    assert paired(a, b) == result


def test_exchanging_the_models_turns_the_difference_round():
    a, b = discordant(4, 12)
    there, back = paired(a, b), paired(b, a)
    assert back.difference == -there.difference
    assert back.p == there.p
    assert back.ci95 == pytest.approx((-there.ci95[1], -there.ci95[0]), abs=0.04)  # a clip is 0.03
    assert paired(a, a).ci95 == (0, 0)


# Over seeds and clips


def test_of_one_seed_the_interval_is_that_of_its_clips():
    a, b = discordant(20, 45, 100, 35)
    found, known = over_seeds((b.astype(int) - a)[None]), paired(a, b)
    assert found.mean == pytest.approx(known.difference)
    assert found.ci95 == pytest.approx(known.ci95, abs=0.006)  # a clip is 0.005


@pytest.mark.parametrize(
    ("values", "shifts"), [([[1] * 9, [0] * 9], None), ([[0] * 9, [0] * 9], [1.0, 0.0]), ([[1] * 9, [1] * 9], [0, -1])]
)
def test_of_two_seeds_that_differ_by_themselves_the_interval_is_known(values, shifts):
    """Drawn are both, or one twice, each with a quarter: the quantiles are the two seeds, moved out by √2."""
    found = over_seeds(np.array(values), None if shifts is None else np.array(shifts, float))
    assert found.mean == 0.5
    assert found.ci95 == pytest.approx((0.5 - 0.5 * 2**0.5, 0.5 + 0.5 * 2**0.5))
    assert over_seeds(np.ones((2, 9), int)).ci95 == pytest.approx((1, 1))


def test_the_interval_over_seeds_is_the_one_of_seeds_and_clips_drawn_again():
    generator = np.random.default_rng(3)
    values = generator.integers(-1, 2, (4, 1)) * generator.integers(0, 2, (4, 50)) + generator.integers(0, 2, 50)
    drawn = []
    for _ in range(20_000):
        seeds, clips = generator.integers(0, 4, 4), generator.integers(0, 50, 50)
        rows = values[:, clips].mean(1)
        drawn.append(rows.mean() + (rows[seeds].mean() - rows.mean()) * (4 / 3) ** 0.5)
    found = over_seeds(values)
    assert found.ci95 == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.03)
    assert over_seeds(values) == found


@pytest.mark.parametrize(("between_seeds", "alone"), [(0.02, (0.0, 1.0)), (0.12, (0.0, 0.8))])
def test_the_interval_over_seeds_holds_the_truth_about_as_often_as_it_says(monkeypatch, between_seeds, alone):
    """Two models of 5 seeds and 300 clips; what one seed alone says (clips drawn anew) is too sure if seeds differ."""
    monkeypatch.setattr(metrics, "RESAMPLES", 600)
    generator = np.random.default_rng(5)
    held, held_by_one = 0, 0
    for _ in range(200):
        chances = [0.6 + generator.normal(0, between_seeds, (5, 1)), 0.5 + generator.normal(0, between_seeds, (5, 1))]
        clips = generator.normal(0, 0.1, 300)
        a, b = (generator.random((5, 300)) < chance + clips for chance in chances)
        low, high = over_seeds(a.astype(int) - b).ci95
        held += low <= 0.1 <= high
        low, high = over_seeds(a[:1].astype(int) - b[:1]).ci95
        held_by_one += low <= 0.1 <= high
    assert 0.9 <= held / 200 <= 0.995
    assert alone[0] <= held_by_one / 200 <= alone[1]


@pytest.mark.parametrize(("bounds", "chance"), [((-0.1, 0.2), True), ((0.0, 0.2), True), ((0.01, 0.2), False)])
def test_what_an_interval_with_zero_holds_cannot_be_told_from_chance(bounds, chance):
    assert Estimate(0.1, bounds).chance == chance
    assert Estimate(-0.1, (-bounds[1], -bounds[0])).chance == chance
