"""One self-contained page about a sweep: what it found, what is left of it with fresh seeds, and what bought it.

All figures are of validation clips, from what MLflow holds of the sweep; the test split plays no part.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from mgc.config import overlay
from mgc.evaluation.metrics import over_seeds
from mgc.pages import html as page
from mgc.pages.html import points
from mgc.sweep import figures as pictures
from mgc.sweep.figures import shown
from mgc.sweep.importance import importances
from mgc.sweep.results import read
from mgc.sweep.space import nested
from mgc.tracking.runs import FEATURES_TAG, FINGERPRINT_TAG, flatten

if TYPE_CHECKING:
    from pathlib import Path

    from mgc.sweep.results import Again, Bought, SweepView, Trial
    from mgc.tracking.runs import Run

TEMPLATE = "sweep.html.j2"
PICTURE = "pictures/sweep.png"
"""The artifact: the sweep in one picture."""


def make(run: Run, out: Path | None = None) -> page.Page:
    """Make the page of a sweep, by its parent run, and keep it as ``report.html``, and the sweep in one picture.

    Parameters
    ----------
    out
        Write the page to this file too.

    Returns
    -------
    dict
        ``run_id``, ``report`` (where the run keeps the page), ``out`` (the file, or None).

    Raises
    ------
    InputError
        The run is no sweep, does not say what it searched, or ``out`` cannot be written.
    """
    return publish(read(run), out)


def publish(view: SweepView, out: Path | None = None) -> page.Page:
    """As ``make``, of a sweep that is read already."""
    kept = page.keep(view.run, page.render(TEMPLATE, _facts(view)), out, "validation")
    if _reached(view):
        view.run.figure(pictures.overview(view), PICTURE)
    return kept


def sentence(bought: Bought) -> str:
    """What a field bought, and whether that can be told from chance."""
    gap, what = bought.gap, bought.bought
    low, high = gap.ci95
    closed, size = ("closed", (-gap.mean, -high, -low)) if gap.mean <= 0 else ("opened", (gap.mean, low, high))
    text = (
        f"{bought.field} {shown(bought.value)} instead of {shown(bought.off)} bought {points(what.mean)} points of "
        f"validation accuracy [{points(what.ci95[0])}, {points(what.ci95[1])}], and {closed} the gap to the training "
        f"accuracy by {_plain(size[0])} points [{_plain(size[1])}, {_plain(size[2])}]."
    )
    match what.chance, gap.chance:
        case True, True:
            return f"{text} Neither can be told from chance."
        case True, False:
            return f"{text} The accuracy bought cannot be told from chance."
        case False, True:
            return f"{text} The change of the gap cannot be told from chance."
    return text


def _plain(size: float) -> str:
    """Points without a plus sign."""
    return points(size).removeprefix("+")


def _reached(view: SweepView) -> bool:
    """Whether any trial came to an accuracy, so that there is something to draw."""
    return any(trial.val_accuracy is not None for trial in view.trials)


# What is on the page


def _facts(view: SweepView) -> dict[str, Any]:
    params, tags, matters = view.record.params, view.record.tags, importances(view)
    chosen = (view.winner and view.winner.trial) or view.best
    clips = len(view.winner.models[0].right_N) if view.winner and view.winner.models else None
    facts: dict[str, Any] = {
        **page.heading(view.record),
        "kind": f"{len(view.trials)} trials, {view.search}",
        "view": view,
        "clips": clips,
        "winner": view.winner and _winner(view.winner),
        "notes": _notes(view, clips),
        "again": [_again(each) for each in view.again],
        "matters": matters,
        "sentences": [sentence(each) for each in view.bought],
        "rows": [_row(trial, view) for trial in view.trials],
        "searched": [_searched(each.field, str(each), view) for each in view.space.dimensions],
        "settings": _settings(view, chosen),
        "settings_note": f"Of {chosen.name}; marked: what the sweep searched." if chosen else "What the trials change.",
        "origin": page.origin(
            view.run,
            view.record,
            {
                "trained on": f"{tags.get(FEATURES_TAG, '?')}, fingerprint {tags.get(FINGERPRINT_TAG, '?')}",
                "settings": ", ".join(f"{name} {params[name]}" for name in _SETTINGS if name in params),
            },
        ),
    }
    drawn = []
    if _reached(view):
        drawn += [("curves", pictures.curves(view)), ("dimensions", pictures.dimensions(view))]
        drawn += [("parallel", pictures.parallel(view))]
    if matters.shares:
        drawn += [("importances", pictures.importance_bars(matters.shares))]
    if view.again:
        drawn += [("fresh_seeds", pictures.fresh_seeds(view.again))]
    if view.bought:
        drawn += [("worth", pictures.worth(view.bought))]
    return facts | {"pictures": {name: page.data_uri(figure) for name, figure in drawn}}


_SETTINGS = ("search", "trials", "epochs", "top", "seeds")


def _winner(winner: Again) -> dict[str, Any]:
    """The winner's mean, with its interval over seeds and clips where its models keep what they said."""
    estimate = over_seeds(np.array([m.right_N for m in winner.models], np.int64)) if winner.models else None
    return {**_again(winner), "ci95": estimate and estimate.ci95}


def _again(again: Again) -> dict[str, Any]:
    return {
        "name": again.of,
        "run_id": again.run_id,
        "first": _known(again.first),
        "mean": again.val_accuracy,
        "sd": _known(again.sd),
        "train": _known(again.train_accuracy),
        "shrinkage": _known(again.shrinkage),
        "models": len(again.models),
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _notes(view: SweepView, clips: int | None) -> list[str]:
    """What one must know to read the claim."""
    notes = []
    outcomes = Counter(trial.outcome for trial in view.trials)
    if view.record.status != "FINISHED" or outcomes["running"]:
        notes.append(f"This sweep is not finished ({view.record.status.lower()}): the page has what there is so far.")
    if view.best:
        text = f"The best of {len(view.kept)} trials is partly the luckiest: its figure in the search flatters."
        if not view.again:
            text += " None was trained again with fresh seeds, so by how much is not known."
        elif view.winner:
            text += " The winner has the best mean over fresh seeds, which flatters a little too."
        notes.append(text)
    shrunk = [each.shrinkage for each in view.again if not math.isnan(each.shrinkage)]
    if shrunk:
        mean = f"{_plain(sum(shrunk) / len(shrunk))} points{' on average' if len(shrunk) > 1 else ''}"
        notes.append(f"With fresh seeds the search's figure shrank by {mean} ({len(shrunk)} trained again).")
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
