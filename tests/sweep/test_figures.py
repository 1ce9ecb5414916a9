"""Figures of a sweep show its trials, and what is not as good as it looks is drawn so."""

import numpy as np
import pytest
from helpers import sweeps
from matplotlib.colors import to_hex, to_rgb

from mgc.evaluation.metrics import Estimate
from mgc.sweep import figures
from mgc.sweep.results import Effect, Retrained, SeedModel

BEST = sweeps.trial(
    1, 0.8, model__norm=True, model__dropout=0.5, optim__lr=0.001, augment__time_masks=2, augment__time_mask_frames=60
)
OTHER = sweeps.trial(2, 0.6, model__norm=False, model__dropout=0.0, optim__lr=0.0002, augment__time_masks=0)
PRUNED = sweeps.trial(
    3, 0.7, "pruned", 2, model__norm=True, model__dropout=0.25, optim__lr=0.005, augment__time_masks=0
)
NOTHING = sweeps.trial(4, None, "failed", 0, model__norm=True)
VIEW = sweeps.view([BEST, OTHER, PRUNED, NOTHING])


def test_curves_end_where_trials_ended_and_the_best_is_bold():
    figure = figures.curves(VIEW)
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 1]
    by_end = {(line.get_xdata()[-1], line.get_ydata()[-1]): line for line in lines}
    assert by_end.keys() == {(2, 0.7), (4, 0.6), (4, 0.8)}
    assert by_end[4, 0.8].get_linewidth() > 2 * by_end[4, 0.6].get_linewidth()
    assert len(set(to_rgb(by_end[2, 0.7].get_color()))) == 1  # grey
    assert len(set(to_rgb(by_end[4, 0.6].get_color()))) == 3
    said = [text.get_text() for text in figure.legends[0].texts]
    assert said == ["trained to the end", "pruned", "best of the search: trial 1"]


def test_each_dimension_has_its_own_axes_and_trials_that_were_not_kept_are_hollow():
    figure = figures.dimensions(VIEW)
    axes = {each.get_xlabel(): each for each in figure.axes if each.get_xlabel()}
    assert list(axes) == list(sweeps.SPACE)
    found = {name: {line.get_ydata()[0]: line for line in each.lines} for name, each in axes.items()}
    assert {name: set(lines) for name, lines in found.items()} == {
        **{name: {0.8, 0.7, 0.6} for name in sweeps.SPACE},
        "augment.time_mask_frames": {0.8},
    }
    assert [found["model.dropout"][key].get_xdata()[0] for key in (0.8, 0.7, 0.6)] == [0.5, 0.25, 0.0]
    assert found["model.norm"][0.8].get_xdata()[0] == pytest.approx(1, abs=0.2)
    assert found["model.dropout"][0.7].get_markerfacecolor() == "none"
    assert to_hex(found["model.dropout"][0.8].get_markerfacecolor()) == figures.VALIDATION.lower()
    assert [label.get_text() for label in axes["model.norm"].get_xticklabels()] == ["False", "True"]
    assert (axes["optim.lr"].get_xscale(), axes["model.dropout"].get_xscale()) == ("log", "linear")
    assert axes["optim.lr"].get_xlim()[0] == pytest.approx(0.0002, rel=0.15)


def test_a_line_goes_through_all_its_values_and_by_the_foot_where_it_has_none():
    figure = figures.parallel(VIEW)
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 6]
    ways = {round(line.get_ydata()[-1], 3): line for line in lines}
    assert ways.keys() == {1.0, 0.5, 0.0}
    log_middle = np.log(0.001 / 0.0002) / np.log(0.005 / 0.0002)
    assert ways[1.0].get_ydata()[1:3] == pytest.approx([1, log_middle])
    assert ways[1.0].get_ydata()[4] == 1
    assert ways[1.0].get_ydata()[0] == pytest.approx(0.75, abs=0.16)  # True, the upper of two
    assert ways[0.0].get_ydata()[[1, 2, 4]] == pytest.approx([0, 0, figures.FOOT])
    assert to_hex(ways[0.5].get_color()) == to_hex("0.82")
    assert np.mean(to_rgb(ways[1.0].get_color())) < np.mean(to_rgb(ways[0.0].get_color()))
    said = {text.get_text() for text in figure.axes[0].texts}
    assert {"not drawn", "True", "0.0002", "0.5", "80.0%", "augment\ntime_mask\nframes"} <= said


def test_without_a_conditional_dimension_there_is_no_foot():
    tree = {"model.norm": [True], "model.dropout": {"uniform": [0, 0.5]}}
    figure = figures.parallel(sweeps.view([BEST], tree=tree))
    assert "not drawn" not in {text.get_text() for text in figure.axes[0].texts}


def test_the_overview_holds_curves_and_dimensions():
    figure = figures.overview(VIEW)
    labels = [axes.get_xlabel() for sub in figure.subfigs for axes in sub.axes if axes.get_xlabel()]
    assert labels == ["epoch", *sweeps.SPACE]


def test_importances_are_bars_the_largest_above():
    figure = figures.importance_bars({"model.norm": 0.75, "optim.lr": 0.25})
    axes = figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.75, 0.25]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["model.norm", "optim.lr"]
    assert axes.yaxis_inverted()


def test_fresh_seeds_stand_beside_what_the_search_said():
    models = tuple(SeedModel("", seed, 0.9, np.arange(40), sweeps.first(20 + seed)) for seed in (1, 2, 3))
    retrained = Retrained("", "again", BEST, models, 22 / 40, 0.025, 0.9, 0.8, 0.25)
    figure = figures.fresh_seeds([retrained])
    line, said, seeds, mean = figure.axes[0].lines
    assert list(line.get_xdata()) == [0.8, 22 / 40]
    assert (said.get_xdata()[0], mean.get_xdata()[0]) == (0.8, 22 / 40)
    assert list(seeds.get_xdata()) == [21 / 40, 22 / 40, 23 / 40]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["trial 1"]


def test_what_cannot_be_told_from_chance_is_hollow_in_the_forest():
    sure, unsure = Estimate(0.05, (0.01, 0.09)), Estimate(-0.02, (-0.05, 0.01))
    figure = figures.ablations([Effect("model.dropout", "0.23102", "0.0", sure, unsure, 3, 40)])
    for axes, estimate, hollow in zip(figure.axes, (sure, unsure), (False, True), strict=True):
        interval, point, zero = axes.lines
        assert list(interval.get_xdata()) == [100 * bound for bound in estimate.ci95]
        assert list(point.get_xdata()) == [100 * estimate.mean]
        assert (point.get_markerfacecolor() == "w") == hollow
        assert list(zero.get_xdata()) == [0, 0]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["model.dropout\n0.231 instead of 0"]


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.23104, "0.231"), ("0.23104", "0.231"), ("0.0", "0"), ("1024", "1024"), (64, "64"), (True, "True")],
)
def test_values_are_named_in_few_digits(value, said):
    assert figures.shown(value) == said
    assert figures.shown("avgmax") == "avgmax"
