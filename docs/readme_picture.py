"""Draw the README's picture: spectrograms of a feature set, and what each regulariser bought in the sweep.

    python docs/readme_picture.py FEATURES docs/pictures/overview.png

FEATURES is any finished feature set; a training clip of each of its genres is shown. The effects are read from the
table in ``docs/results.md``.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from mgc.dataset import clips
from mgc.features.feature_set import FeatureSet

CLIP, COLUMNS = 3, 4
ROW = re.compile(r"^\| (?P<name>[^|]+), instead of none \| (?P<validation>[^|]+)\| (?P<gap>[^|]+)\|$", re.MULTILINE)
SHORTER = {
    " in each block": ", blocks",
    " of the input's bands": ", input",
    " before the": ",",
    " in blocks": ", blocks",
}
INK, GREY, BLUE = "#222222", "#8a8a8a", "#1f6fb4"


def main(features: Path, picture: Path) -> None:
    """Draw both halves; letters are large enough for a telephone."""
    figure = Figure(figsize=(6.4, 7.6), facecolor="white")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.12))
    spectrograms(above, FeatureSet.open(features))
    effects(below, Path(__file__).with_name("results.md").read_text())
    picture.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=160)
    Image.open(drawn).convert("RGB").quantize(256).save(picture, optimize=True)  # a third of the bytes


def spectrograms(figure: Figure, feature_set: FeatureSet) -> None:
    """One training clip a genre."""
    training = clips.load(feature_set, "training", lazily=True)
    genres = feature_set.manifest.genres
    rows = -(-len(genres) // COLUMNS)
    figure.suptitle("One clip of each soundtrack: log-Mel, 30 s", fontsize=14, color=INK, x=0.02, ha="left", y=0.975)
    grid = figure.subplots(
        rows, COLUMNS, squeeze=False,
        gridspec_kw={"left": 0.02, "right": 0.98, "bottom": 0.03, "top": 0.83, "wspace": 0.06, "hspace": 0.36},
    )  # fmt: skip
    for axes, (label, genre) in zip(grid.flat, enumerate(genres), strict=False):
        place = np.flatnonzero(np.asarray(training.labels_N) == label)[CLIP]
        mel_FT = training.mel_NFT[np.array([place])][0].astype(np.float32)
        axes.imshow(
            mel_FT, origin="lower", aspect="auto", cmap="magma", vmin=-2.5, vmax=2.5, interpolation="antialiased"
        )
        axes.set_title(genre, fontsize=13, color=INK, pad=4)
    for axes in grid.flat:
        axes.set_axis_off()


def effects(figure: Figure, results: str) -> None:
    """Points with and without each regulariser, with 95 % intervals."""
    rows = [match.groupdict() for match in ROW.finditer(results)]
    figure.suptitle("What each regulariser changes, in points", fontsize=14, color=INK, x=0.02, ha="left", y=0.985)
    left, right = figure.subplots(
        1, 2, sharey=True, gridspec_kw={"left": 0.37, "right": 0.98, "bottom": 0.16, "top": 0.80, "wspace": 0.12}
    )
    for axes, name, title in ((left, "validation", "validation\naccuracy"), (right, "gap", "gap to\ntraining")):
        for place, row in enumerate(rows):
            value, low, high = (float(each) for each in re.findall(r"[+-]?\d+\.\d", row[name].replace("−", "-")))
            clear = low > 0 or high < 0
            axes.plot((low, high), (place, place), color=BLUE if clear else GREY, linewidth=3, solid_capstyle="round")
            axes.plot(value, place, "o", color=BLUE if clear else GREY, markersize=9)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_title(title, fontsize=13, color=INK, pad=4)
        axes.set_xlim(-21, 14)
        axes.set_xticks((-10, 0, 10), ("−10", "0", "+10"), fontsize=13, color=INK)
        axes.tick_params(length=0)
        axes.grid(axis="x", color="#e4e4e4", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
    figure.text(0.98, 0.03, "bars: 95 % intervals; blue: 0 is outside", fontsize=12, color="#555555", ha="right")
    left.set_yticks(range(len(rows)), [short(row["name"]) for row in rows], fontsize=13, color=INK)
    left.set_ylim(len(rows) - 0.5, -0.5)


def short(name: str) -> str:
    """The name of a regulariser, without its setting, in few letters."""
    name = re.sub(r" \.\d+", "", name)
    for long, few in SHORTER.items():
        name = name.replace(long, few)
    return name


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
