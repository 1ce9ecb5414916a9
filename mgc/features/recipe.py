"""The recipe of a feature set: all settings that its bytes depend on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from mgc.audio import decode as audio
from mgc.audio.logmel import LogMelSpec


@dataclass(frozen=True)
class Recipe:
    """All settings that the bytes of a feature set depend on."""

    spec: LogMelSpec = field(default_factory=LogMelSpec)
    min_seconds: float = 5.0
    """Seconds; clips with less audio are quarantined as ``too_short``."""
    keep_damaged: bool = False
    """Keep clips that decode to clearly less audio than their file's headers announce."""
    clips_per_shard: int = 64
    seed: int = 0
    """Seed of the shuffle that deals clips to shards."""
    decoder: str = audio.DECODER
    """Libraries that decode and resample, with their versions."""

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values."""
        return asdict(self) | {"spec": self.spec.to_dict()}

    def to_json(self) -> str:
        """Encode the recipe as one line of JSON; the same recipe gives the same line."""
        return json.dumps(self.to_dict(), sort_keys=True)
