"""Writing a file whole or not at all."""

from __future__ import annotations

import os
import uuid
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a temporary path beside ``target`` to write to; rename it to ``target`` when the block ends well.

    Whatever happens, ``target`` is what it was or what was written, and nothing else stays but after a SIGKILL, whose
    leftover is hidden (``.NAME.….tmp``) and is never read.
    """
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
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
