"""Make the page of a run: of a sweep, or of a training.

mgc report RUN --out report.html
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mgc.core.storage import Folder
from mgc.evaluation import run_page
from mgc.sweep import results, sweep_page
from mgc.tracking.runs import STEP_TAG, Run, run_id_of
from mgc.tracking.store import existing_store

if TYPE_CHECKING:
    from mgc.pages.html import Page
    from mgc.tracking.runs import RunLike


def report(run: RunLike, *, out: Path | None = None) -> Page:
    """Make the page of a training, a trial, several seeds or folds, or a sweep, and log it as ``report.html``.

    Parameters
    ----------
    run : str or object with ``run_id``
        An MLflow run id, or a result of a step.
    out
        A file to write the page to as well.

    Returns
    -------
    Page
        Where the page is, and the split that it shows figures of.

    Raises
    ------
    InputError
        There is no such run, it has no model, or ``out`` cannot be written.
    """
    found = Run.find(existing_store(Folder.at(Path.cwd())), run_id_of(run))
    if found.record().tags.get(STEP_TAG) == "tune":
        return sweep_page.make(results.read(found), out)
    return run_page.make(found, out)
