"""Writing a file whole or not at all."""

from __future__ import annotations

import os
import re
import uuid
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")


def temporary_name(name: str) -> str:
    """Give a new hidden name for a file that will be renamed to ``name``: ``.NAME.….tmp``."""
    return f".{name}.{uuid.uuid4().hex}.tmp"


def is_temporary(name: str) -> bool:
    """Whether a file's name is one of ``temporary_name``: left by a killed process, or being written."""
    return _TEMPORARY.fullmatch(name) is not None


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a temporary path beside ``target`` to write to; rename it to ``target`` when the block ends well.

    Whatever happens, ``target`` is what it was or what was written, and nothing else stays but after a SIGKILL, whose
    leftover is hidden (``.NAME.….tmp``) and is never read.
    """
    temporary = target.with_name(temporary_name(target.name))
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(text: str, target: Path) -> None:
    """Write a text file whole or not at all."""
    with replacing(target) as temporary:
        temporary.write_text(text)
