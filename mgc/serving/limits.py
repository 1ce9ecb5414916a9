"""What a server takes: of a file, and at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from mgc.core.errors import InputError


@dataclass(frozen=True)
class Limits:
    """What is refused beyond them says so: none of them is met by a wait without end."""

    max_mb: float = 100.0
    """Megabytes (of 10^6 bytes) of a file."""
    max_seconds: float = 1200.0
    """Seconds of audio in it."""
    decode_timeout: float = 60.0
    """Seconds that decoding it may take."""
    upload_timeout: float = 300.0
    """Seconds that sending it may take."""
    at_once: int = 8
    """Files in work or waiting."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if not 0 < value < math.inf:
                raise InputError(f"`{each.name}={value:g}`: must be above 0 and finite")

    @property
    def bytes(self) -> int:
        """``max_mb`` in bytes."""
        return round(self.max_mb * 1e6)
