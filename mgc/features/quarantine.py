"""The quarantine of a run: named for a person, as CSV, and checked against the share that may fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.csv as pacsv

from mgc.core.errors import RunError
from mgc.core.progress import say
from mgc.features.layout import QUARANTINE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mgc.core.storage import Folder

SHOWN = 20
"""Quarantined clips that are named at the end of a run; all are in ``quarantine.parquet``."""


def report(quarantine: pa.Table, target: Folder) -> None:
    """Name the first quarantined clips, each with its reason, on standard error.

    Parameters
    ----------
    quarantine
        Rows of ``layout.QUARANTINE_SCHEMA``.
    target
        The feature set's folder.
    """
    for row in quarantine.slice(0, SHOWN).to_pylist():
        say(f"  quarantined {row['path']}: {row['reason']} ({row['detail']})")
    if len(quarantine) > SHOWN:
        say(f"  … and {len(quarantine) - SHOWN} more, all in {target}/{QUARANTINE}")


def as_csv(quarantine: pa.Table) -> str:
    """Encode the quarantine as CSV, with a header line."""
    sink = pa.BufferOutputStream()
    pacsv.write_csv(quarantine, sink)
    return str(sink.getvalue().to_pybytes().decode())


def check_share(reasons: Mapping[str, int], clips: int, allowed: float, target: Folder) -> None:
    """Refuse a set of which too many clips are in quarantine.

    Parameters
    ----------
    reasons
        Quarantined clips by reason.
    clips
        All clips of the set.
    allowed
        The share of them that may be in quarantine, from 0 to 1.
    target
        The feature set's folder.

    Raises
    ------
    RunError
        More are.
    """
    failed = sum(reasons.values())
    if failed <= allowed * clips:
        return
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    raise RunError(
        f"{failed} of {clips} clips failed ({counts}), more than the share that `max_quarantined={allowed:g}` allows; "
        f"look at {target}/{QUARANTINE}, then repair the files and use `overwrite=True`, or run again and allow more"
    )
