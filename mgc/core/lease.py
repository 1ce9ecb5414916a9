"""The lock of a folder in an object store, which has none: a file that its holder renews as long as it lives.

No clocks are compared. Who finds the file looks whether it changes: then its holder is at work. If it stays as it is
for ``DEAD_SECONDS``, its holder was killed, and the lock is taken over. ``Folder.claim`` is how others come here.
"""

from __future__ import annotations

import threading
import time
import uuid
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from mgc.core.disk import LOCK, LockedError, this_process
from mgc.core.errors import StoreError
from mgc.core.progress import say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mgc.core.storage import Folder

RENEW_SECONDS = 4.0
DEAD_SECONDS = 20.0
"""Of a lock that is not renewed: when its holder counts as dead."""
SETTLE_SECONDS = 1.0
"""After which two who took a lock at the same moment see whose it is."""


@contextmanager
def leased(folder: Folder, lock: str = LOCK) -> Iterator[None]:
    """Hold the lock of a folder of an object store; ``LockedError`` where another process does.

    Parameters
    ----------
    folder
        The folder.
    lock
        Its file that is there during the block.
    """
    _wait_for_dead(folder, lock)
    mine = f"{this_process()}\n{uuid.uuid4().hex}\n"
    folder.write(lock, f"{mine}0".encode())
    time.sleep(SETTLE_SECONDS)
    if not (found := _read(folder, lock)).startswith(mine):
        raise LockedError(found.partition("\n")[0] or "another process")
    over = threading.Event()

    def renew() -> None:
        count = 0
        while not over.wait(RENEW_SECONDS):
            count += 1
            with suppress(StoreError, OSError):  # the next time
                folder.write(lock, f"{mine}{count}".encode())

    renewing = threading.Thread(target=renew, daemon=True)
    renewing.start()
    try:
        yield
    finally:
        over.set()
        renewing.join()
        with suppress(StoreError, OSError):
            folder.remove(lock)


def _wait_for_dead(folder: Folder, lock: str) -> None:
    """Return when nobody holds the lock; ``LockedError`` where its holder is seen alive."""
    first, began = _read(folder, lock), time.monotonic()
    if first:
        holder = first.partition("\n")[0]
        say(f"{folder}: was in use by {holder}; looking for {DEAD_SECONDS:g} s whether it still is …")
    while first and time.monotonic() - began < DEAD_SECONDS:
        time.sleep(RENEW_SECONDS / 4)
        found = _read(folder, lock)
        if not found:
            return
        if found != first:
            raise LockedError(found.partition("\n")[0])


def _read(folder: Folder, lock: str) -> str:
    try:
        return folder.read(lock).decode(errors="replace")
    except FileNotFoundError:
        return ""
