"""Plots of a sweep: curves, accuracy against each dimension, parallel coordinates, importances, seeds, ablations.

Trials that were trained to their end are drawn in colour; those that were not, with an accuracy of fewer epochs, in
grey.
"""

from __future__ import annotations

from contextlib import suppress
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from mgc.pages.plots import GREY, TRAINING, VALIDATION, plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

    from mgc.evaluation.metrics import Estimate
    from mgc.sweep.results import Effect, Retrained, SweepView, Trial
    from mgc.sweep.space import Dimension

COLUMNS = 3
FAINT = "0.72"
FOOT = -0.13
"""Height in parallel coordinates of a dimension that a trial lacks."""
SHADES = matplotlib.colormaps["viridis_r"]


def shown(value: Any) -> str:
    """A value for plots and tables, with three significant digits; also of a number that is a text."""
    if isinstance(value, str):
        with suppress(ValueError):
            return value if value.lstrip("-").isdigit() else f"{float(value):.3g}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def overview(view: SweepView) -> Figure:
    """The sweep in one picture: all curves, and accuracy against each dimension."""
    rows = _rows(view)
    figure = Figure(figsize=(9.6, 4 + 2.5 * rows), layout="constrained")
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=[4, 2.5 * rows])[:, 0]
    _curves(upper, view)
    _dimensions(lower, view)
    figure.suptitle(view.record.name, parse_math=False)
    return figure


def curves(view: SweepView) -> Figure:
    """Validation accuracy of every trial over epochs, to where it ended; the best one is bold."""
    figure = Figure(figsize=(9.6, 4), layout="constrained")
    _curves(figure, view)
    return figure


def _curves(figure: FigureBase, view: SweepView) -> None:
    axes = figure.subplots()
    for trial in reversed(view.trials):
        if trial.kept:
            axes.plot(trial.epochs, trial.curve, color=TRAINING, lw=1, alpha=0.55)
        elif trial.epochs:
            axes.plot(trial.epochs, trial.curve, color=FAINT, lw=0.8, zorder=1)
            mark = "o" if trial.outcome == "pruned" else "x"
            axes.plot(trial.epochs[-1], trial.curve[-1], mark, ms=3.5, color=FAINT, mfc="w", zorder=1)
    best, outcomes = view.best, {trial.outcome for trial in view.trials if trial.epochs}
    handles = [Line2D([], [], color=TRAINING, lw=1, alpha=0.55, label="trained to the end")] if view.kept else []
    if "pruned" in outcomes:
        handles.append(Line2D([], [], color=FAINT, lw=0.8, marker="o", ms=3.5, mfc="w", label="pruned"))
    if outcomes - {"kept", "pruned"}:
        handles.append(Line2D([], [], color=FAINT, lw=0.8, marker="x", ms=3.5, label="failed, stopped or running"))
    if best and best.epochs:
        style = "o-" if len(best.epochs) < 15 else "-"
        (line,) = axes.plot(best.epochs, best.curve, style, ms=4, lw=2.4, color=VALIDATION)
        line.set_label(f"best of the search: {best.name}")
        handles.append(line)
    axes.set(xlabel="epoch", ylabel="validation accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    plain(axes)
    if handles:
        legend = figure.legend(handles=handles, loc="outside upper left", ncols=4, frameon=False, fontsize=9)
        legend.get_texts()[-1].set_parse_math(False)


def dimensions(view: SweepView) -> Figure:
    """Accuracy against each dimension; hollow marks have that of fewer epochs."""
    figure = Figure(figsize=(9.6, 2.5 * _rows(view)), layout="constrained")
    _dimensions(figure, view)
    return figure


def _rows(view: SweepView) -> int:
    return -(-len(view.space.dimensions) // COLUMNS)


def _dimensions(figure: FigureBase, view: SweepView) -> None:
    grid = figure.subplots(_rows(view), COLUMNS, sharey=True, squeeze=False)
    generator = np.random.default_rng(0)
    for axes in grid.flat[len(view.space.dimensions) :]:
        axes.set_axis_off()
    for index, (axes, dimension) in enumerate(zip(grid.flat, view.space.dimensions, strict=False)):
        for trial in reversed(view.trials):
            if dimension.field in trial.values and trial.val_accuracy is not None:
                where = _place(dimension, trial.values[dimension.field])
                if dimension.kind == "choice":
                    where += generator.uniform(-0.16, 0.16)
                style = _mark(trial, view)
                axes.plot(where, trial.val_accuracy, "o", **style)
        if dimension.kind == "choice":
            names = [_short(shown(value)) for value in dimension.values]
            axes.set_xticks(range(len(names)), names, parse_math=False)
            axes.set_xlim(-0.5, len(names) - 0.5)
        else:
            low, high = map(float, dimension.values)
            axes.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))
            if dimension.kind == "log_uniform":
                margin = (high / low) ** 0.04
                axes.set(xscale="log", xlim=(low / margin, high * margin))
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
                axes.xaxis.set_major_formatter("{x:g}")
                axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(dimension.field, fontsize=9, parse_math=False)
        axes.tick_params(labelsize=8)
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        if index % COLUMNS == 0:
            axes.set_ylabel("val. accuracy", fontsize=9)
        plain(axes)


