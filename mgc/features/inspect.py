"""Look a finished feature set over: its counts and figures as tables, and a contact sheet of spectrograms.

Of the shards only the columns of figures are read, and the matrices of those few that the sheet's clips are in.
"""

from __future__ import annotations

import os
import textwrap
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mgc.audio.logmel import mel_filters
from mgc.collection.splits import SPLITS, leak_message
from mgc.core.atomic_files import replacing
from mgc.core.errors import InputError
from mgc.features.feature_set import QUARANTINE, FeatureSet, logmels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from mgc.audio.logmel import LogMelSpec
    from mgc.core.storage import Folder

SHEET = Path("contact_sheet.png")
COLUMNS, ROWS = 6, 16
"""The sheet's most clips of a genre, and most genres (FMA has 16)."""
SHOWN = 3
"""Clips in quarantine that are named for each reason."""
GREY = "0.3"
FIGURES = ("seconds", "mean_db", "std_db")


def overview(features: str | Path, *, out: Path | None = None) -> dict[str, Any]:
    """Describe a finished feature set, and draw its contact sheet.

    Parameters
    ----------
    features
        The set's folder, by path or URI.
    out
        The picture, a ``.png``, which is replaced; ``contact_sheet.png`` in the working directory by default.

    Returns
    -------
    dict
        Fit for JSON: ``features``, ``fingerprint``, ``recipe`` (a line), ``clips``, ``by_split`` ``{split: clips}``,
        ``by_genre_and_split`` ``{genre: {split: clips}}``, ``figures`` (``{"min", "median", "max"}`` of each of
        ``FIGURES``; empty without clips), ``padded`` and ``damaged`` (clips), ``quarantined`` ``{reason: {"clips",
        "first"}}`` with the first paths, ``artist_leaks``, ``shards``, ``bytes``, ``picture`` (its path; None where
        there is no clip to draw) and ``left_out`` (genres that are not in it).

    Raises
    ------
    InputError
        There is no such set, it is unfinished or damaged, or the picture cannot be written there.
    """
    target = FeatureSet.open(features)
    folder, manifest = target.folder, target.manifest
    picture = _checked(SHEET if out is None else out, folder)
    columns = ["track_id", "split", "genre", "padded", "damaged", *FIGURES]
    rows = [row for entry in manifest.shards for row in _rows(folder, entry.file, columns)]
    quarantined: defaultdict[str, list[str]] = defaultdict(list)
    for row in _rows(folder, QUARANTINE, ["reason", "path"]):
        quarantined[row["reason"]].append(row["path"])
    chosen = _choose(rows, manifest.genres)
    if chosen:
        _save(_sheet(chosen, _spectrograms(target, chosen), target), picture)
    return {
        "features": str(folder),
        "fingerprint": manifest.fingerprint,
        "recipe": _recipe(manifest.recipe),
        "clips": len(rows),
        "by_split": {split: sum(manifest.clips[split].values()) for split in SPLITS},
        "by_genre_and_split": {
            genre: {split: manifest.clips[split].get(genre, 0) for split in SPLITS} for genre in manifest.genres
        },
        "figures": {name: _spread([row[name] for row in rows]) for name in FIGURES if rows},
        "padded": sum(row["padded"] for row in rows),
        "damaged": sum(row["damaged"] for row in rows),
        "quarantined": {reason: {"clips": len(paths), "first": paths[:SHOWN]} for reason, paths in quarantined.items()},
        "artist_leaks": list(manifest.artist_leaks),
        "shards": len(manifest.shards),
        "bytes": sum(size for size in folder.sizes(folder.walk()) if size > 0),
        "picture": str(picture) if chosen else None,
        "left_out": [genre for genre in manifest.genres if genre not in chosen],
    }


def _checked(out: Path, folder: Folder) -> Path:
    path = out.expanduser().absolute()
    if path.suffix.lower() != ".png":
        raise InputError(f"--out {out}: must end in .png")
    if folder.path and path.resolve().is_relative_to(folder.path.resolve()):
        raise InputError(f"--out {out}: is inside the feature set; choose a place outside")
    if os.path.isdir(path) or not os.path.isdir(path.parent):  # pathlib's would raise of too long a name
        raise InputError(f"--out {out}: {'is a folder' if os.path.isdir(path) else 'its folder is not there'}")
    return path


def _rows(folder: Folder, file: str, columns: list[str]) -> list[dict[str, Any]]:
    """Some columns of a file; each row with its ``file`` and its place in it, ``row``."""
    with _reading(folder, file) as stream:
        rows = pq.read_table(stream, columns=columns).select(columns).to_pylist()
    return [values | {"file": file, "row": row} for row, values in enumerate(rows)]


