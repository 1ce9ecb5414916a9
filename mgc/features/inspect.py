"""Summarise a finished feature set: counts and levels as tables, and a contact sheet of spectrograms.

Only columns of numbers are read, and the spectrograms of those few shards that the sheet's clips are in.
"""

from __future__ import annotations

import os
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from mgc.collection.splits import SPLITS, leak_message
from mgc.core.atomic_files import replacing
from mgc.core.errors import InputError, StoreError
from mgc.core.results import Result
from mgc.features.contact_sheet import choose, draw, spectrograms, title
from mgc.features.feature_set import FeatureSet
from mgc.features.layout import QUARANTINE, SHEET, read_table, storage_failure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.figure import Figure

    from mgc.core.storage import Folder

COLUMNS = 6
"""Clips of a genre on the contact sheet at most."""
SHOWN = 3
"""Clips in quarantine that are named for each reason."""
LEVELS = ("seconds", "mean_db", "std_db")
"""Columns whose spread over the clips is given."""


@dataclass(frozen=True)
class Spread:
    """Spread of a column over all clips."""

    min: float
    median: float
    max: float


@dataclass(frozen=True)
class Quarantined:
    """The clips in quarantine for one reason."""

    clips: int
    """How many they are."""
    first: list[str]
    """Paths of the first of them."""


@dataclass(frozen=True)
class Inspection(Result):
    """What a finished feature set holds."""

    features: str
    """Path or URI of the set."""
    fingerprint: str
    """Fingerprint of the set."""
    recipe: str
    """The settings it was made by, as one line."""
    clips: int
    """Clips with a feature."""
    by_split: dict[str, int]
    """Clips by split."""
    by_genre_and_split: dict[str, dict[str, int]]
    """Clips by genre, then by split."""
    figures: dict[str, Spread]
    """Spread of each of ``LEVELS``; empty without clips."""
    padded: int
    """Clips shorter than the feature, zero-padded."""
    damaged: int
    """Clips that decoded to clearly less audio than their file's headers announce, and were kept."""
    quarantined: dict[str, Quarantined]
    """Clips in quarantine by reason."""
    artist_leaks: list[dict[str, Any]]
    """Artists in more than one split, as ``splits.artist_leaks`` lists them."""
    shards: int
    """Shards of the set."""
    bytes: int
    """Size of all files of the set."""
    picture: str | None
    """Path of the contact sheet; None where there is no clip to draw."""
    left_out: list[str]
    """Genres that are not on it."""

    def __str__(self) -> str:
        """Show counts and levels as tables, then quarantine, leaks and the picture."""
        table = [["genre", *SPLITS, "all"]]
        table += [
            [genre, *map(str, counts.values()), str(sum(counts.values()))]
            for genre, counts in self.by_genre_and_split.items()
        ]
        table += [["all", *map(str, self.by_split.values()), str(self.clips)]]
        spread = [["", "min", "median", "max"]]
        spread += [
            [name, *(f"{value:.2f}" for value in (each.min, each.median, each.max))]
            for name, each in self.figures.items()
        ]
        quarantine = [
            f"in quarantine, {reason}: {each.clips} ({', '.join(each.first)}{', …' if each.clips > SHOWN else ''})"
            for reason, each in self.quarantined.items()
        ]
        leaks, left_out = self.artist_leaks, ", ".join(self.left_out)
        return "\n".join(
            [
                f"{self.features}: {self.clips} clips in {self.shards} shards, {self.bytes / 1e6:.1f} MB",
                f"recipe: {self.recipe}",
                f"fingerprint: {self.fingerprint}",
                "",
                *_aligned(table),
                "",
                *_aligned(spread),
                f"{self.padded} clips are zero-padded, {self.damaged} are damaged but kept",
                "",
                *(quarantine or ["in quarantine: none"]),
                f"LEAK: {leak_message(leaks)}" if leaks else "artists: none is in more than one split",
                f"contact sheet: {self.picture or 'no clip to draw'}{left_out and f' (without {left_out})'}",
            ]
        )


