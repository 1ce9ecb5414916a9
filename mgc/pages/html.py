"""What all HTML pages share: templates, embedded plots, the heading and origin of a run, and where a page is kept."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

import jinja2

from mgc.core.atomic_files import write_text
from mgc.core.errors import InputError
from mgc.core.results import Result
from mgc.tracking.provenance import COMMIT_TAG, DIRTY_TAG, VERSION_TAG
from mgc.tracking.runs import STEP_TAG

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.figure import Figure

    from mgc.tracking.runs import Record, Run

PAGE = "report.html"
"""The artifact of a run that is its page."""


@dataclass(frozen=True)
class Page(Result):
    """A page that was made."""

    run_id: str
    """The run that it is about."""
    split: str | None
    """The split that it shows figures of; None where there are none."""
    report: str
    """Address of the page among the run's artifacts."""
    out: str | None
    """The file that the page was written to as well, if any."""

    def __str__(self) -> str:
        """Return a line for each field."""
        return "\n".join(f"{name:<6}  {value}" for name, value in self.to_dict().items())


def keep(run: Run, page: str, out: Path | None, split: str | None) -> Page:
    """Log a page with its run, in place of an earlier one, and write it to a file too.

    Parameters
    ----------
    run
        The run that the page is about.
    page
        The HTML text.
    out
        A file to write as well.
    split
        The split that the page shows figures of.

    Returns
    -------
    Page
        Where the page is.

    Raises
    ------
    InputError
        ``out`` cannot be written.
    """
    run.text(page, PAGE)
    if out is not None:
        try:
            write_text(page, out)
        except OSError as error:
            raise InputError(f"`out={out}`: cannot be written ({error.strerror or error})") from None
    return Page(run.id, split, run.artifact_uri(PAGE), str(out) if out else None)


def render(template: str, facts: Mapping[str, Any]) -> str:
    """Render a page.

    Parameters
    ----------
    template
        File name in ``mgc/pages/templates``.
    facts
        The template's variables; texts are escaped.

    Returns
    -------
    str
        The HTML text.
    """
    loader = jinja2.FunctionLoader(lambda name: (resources.files("mgc.pages") / "templates" / name).read_text())
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = "{:.1%}".format
    environment.filters["points"] = points
    return environment.get_template(template).render(facts)


def points(difference: float) -> str:
    """Format a difference of accuracies in percentage points: ``+2.1``."""
    return f"{round(100 * difference, 1) + 0.0:+.1f}".replace("-", "\N{MINUS SIGN}")


def heading(record: Record) -> dict[str, str]:
    """Return name, step and start of a run, which head its page."""
    return {"name": record.name, "step": record.tags.get(STEP_TAG, "run"), "started": _started(record)}


def origin(run: Run, record: Record, data: Mapping[str, str]) -> dict[str, str]:
    """Describe where the figures of a page come from.

    Parameters
    ----------
    run
        The run.
    record
        What the store has on it.
    data
        Facts about its data, by name.

    Returns
    -------
    dict
        Run, start, data, commit and versions of the libraries, by name.
    """
    tags = record.tags
    changed = " (changed since)" if tags.get(DIRTY_TAG) == "true" else ""
    versions = sorted(name for name in tags if name.startswith(VERSION_TAG))
    return {
        "run": run.id,
        "started": _started(record),
        **data,
        "commit": f"{tags[COMMIT_TAG]}{changed}" if COMMIT_TAG in tags else "not known",
        "versions": ", ".join(f"{name.removeprefix(VERSION_TAG)} {tags[name]}" for name in versions),
    }


def _started(record: Record) -> str:
    return f"{datetime.fromtimestamp(record.started, UTC):%Y-%m-%d %H:%M} UTC"


def data_uri(figure: Figure, kind: Literal["svg", "webp"] = "svg") -> str:
    """Encode a plot as a ``data:`` address.

    Parameters
    ----------
    figure
        The plot.
    kind
        ``svg``, or ``webp`` for what is big as an SVG.

    Returns
    -------
    str
        For the ``src`` of an ``img``.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=180)
    mime = {"svg": "svg+xml", "webp": "webp"}[kind]
    return f"data:image/{mime};base64,{base64.b64encode(buffer.getvalue()).decode()}"