@contextmanager
def _reading(folder: Folder, file: str) -> Iterator[pa.NativeFile]:
    """Open a file of the set, and say of one that is not as it should be who knows more."""
    try:
        with folder.random_access(file) as stream:
            yield stream
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{folder}/{file}: cannot be read ({said}); «mgc verify {folder}» says what to do") from None


def _spread(values: list[float]) -> dict[str, float]:
    return {name: round(float(getattr(np, name)(values)), 3) for name in ("min", "median", "max")}


def _recipe(recipe: dict[str, Any]) -> str:
    spec = recipe["spec"]
    return (
        f"{spec['sample_rate']} Hz, {spec['seconds']:g} s, n_fft {spec['n_fft']}, hop {spec['hop_length']}, "
        f"{spec['n_mels']} mel bands, {spec['top_db']:g} dB; at least {recipe['min_seconds']:g} s, damaged clips "
        f"{'kept' if recipe['keep_damaged'] else 'quarantined'}; {recipe['decoder']}"
    )


# The contact sheet


def _choose(rows: list[dict[str, Any]], genres: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    """Choose the sheet's clips by genre: of the training split, or of the next that has any.

    They are a genre's first, of few shards, and a fair sample all the same: a seeded shuffle dealt clips to shards.
    """
    split = next((split for split in SPLITS if any(row["split"] == split for row in rows)), None)
    clips = {genre: [row for row in rows if row["split"] == split and row["genre"] == genre] for genre in genres}
    most = sorted((genre for genre in genres if clips[genre]), key=lambda genre: -len(clips[genre]))[:ROWS]
    return {genre: clips[genre][:COLUMNS] for genre in genres if genre in most}


def _spectrograms(target: FeatureSet, chosen: dict[str, list[dict[str, Any]]]) -> dict[int, NDArray[np.float32]]:
    """Read the clips' matrices, by track id, in dB below the loudest value of each; silence is at the bottom."""
    spec = target.manifest.spec
    places: defaultdict[str, list[int]] = defaultdict(list)
    for row in (row for clips in chosen.values() for row in clips):
        places[row["file"]].append(row["row"])
    found = {}
    for file, numbers in places.items():
        with _reading(target.folder, file) as stream:
            table = pq.read_table(stream, columns=["track_id", "std_db", "logmel"]).take(numbers)
            z_NFT = logmels(table, spec.shape).astype(np.float32)
        for clip, std, z_FT in zip(table["track_id"].to_pylist(), table["std_db"].to_pylist(), z_NFT, strict=True):
            found[clip] = (z_FT - z_FT.max()) * np.float32(std) if std else np.full_like(z_FT, -spec.top_db)
    return found


def _sheet(chosen: dict[str, list[dict[str, Any]]], db: dict[int, NDArray[np.float32]], target: FeatureSet) -> Figure:
    """Draw a row a genre, all on one colour scale."""
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


def _save(figure: Figure, picture: Path) -> None:
    try:
        with replacing(picture) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
    except OSError as error:
        raise InputError(f"--out {picture}: cannot be written ({error.strerror or error})") from None


# For a terminal


def summary(result: dict[str, Any]) -> str:
    """Say what a set holds, for a terminal."""
    by_split, genres = result["by_split"], result["by_genre_and_split"]
    table = [["genre", *SPLITS, "all"]]
    table += [[genre, *counts.values(), sum(counts.values())] for genre, counts in genres.items()]
    table += [["all", *by_split.values(), result["clips"]]]
    spread = [["", "min", "median", "max"]]
    spread += [[name, *(f"{value:.2f}" for value in row.values())] for name, row in result["figures"].items()]
    quarantine = [
        f"in quarantine, {reason}: {group['clips']} ({', '.join(group['first'])}"
        f"{', …' if group['clips'] > SHOWN else ''})"
        for reason, group in result["quarantined"].items()
    ]
    leaks, left_out = result["artist_leaks"], ", ".join(result["left_out"])
    size = f"{result['clips']} clips in {result['shards']} shards, {result['bytes'] / 1e6:.1f} MB"
    return "\n".join(
        [
            f"{result['features']}: {size}",
            f"recipe: {result['recipe']}",
            f"fingerprint: {result['fingerprint']}",
            "",
            *_aligned(table),
            "",
            *_aligned(spread),
            f"{result['padded']} clips are zero-padded, {result['damaged']} are damaged but kept",
            "",
            *(quarantine or ["in quarantine: none"]),
            f"LEAK: {leak_message(leaks)}" if leaks else "artists: none is in more than one split",
            f"contact sheet: {result['picture'] or 'no clip to draw'}{left_out and f' (without {left_out})'}",
        ]
    )


def _aligned(rows: list[list[Any]]) -> list[str]:
    wide = max(len(row[0]) for row in rows)
    return [f"{row[0]:<{wide}}" + "".join(f"  {cell:>10}" for cell in row[1:]) for row in rows]
