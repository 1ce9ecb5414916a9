"""stub."""

from pathlib import Path

from mgc.core.storage import Folder
from mgc.evaluation import run_page
from mgc.sweep import sweep_page
from mgc.tracking.runs import STEP_TAG, Run, run_id_of
from mgc.tracking.store import existing_store


def report(run, *, out=None):
    found = Run.find(existing_store(Folder.at(Path.cwd())), run_id_of(run))
    return (sweep_page if found.record().tags.get(STEP_TAG) == "tune" else run_page).make(found, out)
