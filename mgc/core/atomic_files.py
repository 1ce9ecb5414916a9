"""Writing a file whole or not at all: under a temporary name that is then renamed."""

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
    """A hidden name, new each time, to write a file under that will be called ``name``.

    Examples
    --------
    >>> temporary_name("manifest.json")  # doctest: +SKIP
    '.manifest.json.1b9d6bcd4a7e4f0c8a51d2f1c3e5a7b9.tmp'
    """
    return f".{name}.{uuid.uuid4().hex}.tmp"


def is_temporary(name: str) -> bool:
    """Whether a file name (without its folder) is one that ``temporary_name`` gives."""
    return _TEMPORARY.fullmatch(name) is not None


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a temporary path beside ``target`` to write to; rename it to ``target`` when the block ends without error.

    ``target`` is what it was before or what was written, never a part of it, after a power cut too: the file is on
    the disk before it gets its name, and the name before this returns (``fsync``). Only a SIGKILL leaves a temporary
    file behind (``is_temporary``), which no reader looks at.

    Parameters
    ----------
    target
        The file to write, in a folder that is there; it is replaced.

    Yields
    ------
    Path
        The temporary path.

    Raises
    ------
    OSError
        The file cannot be renamed; the temporary one is removed.
    """
    temporary = target.with_name(temporary_name(target.name))
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)
        with suppress(OSError):  # some network file systems have no such call for folders
            _sync(target.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


def _sync(path: Path) -> None:
    """Wait until the disk has a file, or a folder's names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(text: str, target: Path) -> None:
    """Write a text file, in UTF-8, whole or not at all.

    Parameters
    ----------
    text
        The whole content.
    target
        The file to write, in a folder that is there; it is replaced.

    Raises
    ------
    OSError
        The file cannot be written; nothing of it is left.
    """
    with replacing(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
