"""Files of this machine's disks: looked for, opened, locked. ``Folder`` is how the other modules come here."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import IO, TYPE_CHECKING

from mgc.core.errors import path_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mgc.core.errors import MgcError

LOCK = ".lock"
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})
"""Errors that say that there is no such file."""


class LockedError(Exception):
    """Another process holds the lock; the message names it."""


def kind(path: Path) -> str | None:
    """``"file"``, ``"folder"`` or None for what is at a path; links are followed."""
    try:
        mode = path.stat().st_mode
    except ValueError:  # a NUL in the name
        return None
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise _failed("looked at", path, error) from None
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else None


def files(path: Path) -> list[str]:
    """Names of the files directly in a folder, sorted; empty where there is no such folder."""
    return _entries(path, os.DirEntry.is_file)


def folders(path: Path) -> list[str]:
    """Names of the folders directly in a folder, sorted; empty where there is no such folder."""
    return _entries(path, os.DirEntry.is_dir)


def _entries(path: Path, wanted: Callable[[os.DirEntry[str]], bool]) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(path) if wanted(entry))
    except OSError as error:
        if error.errno in _ABSENT:
            return []
        raise _failed("listed", path, error) from None


def walk(path: Path) -> Iterator[str]:
    """Relative POSIX paths of all visible files below, sorted by folder; each folder once, links followed."""

    def fail(error: OSError) -> None:
        if error.errno not in _ABSENT:  # os.walk itself leaves out what it cannot list
            raise _failed("listed", error.filename, error) from None

    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(path, followlinks=True, onerror=fail):
        status = os.stat(folder)
        here = (status.st_dev, status.st_ino)
        folders[:] = [] if here in seen else sorted(name for name in folders if not name.startswith("."))
        if here in seen:
            continue
        seen.add(here)
        for name in sorted(names):
            if not name.startswith("."):
                yield (Path(folder) / name).relative_to(path).as_posix()


def size(path: str) -> int:
    """Bytes of a file, -1 where there is none or it may not be looked at."""
    try:
        return os.stat(path).st_size
    except ValueError:  # a NUL in the name
        return -1
    except OSError as error:
        if error.errno in _ABSENT or isinstance(error, PermissionError):
            return -1
        raise _failed("looked at", path, error) from None


def modified(path: str) -> float:
    """When a file was last written, in Unix seconds; 0 where there is none or it may not be looked at."""
    try:
        return os.stat(path).st_mtime
    except (OSError, ValueError):
        return 0.0


def open_regular(path: Path) -> FileIO:
    """Open a regular file for reading, unbuffered; OSError where it is not there or of another kind."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not block
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file")
    return FileIO(handle)


@contextmanager
def locked(folder: Path, lock: str = LOCK) -> Iterator[None]:
    """Hold the lock of a folder; ``LockedError`` where another process does.

    The lock is the kernel's (``flock``), so that it ends with its process, however that ends.

    Parameters
    ----------
    folder
        The folder, which is there.
    lock
        Name of the lock's file in it.
    """
    while True:
        file = (folder / lock).open("a+")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise LockedError(file.read().strip() or "another process") from None
            if not _same_file(file, folder / lock):
                continue  # its holder has just ended and removed it: the next round makes a new one
            file.truncate(0)
            file.write(f"{this_process()}\n")
            file.flush()
            try:
                yield
            finally:
                (folder / lock).unlink(missing_ok=True)
            return


def this_process() -> str:
    """What a lock says of its holder: the process and its machine."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def _same_file(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _failed(verb: str, path: str | Path, error: OSError) -> MgcError:
    return path_error(f"{path}: cannot be {verb} ({error.strerror})", error)
