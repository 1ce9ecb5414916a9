"""Pages are kept with their run and written where asked; what is put in is text."""

import pytest

from mgc.core.errors import InputError
from mgc.pages.html import Page, keep, points, render
from mgc.tracking import store
from mgc.tracking.runs import Run


@pytest.fixture
def run(features):
    return Run.start(store.open_store(features.folder), "mgc", name="a page", step="train", config={})


def test_a_page_is_kept_with_the_run_and_written_where_asked(run, tmp_path):
    page = keep(run, "<p>one</p>", tmp_path / "page.html", "test")
    assert page == Page(run.id, "test", run.artifact_uri("report.html"), str(tmp_path / "page.html"))
    assert (tmp_path / "page.html").read_text() == "<p>one</p>"
    assert run.fetch("report.html", tmp_path / "there").read_text() == "<p>one</p>"
    keep(run, "<p>two</p>", None, None)
    assert run.fetch("report.html", tmp_path / "there").read_text() == "<p>two</p>"
    assert page.to_dict() == {"run_id": run.id, "split": "test", "report": page.report, "out": page.out}
    assert str(page).splitlines()[2] == f"report  {page.report}"


def test_a_file_that_cannot_be_written_is_named(run, tmp_path):
    out = tmp_path / "no" / "page.html"
    with pytest.raises(InputError, match=f"`out={out}`: cannot be written"):
        keep(run, "", out, None)


def test_texts_are_escaped():
    page = render("page.html.j2", {"name": "<script>", "settings": [], "origin": {"<b>": "&"}})
    assert "<title>&lt;script&gt;</title>" in page
    assert "<dt>&lt;b&gt;</dt><dd>&amp;</dd>" in page


@pytest.mark.parametrize(("difference", "text"), [(0.021, "+2.1"), (-0.021, "\N{MINUS SIGN}2.1"), (-0.0001, "+0.0")])
def test_differences_are_in_points(difference, text):
    assert points(difference) == text
