"""``mgc report`` makes the page that a run's step asks for."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import sweeps
from helpers.pages import Page
from helpers.runs import trained

from mgc.core.errors import InputError
from mgc.sweep.report import report


def text_of(page):
    return Page(Path(page.report.removeprefix("file://")).read_text()).text


def test_a_sweep_has_a_sweeps_page_and_a_training_a_trainings(features, working_directory):
    sweep = sweeps.full("the sweep").run
    page = report(sweep.id)
    assert (page.run_id, page.split, page.out) == (sweep.id, "validation", None)
    assert "Search space" in text_of(page)
    training = trained(features, name="the training")
    page = report(SimpleNamespace(run_id=training.id))
    assert page.run_id == training.id
    assert "Search space" not in text_of(page)
    assert "the training" in text_of(page)


def test_a_run_that_is_not_there_is_named(working_directory):
    sweeps.sweep()
    with pytest.raises(InputError, match=r"run nothing: .* has no such run"):
        report("nothing", out=Path("page.html"))
    assert not Path("page.html").exists()
