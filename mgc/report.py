"""What people look at: learning curves, confusion matrix, spectrograms, and a page that holds them."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mgc.features import Split
    from mgc.logmel import LogMelSpec
    from mgc.metrics import Scores

TRAINING, VALIDATION = "#4477AA", "#CC6677"  # P. Tol's colour-blind safe pair


def learning_curves(history: Sequence[Mapping[str, float]], best_epoch: int) -> Figure:
    """Loss and accuracy over epochs, training against validation, with the kept epoch marked."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    epochs = [point["epoch"] for point in history]
    for axes, what in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        axes.plot(epochs, [point[f"train_{what}"] for point in history], "o-", ms=3, color=TRAINING, label="training")
        axes.plot(epochs, [point[f"val_{what}"] for point in history], "o-", ms=3, color=VALIDATION, label="validation")
        axes.axvline(best_epoch, color="0.6", lw=1, ls="--", label=f"kept: epoch {best_epoch}")
        axes.set(xlabel="epoch", ylabel=what)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False)
    return figure


def confusion_matrix(scores: Scores, split: str) -> Figure:
    """True against predicted genre: colour is the share of the true genre, the figure in a cell is the clips."""
    genres = list(scores.per_genre)
    counts = np.array(scores.confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 2.2 + 0.55 * len(genres)
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(genres))
    axes.set_xticks(ticks, genres, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, genres)
    axes.set(xlabel="predicted", ylabel="true", title=f"{split}: {scores.accuracy:.3f} of {scores.n} clips")
    for (row, column), count in np.ndenumerate(counts):
        if count:
            axes.text(column, row, count, ha="center", va="center", color="w" if shares[row, column] > 0.55 else "k")
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true genre")
    return figure


def spectrograms(split: Split, genres: tuple[str, ...], spec: LogMelSpec, columns: int = 3) -> Figure:
    """Some log-Mel spectrograms of each genre, a row a genre, on one colour scale."""
    columns = min(columns, int(np.bincount(split.labels_N).max()))
    figure = Figure(figsize=(3.6 * columns + 0.6, 1.35 * len(genres) + 0.5), layout="constrained")
    grid = figure.subplots(len(genres), columns, sharex=True, sharey=True, squeeze=False)
    image = None
    for label, genre in enumerate(genres):
        clips = np.flatnonzero(split.labels_N == label)[:columns]
        for column, axes in enumerate(grid[label]):
            axes.tick_params(labelsize=7)
            if column >= len(clips):
                axes.set_axis_off()
                continue
            image = axes.imshow(
                split.mel_NFT[clips[column]].astype(np.float32),
                origin="lower",
                aspect="auto",
                cmap="magma",
                vmin=-3,
                vmax=3,
                extent=(0, spec.seconds, 0, spec.n_mels),
            )
            axes.set_title(f"clip {split.track_ids_N[clips[column]]}", fontsize=7, pad=2)
        grid[label, 0].set_ylabel(f"{genre}\nmel band", fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("seconds", fontsize=8)
    if image is not None:
        figure.colorbar(image, ax=grid, shrink=0.5, label="z-score")
    return figure


def page(title: str, claim: str, scores: Scores, facts: Mapping[str, Any], pictures: Mapping[str, Figure]) -> str:
    """One self-contained HTML page: the claim with its interval, the per-genre table, pictures inline, the facts."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    images = {name: _data_uri(figure) for name, figure in pictures.items()}
    return environment.from_string(_PAGE).render(title=title, claim=claim, scores=scores, facts=facts, images=images)


def _data_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.claim { font-size: 1.15rem; background: #eef3f9; padding: .8rem 1rem; border-radius: .4rem; }
.scroll { overflow-x: auto; } img { max-width: 100%; height: auto; display: block; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
dl { display: grid; grid-template-columns: auto 1fr; gap: .2rem 1rem; }
dt { color: #666; } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 30rem) {
  th, td { padding: .25rem .4rem; }
  dl { grid-template-columns: 1fr; }
  dd { margin: 0 0 .4rem; }
}
</style></head><body>
<h1>{{ title }}</h1>
<p class="claim">{{ claim }}</p>
<h2>By genre</h2>
<div class="scroll"><table><tr><th>genre</th><th>precision</th><th>recall</th><th>F1</th><th>clips</th></tr>
{% for genre, row in scores.per_genre.items() %}
<tr><td>{{ genre }}</td><td>{{ "%.2f"|format(row.precision) }}</td><td>{{ "%.2f"|format(row.recall) }}</td>
<td>{{ "%.2f"|format(row.f1) }}</td><td>{{ row.support }}</td></tr>
{% endfor %}
</table></div>
{% for name, source in images.items() %}
<h2>{{ name }}</h2><img alt="{{ name }}" src="{{ source }}">
{% endfor %}
<h2>What it was made of</h2>
<dl>
{% for key, value in facts.items() %}
<dt>{{ key }}</dt><dd>{{ "%.4g"|format(value) if value is float else value }}</dd>
{% endfor %}
</dl>
</body></html>
"""
