"""Keeping a decoder from writing where results belong: libsndfile prints what it finds in some files.

What C's ``printf`` has written may lie in its buffer until the process ends, behind the last line of a command.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def quiet() -> Iterator[None]:
    """Throw away what is written to standard output, by this process's descriptor 1, within the ``with`` block."""
    _libc().fflush(None)
    try:
        kept = os.dup(1)
    except OSError:  # it is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        _libc().fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


@cache
def _libc() -> Any:
    return ctypes.CDLL(None)
