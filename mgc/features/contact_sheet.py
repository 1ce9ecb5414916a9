"""The contact sheet of a feature set: spectrograms of some clips of each genre, side by side."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from mgc.audio.logmel import mel_filters
from mgc.collection.splits import SPLITS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from mgc.audio.logmel import LogMelSpec
    from mgc.features.feature_set import FeatureSet
    from mgc.features.shards import ShardRecord

GREY = "0.3"
ROWS = 16
"""Genres on a contact sheet at most (FMA has 16)."""
PREVIEW = 1
"""Clips of a genre on the card's sheet at most."""


def choose(rows: list[dict[str, Any]], genres: Sequence[str], columns: int) -> dict[str, list[dict[str, Any]]]:
    """Choose a sheet's clips by genre: of the training split, or of the next that has any.

    They are the first of each genre, so few shards are read; these are a fair sample, because clips were shuffled.

    Parameters
    ----------
    rows
        The clips, each with its ``split`` and ``genre``.
    genres
        In the order of the sheet; those with the most clips are taken.
    columns
        Clips of a genre at most.
    """
    split = next((split for split in SPLITS if any(row["split"] == split for row in rows)), None)
    clips = {genre: [row for row in rows if row["split"] == split and row["genre"] == genre] for genre in genres}
    most = sorted((genre for genre in genres if clips[genre]), key=lambda genre: -len(clips[genre]))[:ROWS]
    return {genre: clips[genre][:columns] for genre in genres if genre in most}


def spectrograms(target: FeatureSet, chosen: dict[str, list[dict[str, Any]]]) -> dict[int, NDArray[np.float32]]:
    """Read a sheet's spectrograms, by track id, in dB below the maximum of each; silence is at ``-top_db``.

    Parameters
    ----------
    target
        The feature set.
    chosen
        Clips by genre, each with its ``file`` and its ``row`` there.

    Raises
    ------
    InputError, RunError
        As ``FeatureSet.table``.
    """
    spec = target.manifest.spec
    entries = {entry.file: entry for entry in target.manifest.shards}
    places: defaultdict[str, list[int]] = defaultdict(list)
    for row in (row for clips in chosen.values() for row in clips):
        places[row["file"]].append(row["row"])
    found = {}
    for file, numbers in places.items():
        table = target.table(entries[file], ["track_id", "std_db", "logmel"])
        z_NFT = target.spectrograms(entries[file], table.take(numbers)).astype(np.float32)
        clips, stds = (table[name].take(numbers).to_pylist() for name in ("track_id", "std_db"))
        for clip, std, z_FT in zip(clips, stds, z_NFT, strict=True):
            found[clip] = (z_FT - z_FT.max()) * np.float32(std) if np.ptp(z_FT) else np.full_like(z_FT, -spec.top_db)
    return found


def preview(target: FeatureSet, records: Sequence[ShardRecord]) -> bytes | None:
    """Draw the sheet that the card shows, as a PNG; the same set gives the same bytes.

    Parameters
    ----------
    target
        The feature set.
    records
        Those of its shards: of each genre the first that have it are read.

    Returns
    -------
    bytes or None
        None of a set without a clip.
    """
    clips = target.manifest.clips
    split = next((split for split in SPLITS if sum(clips[split].values())), None)
    if split is None:
        return None
    genres = sorted(sorted(clips[split], key=lambda genre: (-clips[split][genre], genre))[:ROWS])
    rows, sought = [], dict.fromkeys(genres, PREVIEW)
    for one in (one for one in records if one.entry.split == split):
        if any(sought.get(genre, 0) > 0 for genre in one.genres):
            sought = {genre: count - one.genres.get(genre, 0) for genre, count in sought.items()}
            values = target.table(one.entry, ["track_id", "split", "genre"]).to_pylist()
            rows += [each | {"file": one.entry.file, "row": row} for row, each in enumerate(values)]
    chosen = choose(rows, genres, PREVIEW)
    left_out = len(target.manifest.genres) - len(chosen)
    figure = draw(chosen, spectrograms(target, chosen), target.manifest.spec, title(split, left_out))
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a genre's letters may be in no font here
        figure.savefig(picture, format="png", dpi=80, metadata={"Software": None})
    return picture.getvalue()


def title(split: str, left_out: int) -> str:
    """The title of a sheet.

    Parameters
    ----------
    split
        Whose clips are shown.
    left_out
        How many genres are not.
    """
    others = f"; {left_out} more genres are left out" if left_out else ""
    return f"{split} clips by genre, each with its track id{others}"


def draw(
    chosen: dict[str, list[dict[str, Any]]], db: dict[int, NDArray[np.float32]], spec: LogMelSpec, title: str
) -> Figure:
    """Draw a contact sheet: a row a genre, a column a clip, all on one colour scale.

    Parameters
    ----------
    chosen
        Clips by genre, each with its ``track_id``; at least one.
    db
        Spectrograms by track id [shape=(n_mels, n_frames)], in dB relative to the maximum of each.
    spec
        Parameters of the spectrograms.
    title
        Stands above them.
    """
    from matplotlib.figure import Figure  # here, because the command line must not wait for it

    rows, columns = len(chosen), max(map(len, chosen.values()))
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
    figure.suptitle(title, fontsize=11, x=0.15 / wide, y=1 - 0.15 / high, ha="left", va="top", parse_math=False)
    return figure


def _hertz(spec: LogMelSpec) -> tuple[list[float], list[str]]:
    """Where on the mel axis some frequencies are, and their names."""
    centres = mel_filters(spec).argmax(axis=1) * spec.sample_rate / spec.n_fft
    named = {name: hz for name, hz in (("500 Hz", 500), ("2 kHz", 2000), ("8 kHz", 8000)) if hz < centres[-1]}
    return [float(np.interp(hz, centres, np.arange(spec.n_mels))) + 0.5 for hz in named.values()], list(named)
