"""The command ``mgc mislabels``: clips whose label a cross-validation doubts, the most suspicious first.

Each clip is predicted by models that never learnt it, calibrated, and ranked by confident learning's self-confidence
(C. Northcutt, L. Jiang, I. Chuang: «Confident Learning: Estimating Uncertainty in Dataset Labels», JAIR 2021).

Shape suffixes: N clips, G genres.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from mgc.core.atomic_files import write_text
from mgc.core.errors import InputError
from mgc.core.progress import say
from mgc.core.results import Result
from mgc.core.storage import URI, Folder, without_password
from mgc.dataset import clips as clips_of
from mgc.evaluation import figures
from mgc.evaluation.calibration import Calibration
from mgc.evaluation.metrics import wilson
from mgc.evaluation.run_page import settings_of
from mgc.evaluation.trained_models import check, kept_validation, predict_validation, read_models
from mgc.features.feature_set import FeatureSet
from mgc.pages import html
from mgc.tracking.runs import Run, run_id_of
from mgc.tracking.store import existing_store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mgc.dataset.clips import Clips
    from mgc.evaluation.trained_models import TrainedModel
    from mgc.tracking.runs import RunLike

TEMPLATE = "mislabels.html.j2"
PRINTED = 20
"""Rows that are printed for a person."""


@dataclass(frozen=True)
class Mislabel:
    """A clip whose label may be wrong."""

    track_id: int
    path: str
    label: str
    """The genre that it is given as."""
    predicted: str
    """The genre that the models say."""
    label_probability: float
    """Calibrated, of the given genre."""
    predicted_probability: float
    """Calibrated, of the predicted genre."""
    score: float
    """How improbable the label is: 0 to 1."""


@dataclass(frozen=True)
class Mislabels(Result):
    """Clips of a feature set whose labels a cross-validation doubts."""

    run_id: str
    features: str
    clips: int
    """Clips that were judged, each by models that never learnt it."""
    accuracy: float
    """Share of these whose label is predicted: what the models are worth as judges."""
    ci95: tuple[float, float]
    """Wilson's 95 % interval of it."""
    disagreeing: int
    """Clips whose prediction is not their label."""
    not_covered: dict[str, int]
    """Clips by split that were not judged, because no model of the run left them out of its training."""
    rows: tuple[Mislabel, ...]
    """The most suspicious of those that disagree, highest score first."""
    page: str
    """The page."""
    csv: str
    """The same rows as a table."""
    report: str
    """Address of the page among the run's artifacts, which has no players."""
    calibration: Calibration = field(repr=False)
    """Fitted on the judged clips."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: the fields, and of the calibration its temperature."""
        facts = asdict(self)
        return facts | {"temperature": facts.pop("calibration")["temperature"]}

    def __str__(self) -> str:
        """Return what was judged, the first ``PRINTED`` rows as a table, and where the page is."""
        low, high = self.ci95
        lines = [
            f"{self.clips} clips judged by models that never learnt them, right of {self.accuracy:.1%} "
            f"[{low:.1%}, {high:.1%}]; {self.disagreeing} predictions are not the label",
            *([f"not judged: {self.left_out}"] if self.not_covered else []),
        ]
        shown = self.rows[:PRINTED]
        cells = [("", "score", "label", "", "predicted", "", "path")]
        cells += [
            (
                str(number),
                f"{row.score:.2f}",
                row.label,
                f"{row.label_probability:.0%}",
                row.predicted,
                f"{row.predicted_probability:.0%}",
                row.path,
            )
            for number, row in enumerate(shown, 1)
        ]
        wide = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines += ["  ".join(f"{cell:<{n}}" for cell, n in zip(line, wide, strict=True)).rstrip() for line in cells]
        if len(self.rows) > len(shown):
            lines.append(f"and {len(self.rows) - len(shown)} more on the page")
        return "\n".join([*lines, f"page: {self.page}", f"table: {self.csv}"])

    @property
    def left_out(self) -> str:
        """The clips that were not judged, in words."""
        return ", ".join(f"{count} {split} clips" for split, count in self.not_covered.items())