def _mark(trial: Trial, view: SweepView) -> dict[str, Any]:
    if not trial.kept:
        return {"ms": 4.5, "mfc": "none", "mec": "0.6", "mew": 0.9, "zorder": 2}
    best = trial is view.best
    return {"ms": 7 if best else 5, "mfc": VALIDATION if best else TRAINING, "mec": "w", "mew": 0.5, "zorder": 3 + best}


def _place(dimension: Dimension, value: Any) -> float:
    return float(dimension.values.index(value)) if dimension.kind == "choice" else float(value)


# Parallel coordinates


def parallel(view: SweepView) -> Figure:
    """Parallel coordinates: a line per trial through its values to its accuracy, darker is better, grey ended early.

    A conditional dimension that a trial lacks is passed at the foot of its axis.
    """
    ways, reached = view.space.dimensions, [trial for trial in view.trials if trial.val_accuracy is not None]
    figure = Figure(figsize=(max(8, 0.98 * (len(ways) + 1)), 4.8), layout="constrained")
    axes = figure.subplots()
    accuracies = [trial.val_accuracy for trial in reached if trial.val_accuracy is not None]
    low, high = min(accuracies, default=0.0), max(accuracies, default=1.0)
    low, high = (low, high) if low < high else (low - 0.01, high + 0.01)
    floor = min((trial.val_accuracy or 0 for trial in view.kept), default=low)
    generator = np.random.default_rng(0)
    for trial in reversed(reached):
        heights = []
        for dimension in ways:
            if dimension.field not in trial.values:
                heights.append(FOOT)
                continue
            jitter = generator.uniform(-0.3, 0.3) / len(dimension.values) if dimension.kind == "choice" else 0
            heights.append(_height(dimension, trial.values[dimension.field]) + jitter)
        end = (trial.val_accuracy or 0) - low
        heights.append(end / (high - low))
        style: dict[str, Any] = {"color": "0.82", "lw": 0.7, "zorder": 1}
        if trial.kept:
            share = ((trial.val_accuracy or 0) - floor) / max(high - floor, 1e-9)
            style = {
                "color": SHADES(0.12 + 0.88 * share),
                "lw": 2.4 if trial is view.best else 1.3,
                "zorder": 2 + share,
            }
        axes.plot(range(len(heights)), heights, alpha=0.9, **style)
    absent = {each.field for each in ways if any(each.field not in trial.values for trial in reached)}
    for column, dimension in enumerate(ways):
        _axis(axes, column, dimension.field, _ticks(dimension))
        if dimension.field in absent:
            axes.plot([column, column], [FOOT, 0], color=GREY, lw=1, ls=":", zorder=4)
            _label(axes, column, FOOT, "not drawn")
    ticks = [(f"{each:.1%}", (each - low) / (high - low)) for each in np.linspace(low, high, 5)]
    _axis(axes, len(ways), "validation.accuracy", ticks, side=1)
    axes.set(xlim=(-0.45, len(ways) + 0.45), ylim=(FOOT - 0.05 if absent else -0.04, 1.04))
    axes.set_axis_off()
    return figure


def _axis(axes: Axes, column: int, field: str, ticks: Sequence[tuple[str, float]], side: int = -1) -> None:
    axes.plot([column, column], [0, 1], color="0.25", lw=1, zorder=4)
    group, _, name = field.rpartition(".")
    words = "\n".join(wrap(name.replace("_", " "), 12)).replace(" ", "_")
    axes.text(column, 1.05, f"{group}\n{words}", ha="center", va="bottom", fontsize=8, parse_math=False)
    for text, height in ticks:
        axes.plot([column, column + 0.04 * side], [height, height], color="0.25", lw=1, zorder=4)
        _label(axes, column + 0.06 * side, height, text, ha="right" if side < 0 else "left")


def _label(axes: Axes, x: float, y: float, text: str, ha: str = "center") -> None:
    box = {"facecolor": "w", "alpha": 0.8, "edgecolor": "none", "pad": 0.8}
    axes.text(x, y, _short(text), ha=ha, va="center", fontsize=7, color="0.2", bbox=box, zorder=5, parse_math=False)


