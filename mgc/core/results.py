"""The base of all results: frozen dataclasses that print for a person (``str``) and for JSON (``to_dict``)."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from mgc.core.errors import MgcError


class Result:
    """Base of the results of all steps, which are frozen dataclasses.

    ``str`` of a result is what the command prints for a person.
    """

    def to_dict(self: DataclassInstance) -> dict[str, Any]:
        """Return plain values that JSON holds: what the command prints with ``--json``."""
        return asdict(self)

    def problem(self) -> MgcError | None:
        """Return what is wrong although the work could be done; the command ends with its exit code."""
        return None