def mislabels(
    run: RunLike,
    features: str | Path | FeatureSet,
    *,
    root: str | Path | None = None,
    out: str | Path = Path("mislabels.html"),
    most: int = 50,
) -> Mislabels:
    """List the clips whose given genre and confident prediction disagree, the most suspicious first.

    The predictions are those of a cross-validation, each by models that never learnt the clip; they are made if the run
    does not keep them. A page shows the spectrogram of each clip, and plays it; it is kept with the run too. A clip on
    the list is to be listened to, not to be deleted: where the models are often wrong, so is the list.

    Parameters
    ----------
    run : str or object with ``run_id``
        A parent run of folds, or of folds and seeds.
    features
        The feature set that it was trained on.
    root
        The collection that the set was made from, on a disk: its folder, or its CSV file. Without it the page has no
        players.
    out
        The page, a ``.html``; the table is beside it, a ``.csv``. Both are replaced.
    most
        Rows, at most.

    Returns
    -------
    Mislabels
        The rows; ``print`` shows the first of them.

    Raises
    ------
    InputError
        There is no such run, it has no folds, the feature set is another, ``root`` is not on a disk, or ``out`` cannot
        be written.
    RunError
        The MLflow store does not answer.

    Examples
    --------
    >>> found = mislabels(run, "features", root="fma")  # doctest: +SKIP
    >>> found.rows[0].path, found.rows[0].label, found.rows[0].predicted  # doctest: +SKIP
    ('fma_small/000/000002.mp3', 'Folk', 'Hip-Hop')
    """
    if most < 1:
        raise InputError(f"`most={most}`: must be at least 1")
    page, music = _checked(Path(out)), _on_disk(root)
    feature_set = FeatureSet.open(features)
    found = Run.find(existing_store(feature_set.folder), run_id_of(run))
    models = read_models(found)
    if not all(model.card.config.fold for model in models):
        raise InputError(
            f"run {found.id}: has no folds, so its models have learnt the clips that they are to judge; "
            "give the run of «mgc train --folds 5»"
        )
    check(models, feature_set, found.id, "validation")
    kept = kept_validation(models)
    if kept:
        say(f"mislabels: run {found.id} keeps its predictions of its folds: nothing is predicted again")
    predictions = kept or predict_validation(models, feature_set)[1]
    labels_N, genres = predictions.labels_N, predictions.source.genres
    calibration = Calibration.fit(labels_N, predictions.probabilities_NG)
    calibrated_NG = calibration(predictions.probabilities_NG)
    score_N, predicted_N = suspicion(labels_N, calibrated_NG), calibrated_NG.argmax(1)
    order = np.argsort(-score_N, kind="stable")
    chosen = order[(predicted_N != labels_N)[order]][:most]
    rows = tuple(
        Mislabel(
            int(predictions.track_ids_N[clip]),
            predictions.paths[clip],
            genres[labels_N[clip]],
            genres[predicted_N[clip]],
            float(calibrated_NG[clip, labels_N[clip]]),
            float(calibrated_NG[clip, predicted_N[clip]]),
            float(score_N[clip]),
        )
        for clip in chosen
    )
    splits = {entry.split: None for entry in feature_set.manifest.shards if entry.rows}
    clips = clips_of.load(feature_set, *splits, lazily=True)
    judged, right = set(predictions.track_ids_N.tolist()), int(predictions.right.sum())
    result = Mislabels(
        found.id,
        str(feature_set.folder),
        len(labels_N),
        right / len(labels_N),
        wilson(right, len(labels_N)),
        int((predicted_N != labels_N).sum()),
        dict(Counter(clips.splits_N[[track not in judged for track in clips.track_ids_N.tolist()]].tolist())),
        rows,
        str(page),
        str(page.with_suffix(".csv")),
        found.artifact_uri("mislabels.html"),
        calibration,
    )
    _write(found, result, models, _pictures(rows, clips, feature_set), page, music)
    return result


