"""The folder of a feature set while one run writes it."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from mgc.core.errors import InputError
from mgc.features.layout import SHARDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mgc.core.storage import Folder


@contextmanager
def claimed(target: Folder) -> Iterator[None]:
    """Make the set's folder and lock it, for the ``with`` block; folders made here that are empty in the end go.

    Parameters
    ----------
    target
        The feature set's folder.

    Raises
    ------
    InputError
        It cannot be written, or another run is writing it.
    """
    made = [path for path in (target.path, *target.path.parents) if not os.path.exists(path)] if target.path else []
    try:
        try:
            target.make_writable()
        except OSError as error:
            raise InputError(f"`out={target}`: cannot be written ({error.strerror or error})") from None
        with target.claim("`out`"):
            for name in ("", SHARDS):
                target.remove_temporary_files(name)
            yield
    finally:
        for path in made:
            with suppress(OSError):  # not empty
                path.rmdir()
