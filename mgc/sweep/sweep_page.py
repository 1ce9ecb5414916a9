"""The page of a sweep, one self-contained HTML file: trials, retraining with fresh seeds, ablations, importances.

All figures are of validation clips, from the sweep's MLflow runs; the test split plays no part.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from mgc.config import overlay
from mgc.evaluation.metrics import over_seeds
from mgc.pages import html
from mgc.pages.html import points
from mgc.sweep import figures
from mgc.sweep.figures import shown
from mgc.sweep.importance import importances
from mgc.sweep.space import nested
from mgc.tracking.runs import FEATURES_TAG, FINGERPRINT_TAG, flatten

if TYPE_CHECKING:
    from pathlib import Path

    from mgc.pages.html import Page
    from mgc.sweep.results import Effect, Retrained, SweepView, Trial

TEMPLATE = "sweep.html.j2"
PICTURE = "pictures/sweep.png"
"""The artifact that is the sweep in one plot."""


def make(view: SweepView, out: Path | None = None) -> Page:
    """Make the page of a sweep, and log it as ``report.html`` with the sweep's overview plot.

    Parameters
    ----------
    view
        The sweep, finished or not.
    out
        A file to write the page to as well.

    Returns
    -------
    Page
        Where the page is.

    Raises
    ------
    InputError
        ``out`` cannot be written.
    """
    kept = html.keep(view.run, html.render(TEMPLATE, _facts(view)), out, "validation")
    if _has_curves(view):
        view.run.figure(figures.overview(view), PICTURE)
    return kept


def sentence(effect: Effect) -> str:
    """Say what a field changes, and whether that is significant."""
    gap, accuracy = effect.gap, effect.accuracy
    low, high = gap.ci95
    closes, size = ("closes", (-gap.mean, -high, -low)) if gap.mean <= 0 else ("opens", (gap.mean, low, high))
    text = (
        f"{effect.field} {shown(effect.value)} instead of {shown(effect.off)} changes the validation accuracy by "
        f"{points(accuracy.mean)} points [{points(accuracy.ci95[0])}, {points(accuracy.ci95[1])}], and {closes} the "
        f"gap to the training accuracy by {_plain(size[0])} points [{_plain(size[1])}, {_plain(size[2])}]."
    )
    match accuracy.chance, gap.chance:
        case True, True:
            return f"{text} Neither can be told from chance."
        case True, False:
            return f"{text} The change of the accuracy cannot be told from chance."
        case False, True:
            return f"{text} The change of the gap cannot be told from chance."
    return text


def _plain(size: float) -> str:
    """Points without a plus sign."""
    return points(size).removeprefix("+")


def _has_curves(view: SweepView) -> bool:
    """Whether any trial has an accuracy to draw."""
    return any(trial.val_accuracy is not None for trial in view.trials)


# What is on the page


def _facts(view: SweepView) -> dict[str, Any]:
    params, tags, matters = view.record.params, view.record.tags, importances(view)
    chosen = (view.winner and view.winner.trial) or view.best
    clips = len(view.winner.models[0].right_N) if view.winner and view.winner.models else None
    facts: dict[str, Any] = {
        **html.heading(view.record),
        "kind": f"{len(view.trials)} trials, {view.search}",
        "view": view,
        "clips": clips,
        "winner": view.winner and _winner(view.winner),
        "notes": _notes(view, clips),
        "retrained": [_retrained(each) for each in view.retrained],
        "importances": matters,
        "sentences": [sentence(each) for each in view.effects],
        "rows": [_row(trial, view) for trial in view.trials],
        "searched": [_searched(each.field, str(each), view) for each in view.space.dimensions],
        "settings": _settings(view, chosen),
        "settings_note": f"Of {chosen.name}; marked: what the sweep searched." if chosen else "What the trials change.",
        "origin": html.origin(
            view.run,
            view.record,
            {
                "trained on": f"{tags.get(FEATURES_TAG, '?')}, fingerprint {tags.get(FINGERPRINT_TAG, '?')}",
                "settings": ", ".join(f"{name} {params[name]}" for name in _SETTINGS if name in params),
            },
        ),
    }
    drawn = []
    if _has_curves(view):
        drawn += [("curves", figures.curves(view)), ("dimensions", figures.dimensions(view))]
        drawn += [("parallel", figures.parallel(view))]
    if matters.shares:
        drawn += [("importances", figures.importance_bars(matters.shares))]
    if view.retrained:
        drawn += [("fresh_seeds", figures.fresh_seeds(view.retrained))]
    if view.effects:
        drawn += [("ablations", figures.ablations(view.effects))]
    return facts | {"pictures": {name: html.data_uri(figure) for name, figure in drawn}}


_SETTINGS = ("search", "trials", "epochs", "top", "seeds")


def _winner(winner: Retrained) -> dict[str, Any]:
    """The winner's mean, with its interval over seeds and clips where its models' predictions are there."""
    estimate = over_seeds(np.array([m.right_N for m in winner.models], np.int64)) if winner.models else None
    return {**_retrained(winner), "ci95": estimate and estimate.ci95}


def _retrained(retrained: Retrained) -> dict[str, Any]:
    return {
        "name": retrained.configuration,
        "run_id": retrained.run_id,
        "first": _known(retrained.first),
        "mean": retrained.val_accuracy,
        "sd": _known(retrained.sd),
        "train": _known(retrained.train_accuracy),
        "shrinkage": _known(retrained.shrinkage),
        "models": len(retrained.models),
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _notes(view: SweepView, clips: int | None) -> list[str]:
    """How to read the claim."""
    notes = []
    outcomes = Counter(trial.outcome for trial in view.trials)
    if view.record.status != "FINISHED" or outcomes["running"]:
        notes.append(f"This sweep is not finished ({view.record.status.lower()}): the page has what there is so far.")
    if view.best:
        text = f"The best of {len(view.kept)} trials is partly the luckiest: its accuracy in the search flatters."
        if not view.retrained:
            text += " None was retrained with fresh seeds, so by how much is not known."
        elif view.winner:
            text += " The winner has the best mean over fresh seeds, which flatters a little too."
        notes.append(text)
    shrunk = [each.shrinkage for each in view.retrained if not math.isnan(each.shrinkage)]
    if shrunk:
        mean = f"{_plain(sum(shrunk) / len(shrunk))} points{' on average' if len(shrunk) > 1 else ''}"
        notes.append(f"With fresh seeds the accuracy of the search shrank by {mean} ({len(shrunk)} retrained).")
    if view.space.base.keep == "best" and view.best:
        notes.append("Each model kept the epoch that was best on these same clips, which flatters as well.")
    if clips:
        notes.append(f"All figures are of the {clips} validation clips, of which one is {100 / clips:.2g} points.")
    notes.append("The test split played no part.")
    ended = ", ".join(f"{outcomes[name]} {name}" for name in ("kept", "pruned", "failed", "stopped") if outcomes[name])
    if len(outcomes) > 1 or not outcomes["kept"]:
        notes.append(f"Trials: {ended or 'none ended'}. The accuracy of one that was not kept is of fewer epochs.")
    return notes


def _row(trial: Trial, view: SweepView) -> dict[str, Any]:
    return {
        "trial": trial,
        "first": trial is view.best,
        "values": [
            shown(trial.values[each.field]) if each.field in trial.values else "–" for each in view.space.dimensions
        ],
        "epochs": trial.epochs[-1] if trial.epochs else 0,
    }


def _searched(field: str, words: str, view: SweepView) -> dict[str, str]:
    """A dimension, and what the base, the search's best and the winner have."""
    of = {"best": view.best, "winner": view.winner.trial if view.winner else None}
    has = {name: shown(trial.values[field]) if trial and field in trial.values else "–" for name, trial in of.items()}
    return {"field": field, "words": words, "base": shown(flatten(view.space.base.to_dict())[field]), **has}


def _settings(view: SweepView, chosen: Trial | None) -> list[dict[str, Any]]:
    """Every field of the chosen configuration, and what the base has of those that were searched."""
    values = chosen.values if chosen else {}
    base = flatten(view.space.base.to_dict())
    tree = flatten(overlay(view.space.base, nested(values)).to_dict())
    return [
        {"name": name, "value": shown(value), "note": f"base: {shown(base[name])}" if name in values else None}
        for name, value in tree.items()
    ]