def inspect(features: str | Path | FeatureSet, *, out: str | Path | None = None) -> Inspection:
    """Summarise a finished feature set and draw its contact sheet.

    Parameters
    ----------
    features
        The set, or its folder: a path or a URI.
    out
        The picture, a ``.png``, which is replaced; ``contact_sheet.png`` in the working directory by default.

    Returns
    -------
    Inspection
        Counts, levels, quarantine, leaks and the path of the picture.

    Raises
    ------
    InputError
        There is no such set, it is unfinished or damaged, or the picture cannot be written there.
    RunError
        The disk or the object store cannot be read.
    """
    target = FeatureSet.open(features)
    folder, manifest = target.folder, target.manifest
    picture = _checked(Path(SHEET if out is None else out), folder)
    columns = ["track_id", "split", "genre", "padded", "damaged", *LEVELS]
    rows = [row for entry in manifest.shards for row in _rows(folder, entry.file, columns)]
    quarantined: defaultdict[str, list[str]] = defaultdict(list)
    for row in _rows(folder, QUARANTINE, ["reason", "path"]):
        quarantined[row["reason"]].append(row["path"])
    chosen = choose(rows, manifest.genres, COLUMNS)
    left_out = [genre for genre in manifest.genres if genre not in chosen]
    if chosen:
        heading = f"{folder.name}: {title(next(iter(chosen.values()))[0]['split'], len(left_out))}"
        _save(draw(chosen, spectrograms(target, chosen), manifest.spec, heading), picture)
    return Inspection(
        features=str(folder),
        fingerprint=manifest.fingerprint,
        recipe=_recipe(manifest.recipe),
        clips=len(rows),
        by_split={split: sum(manifest.clips[split].values()) for split in SPLITS},
        by_genre_and_split={
            genre: {split: manifest.clips[split].get(genre, 0) for split in SPLITS} for genre in manifest.genres
        },
        figures={name: _spread([row[name] for row in rows]) for name in LEVELS if rows},
        padded=sum(row["padded"] for row in rows),
        damaged=sum(row["damaged"] for row in rows),
        quarantined={reason: Quarantined(len(paths), paths[:SHOWN]) for reason, paths in quarantined.items()},
        artist_leaks=list(manifest.artist_leaks),
        shards=len(manifest.shards),
        bytes=sum(size for size in folder.sizes(folder.walk()) if size > 0),
        picture=str(picture) if chosen else None,
        left_out=left_out,
    )


def _checked(out: Path, folder: Folder) -> Path:
    path = out.expanduser().absolute()
    if path.suffix.lower() != ".png":
        raise InputError(f"`out={out}`: must end in .png")
    if folder.path and path.resolve().is_relative_to(folder.path.resolve()):
        raise InputError(f"`out={out}`: is inside the feature set; choose a place outside")
    if os.path.isdir(path) or not os.path.isdir(path.parent):  # pathlib's would raise of too long a name
        raise InputError(f"`out={out}`: {'is a folder' if os.path.isdir(path) else 'its folder is not there'}")
    return path


def _rows(folder: Folder, file: str, columns: list[str]) -> list[dict[str, Any]]:
    """Read some columns of a file; each row with its ``file`` and its number there, ``row``."""
    with _reading(folder, file) as stream:
        rows = read_table(stream, columns).select(columns).to_pylist()
    return [values | {"file": file, "row": row} for row, values in enumerate(rows)]


@contextmanager
def _reading(folder: Folder, file: str) -> Iterator[pa.NativeFile]:
    """Open a file of the set; name it in the error if it is damaged or the storage fails."""
    try:
        with folder.random_access(file) as stream:
            yield stream
    except (OSError, StoreError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise storage_failure(f"{folder}/{file}", error) or InputError(
            f"{folder}/{file}: cannot be read ({why}); «mgc verify {folder}» says what to do"
        ) from None


def _spread(values: list[float]) -> Spread:
    return Spread(*(round(float(of(values)), 3) for of in (np.min, np.median, np.max)))


def _recipe(recipe: dict[str, Any]) -> str:
    spec = recipe["spec"]
    scaling = spec.get("scaling", f"{spec['top_db']:g} dB")
    return (
        f"{spec['sample_rate']} Hz, {spec['seconds']:g} s, n_fft {spec['n_fft']}, hop {spec['hop_length']}, "
        f"{spec['n_mels']} mel bands, {scaling}; at least {recipe['min_seconds']:g} s, damaged clips "
        f"{'kept' if recipe['keep_damaged'] else 'quarantined'}; {recipe['decoder']}"
    )


def _save(figure: Figure, picture: Path) -> None:
    try:
        with replacing(picture) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
    except OSError as error:
        raise InputError(f"`out={picture}`: cannot be written ({error.strerror or error})") from None


def _aligned(rows: list[list[str]]) -> list[str]:
    wide = max(len(row[0]) for row in rows)
    return [f"{row[0]:<{wide}}" + "".join(f"  {cell:>10}" for cell in row[1:]) for row in rows]