def suspicion(labels_N: NDArray[np.int64], probabilities_NG: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Score how suspicious labels are: confident learning's self-confidence, the other way round.

    Self-confidence is the probability of the given genre, of models that did not learn the clip.

    Parameters
    ----------
    labels_N : np.ndarray [shape=(N,)]
        Given genres.
    probabilities_NG : np.ndarray [shape=(N, G)]
        Predicted probabilities.

    Returns
    -------
    np.ndarray [shape=(N,)]
        0 to 1, the higher the more suspicious.
    """
    score_N: NDArray[np.float64] = 1 - probabilities_NG[np.arange(len(labels_N)), labels_N].astype(np.float64)
    return score_N


def _checked(out: Path) -> Path:
    """Where the page goes, absolute."""
    path = out.expanduser().absolute()
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"`out={out}`: must end in .html")
    if os.path.isdir(path) or not os.path.isdir(path.parent):
        raise InputError(f"`out={out}`: {'is a folder' if os.path.isdir(path) else 'its folder is not there'}")
    return path


def _on_disk(root: str | Path | None) -> Path | None:
    """The folder that the clips' paths are relative to; None without a root."""
    if root is None:
        return None
    if URI.match(str(root)) and not str(root).startswith("file:"):  # known before a bucket is asked for
        named = without_password(str(root))
        raise InputError(f"`root={named}`: a page plays files of a disk only; give a copy there, or leave it out")
    folder = Folder.at(root)
    kind = folder.kind()
    if kind is None or folder.path is None:
        raise InputError(f"`root={folder}`: no such file or folder; give the collection that the set was made from")
    return folder.path if kind == "folder" else folder.path.parent


def _pictures(rows: Sequence[Mislabel], clips: Clips, feature_set: FeatureSet) -> list[str]:
    """The spectrogram of each row, as an image."""
    place = {track_id: row for row, track_id in enumerate(clips.track_ids_N.tolist())}
    mel_NFT = clips.mel_NFT[np.array([place[row.track_id] for row in rows], np.int64)] if rows else ()
    return [html.data_uri(figures.spectrogram(mel_FT, feature_set.manifest.spec), "webp") for mel_FT in mel_NFT]


def _write(
    run: Run, result: Mislabels, models: Sequence[TrainedModel], pictures: list[str], page: Path, music: Path | None
) -> None:
    """Write table and page, and log both; the logged page lies elsewhere, so it has no players."""
    record, table = run.record(), _table(result.rows)
    facts = {
        **html.heading(record),
        "kind": "suspicious labels",
        "result": result,
        "settings": settings_of(models),
        "settings_note": "Marked: what differs from the preset plain_cnn.",
        "origin": html.origin(run, record, {"features": result.features}),
    }

    def rendered(players: list[str | None], why: str) -> str:
        shown = list(zip(result.rows, pictures, players, strict=True))
        return html.render(TEMPLATE, {**facts, "rows": shown, "no_players": why})

    players = [_player(music, row.path, page.parent) for row in result.rows]
    missing = sum(player is None for player in players)
    why = f"{missing} files are not below {music}: they have no player." if missing else ""
    why = why if music else "There are no players: give the collection on this disk with --root."
    try:
        write_text(rendered(players, why), page)
        write_text(table, page.with_suffix(".csv"))
    except OSError as error:
        raise InputError(f"`out={page}`: cannot be written ({error.strerror or error})") from None
    run.text(rendered([None] * len(players), f"There are no players: they are on {page}."), "mislabels.html")
    run.text(table, "mislabels.csv")


def _player(music: Path | None, path: str, folder: Path) -> str | None:
    """The address of a clip, relative to the page's folder; None where it is not there."""
    if music is None or not (music / path).is_file():
        return None
    return quote(Path(os.path.relpath(music / path, folder)).as_posix())


def _table(rows: Sequence[Mislabel]) -> str:
    """The rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Mislabel.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()