def _height(dimension: Dimension, value: Any) -> float:
    """Place of a value on its axis, from 0 to 1; what is beyond a range stays at its end."""
    if dimension.kind == "choice":
        return (_place(dimension, value) + 0.5) / len(dimension.values)
    low, high, at = (float(each) for each in (*dimension.values, value))
    if dimension.kind == "log_uniform":
        low, high, at = (float(np.log(each)) for each in (low, high, max(at, low)))
    return min(max((at - low) / (high - low), 0), 1)


def _ticks(dimension: Dimension) -> list[tuple[str, float]]:
    if dimension.kind == "choice":
        return [(shown(value), _height(dimension, value)) for value in dimension.values]
    low, high = map(float, dimension.values)
    locator = LogLocator(numticks=6) if dimension.kind == "log_uniform" else MaxNLocator(5)
    places = {float(each): _height(dimension, each) for each in locator.tick_values(low, high)}
    inside = [each for each, height in places.items() if 0.06 < height < 0.94]
    return [(f"{each:.3g}", _height(dimension, each)) for each in (low, *inside, high)]


def _short(text: str, most: int = 14) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


# Importances, fresh seeds, ablations


def importance_bars(shares: dict[str, float]) -> Figure:
    """Importance of each dimension, as a share of the explained variance, the most important above."""
    figure = Figure(figsize=(5.4, 0.9 + 0.34 * len(shares)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(range(len(shares)), list(shares.values()), color=TRAINING, height=0.62)
    axes.bar_label(bars, [f"{share:.0%}" for share in shares.values()], padding=4, fontsize=9)
    axes.set_yticks(range(len(shares)), list(shares), parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(shares.values()))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("importance")
    plain(axes)
    axes.grid(visible=False, axis="y")
    return figure


def fresh_seeds(retrained: Sequence[Retrained]) -> Figure:
    """Accuracy of each retrained configuration: in the search, with each fresh seed, and their mean."""
    figure = Figure(figsize=(5.4, 1.3 + 0.5 * len(retrained)), layout="constrained")
    axes = figure.subplots()
    for row, each in enumerate(retrained):
        axes.plot([each.first, each.val_accuracy], [row, row], color=FAINT, lw=1.4, zorder=1)
        axes.plot(each.first, row, "D", ms=7, mfc="w", mec=TRAINING, mew=1.6, zorder=3)
        seeds = [model.val_accuracy for model in each.models]
        axes.plot(seeds, np.full(len(seeds), row), "o", ms=5, color=VALIDATION, alpha=0.6, mew=0, zorder=2)
        axes.plot(each.val_accuracy, row, "|", ms=18, mew=2.4, color=VALIDATION, zorder=4)
    axes.set_yticks(range(len(retrained)), [each.configuration for each in retrained], parse_math=False)
    axes.set_ylim(len(retrained) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("validation accuracy")
    plain(axes)
    handles = [
        Line2D([], [], marker="D", ls="", ms=7, mfc="w", mec=TRAINING, mew=1.6, label="in the search"),
        Line2D([], [], marker="o", ls="", ms=5, color=VALIDATION, alpha=0.6, label="a fresh seed"),
        Line2D([], [], marker="|", ls="", ms=14, mew=2.4, color=VALIDATION, label="their mean"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3, frameon=False, fontsize=9, columnspacing=1.2)
    return figure


def ablations(effects: Sequence[Effect]) -> Figure:
    """Effect of each ablated field on accuracy and gap, with 95% intervals; hollow where the interval holds zero."""
    figure = Figure(figsize=(9.6, 1.2 + 0.55 * len(effects)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for row, each in enumerate(effects):
        _interval(left, row, each.accuracy, TRAINING)
        _interval(right, row, each.gap, VALIDATION)
    names = [f"{each.field}\n{_short(shown(each.value))} instead of {_short(shown(each.off))}" for each in effects]
    left.set_yticks(range(len(effects)), names, fontsize=9, parse_math=False)
    left.set_ylim(len(effects) - 0.5, -0.5)
    left.set_xlabel("effect on validation accuracy, points")
    right.set_xlabel("effect on the gap to training, points (below 0: closed)")
    for axes in (left, right):
        axes.axvline(0, color=GREY, lw=1, ls="--")
        plain(axes)
    return figure


def _interval(axes: Axes, row: int, estimate: Estimate, colour: str) -> None:
    axes.plot([100 * bound for bound in estimate.ci95], [row, row], color=colour, lw=2)
    axes.plot(100 * estimate.mean, row, "o", ms=8, mec=colour, mew=1.6, mfc="w" if estimate.chance else colour)
