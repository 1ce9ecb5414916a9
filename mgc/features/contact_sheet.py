"""The contact sheet of a feature set: spectrograms of some clips of each genre, side by side."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from mgc.audio.logmel import mel_filters

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from mgc.audio.logmel import LogMelSpec
    from mgc.features.feature_set import FeatureSet

GREY = "0.3"


def draw(chosen: dict[str, list[dict[str, Any]]], db: dict[int, NDArray[np.float32]], target: FeatureSet) -> Figure:
    """Draw a contact sheet: a row a genre, a column a clip, all on one colour scale.

    Parameters
    ----------
    chosen
        Clips by genre, each with its ``track_id`` and ``split``; at least one.
    db
        Spectrograms by track id [shape=(n_mels, n_frames)], in dB relative to the maximum of each.
    target
        The feature set.
    """
    from matplotlib.figure import Figure  # here, because the command line must not wait for it

    spec, rows, columns = target.manifest.spec, len(chosen), max(map(len, chosen.values()))
    wide, high = 2.8 + 2.05 * max(columns, 3), 1.1 + 0.97 * rows  # inches; a layout engine would double the time
    figure = Figure(figsize=(wide, high))
    edges = {"left": 1.75 / wide, "right": 1 - 0.95 / wide, "bottom": 0.5 / high, "top": 1 - 0.55 / high}
    space = edges | {"wspace": 0.06, "hspace": 0.2}
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False, gridspec_kw=space)
    for line, (genre, clips) in zip(grid, chosen.items(), strict=True):
        for axes, clip in zip(line, clips, strict=False):
            image = axes.imshow(
                db[clip["track_id"]],
                origin="lower",
                aspect="auto",
                cmap="magma",
                vmin=-spec.top_db,
                vmax=0,
                extent=(0, spec.seconds, 0, spec.n_mels),
            )
            axes.set_title(clip["track_id"], fontsize=7, color=GREY, loc="left", pad=2)
            axes.spines[:].set_visible(False)
            axes.tick_params(labelsize=7, length=0, labelcolor=GREY)
        for axes in line[len(clips) :]:
            axes.set_axis_off()
        name = line[0].set_ylabel(
            textwrap.fill(genre, 14), rotation=0, ha="right", va="center", fontsize=10, labelpad=8
        )
        name.set_parse_math(False)  # «$» is a letter
    grid[0, 0].set_yticks(*_hertz(spec))
    grid[0, 0].locator_params("x", nbins=4, prune="upper")
    for column in grid.T:
        lowest = [axes for axes in column if axes.axison][-1]
        lowest.tick_params("x", labelbottom=True, length=2, color=GREY)
        lowest.set_xlabel("seconds", fontsize=8, color=GREY)
    place = figure.add_axes((1 - 0.75 / wide, edges["bottom"], 0.12 / wide, edges["top"] - edges["bottom"]))
    bar = figure.colorbar(image, cax=place)
    bar.set_label("dB, 0 is the loudest", fontsize=8, color=GREY)
    bar.ax.tick_params(labelsize=7, length=2, color=GREY, labelcolor=GREY)
    bar.outline.set_visible(False)
    others = len(target.manifest.genres) - rows
    split = next(iter(chosen.values()))[0]["split"]
    title = f"{target.folder.name}: {split} clips by genre, each with its track id"
    title += f"; {others} more genres are left out" if others else ""
    figure.suptitle(title, fontsize=11, x=0.15 / wide, y=1 - 0.15 / high, ha="left", va="top", parse_math=False)
    return figure


def _hertz(spec: LogMelSpec) -> tuple[list[float], list[str]]:
    """Where on the mel axis some frequencies are, and their names."""
    centres = mel_filters(spec).argmax(axis=1) * spec.sample_rate / spec.n_fft
    named = {name: hz for name, hz in (("500 Hz", 500), ("2 kHz", 2000), ("8 kHz", 8000)) if hz < centres[-1]}
    return [float(np.interp(hz, centres, np.arange(spec.n_mels))) + 0.5 for hz in named.values()], list(named)
