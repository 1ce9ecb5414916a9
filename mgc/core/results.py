"""What a step gives back: a frozen dataclass that prints as a person reads it, and as ``--json`` prints it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mgc.core.errors import MgcError


class Result:
    """Base of the results of all steps, which are frozen dataclasses.

    ``str`` of a result is what the command prints for a person.
    """

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON holds: what the command prints with ``--json``."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    def problem(self) -> MgcError | None:
        """Return what is wrong although the work could be done; the command ends with its exit code."""
        return None

    def __str__(self) -> str:
        """Show the values one a line, aligned, unless a result says it better."""
        values = self.to_dict()
        width = max(map(len, values))
        return "\n".join(f"{name:<{width}}  {_plain(value)}" for name, value in values.items())


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value) if isinstance(value, dict) else str(value)
