"""What all pages share: one look, pictures inside them, what is said of their origin, and where they are kept."""

from __future__ import annotations

import base64
import io
from datetime import UTC, datetime
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

import jinja2

from mgc.core.atomic_files import write_text
from mgc.core.errors import InputError
from mgc.tracking.provenance import COMMIT_TAG, DIRTY_TAG, VERSION_TAG
from mgc.tracking.runs import STEP_TAG

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.figure import Figure

    from mgc.tracking.runs import Record, Run

PAGE = "report.html"
"""The artifact."""


def keep(run: Run, page: str, out: Path | None) -> dict[str, Any]:
    """Keep a page with its run, in place of an earlier one, and write it to a file too.

    Returns
    -------
    dict
        ``run_id``, ``report`` (where the run keeps the page), ``out`` (the file, or None).

    Raises
    ------
    InputError
        The file cannot be written.
    """
    run.text(page, PAGE)
    if out is not None:
        try:
            write_text(page, out)
        except OSError as error:
            raise InputError(f"--out {out}: cannot be written ({error.strerror or error})") from None
    return {"run_id": run.id, "report": run.artifact_uri(PAGE), "out": out and str(out)}


def render(template: str, facts: Mapping[str, Any]) -> str:
    """A page from its template; all that is put in is text."""
    loader = jinja2.FunctionLoader(lambda name: (resources.files("mgc.pages") / "templates" / name).read_text())
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = "{:.1%}".format
    environment.filters["points"] = points
    return environment.get_template(template).render(facts)


def points(difference: float) -> str:
    """A difference of accuracies in points: ``+2.1``."""
    return f"{round(100 * difference, 1) + 0.0:+.1f}".replace("-", "\N{MINUS SIGN}")


def heading(record: Record) -> dict[str, str]:
    """Name, step and start of a run."""
    return {"name": record.name, "step": record.tags.get(STEP_TAG, "run"), "started": _started(record)}


def origin(run: Run, record: Record, data: Mapping[str, str]) -> dict[str, str]:
    """The run, what is known of its data, its code and the libraries."""
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
    """A picture as an address that holds it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=180)
    mime = {"svg": "svg+xml", "webp": "webp"}[kind]
    return f"data:image/{mime};base64,{base64.b64encode(buffer.getvalue()).decode()}"
