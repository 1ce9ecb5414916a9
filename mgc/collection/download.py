"""Fetch one of FMA's archives and unpack it: ``ROOT/fma_small/000/000002.mp3``, ``ROOT/fma_metadata/tracks.csv``.

The archives never change and their sha1 is published, so the sha1 alone decides: what has come stays in a hidden part
file, and any later call goes on behind its last byte, from any server, with no ETag to remember. Nothing is unpacked
before the sha1 is right, and the folder gets its name last: where it is, it is whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import socket
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException, InvalidURL
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener
from zipfile import BadZipFile, ZipFile

from mgc.core.errors import InputError, RunError, first_line, path_error
from mgc.core.progress import Progress, say
from mgc.core.results import Result

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.client import HTTPMessage, HTTPResponse
    from io import FileIO

BASE_URL = "https://os.unil.cloud.switch.ch/fma/"
SCHEMES = ("http", "https")
TIMEOUT_SECONDS = 60.0
"""A server that is silent for so long counts as a broken connection."""
RETRIES = 4
"""So often in a row a broken connection is made anew without progress."""
PAUSE_SECONDS = 1.0
"""Before the first retry; each further pause is twice as long."""
MB = 10**6
ARCHIVES = {
    "fma_small": "ade154f733639d52e35e32f5593efe5be76c6d70",
    "fma_medium": "c67b69ea232021025fca9231fc1c7c1a063ab50b",
    "fma_large": "497109f4dd721066b5ce5e5f250ec604dc78939e",
    "fma_metadata": "f0df49ffe5f2a6008d7dc83c6915b31835dfe733",
}
"""The sha1 of each zip file, from FMA's README: 8,000, 25,000 and 106,574 clips in 7.2, 22 and 93 GiB, and metadata."""


@dataclass(frozen=True)
class Downloaded(Result):
    """What a download brought."""

    name: str
    """Name of the archive: ``"fma_small"``."""
    path: str
    """The folder with what was in it."""
    bytes: int
    """Bytes received by this call; 0 if all had come before."""
    files: int
    """Number of files in the folder."""
    already: bool
    """Whether the folder was there before the call, which then did nothing."""
    seconds: float
    """How long the call took."""


def download(name: str, root: str | Path, *, base_url: str = BASE_URL) -> Downloaded:
    """Download an archive of FMA, check its sha1, and unpack it to the folder ``root/name``.

    A download that was broken off or killed goes on where it stopped when the function is called again. If the folder
    is there and not empty, nothing is downloaded.

    Parameters
    ----------
    name
        The archive: ``"fma_small"``, ``"fma_medium"``, ``"fma_large"`` (clips) or ``"fma_metadata"`` (tables).
    root
        The folder in which to make the folder ``name``; made if it is not there. It needs room for the archive twice.
    base_url
        The http or https address below which the server has ``name.zip``.

    Returns
    -------
    Downloaded
        The path of the folder, how many files it holds and how many bytes were received.

    Raises
    ------
    InputError
        The name is unknown, ``root`` cannot be written to or another process is downloading the same archive into it,
        ``base_url`` is no such address, or there is no such archive.
    RunError
        The server cannot be reached, the connection keeps breaking or the disk is full (what was downloaded is kept);
        the sha1 is wrong (it is removed); or the archive cannot be unpacked.
    """
    start = time.monotonic()
    if name not in ARCHIVES:
        raise InputError(f"`name={name}`: is none of FMA's archives; choose from {', '.join(ARCHIVES)}")
    url, target, received = f"{_checked(base_url)}/{name}.zip", Path(root, name), 0
    part_file, unpacking = Path(root, f".{name}.zip.part"), Path(root, f".{name}.unpacking")
    try:
        if already := _is_there(target):
            shutil.rmtree(unpacking, ignore_errors=True)  # there if a call was killed in its last steps
            with suppress(OSError):
                part_file.unlink()
        else:
            with _held(part_file) as part:
                if not _is_there(target):  # else the call that held the part file until now has made it
                    _fetch(ARCHIVES[name], url, part)
                    _unpack(part, unpacking, target)
                part.clear()
                received = part.received
    except OSError as error:
        reason = f"{error.filename or target}: {error.strerror or error}"
        raise RunError(f"{reason}; once this is mended, run it again: it goes on with what was downloaded") from error
    files = sum(len(names) for _, _, names in os.walk(target))
    return Downloaded(name, str(target), received, files, already, time.monotonic() - start)


def _checked(base_url: str) -> str:
    with suppress(ValueError):
        parts = urlsplit(base_url)
        if parts.scheme in SCHEMES and parts.hostname:
            return base_url.rstrip("/")
    raise InputError(f"`base_url={base_url}`: is no http or https URL; give one like {BASE_URL}")


def _is_there(target: Path) -> bool:
    if os.path.lexists(target) and not target.is_dir():
        raise InputError(f"{target}: is there and is no folder; move it away or choose another `root`")
    return target.is_dir() and any(target.iterdir())


@contextmanager
def _held(path: Path) -> Iterator[_Part]:
    """Open the part file for this call alone; an empty one does not stay, nor an empty root that was made for it."""
    root, made, ours = path.parent, not path.parent.exists(), False
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)
    except OSError as error:
        raise path_error(f"`root={root}`: cannot be written to: {error.strerror}; choose another", error) from error
    with file:
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.fstat(file.fileno()).st_nlink > 0  # 0: whoever held it has removed it since we opened it
        if not ours:
            raise InputError(f"{path}: another process is downloading this archive; wait for it")
        try:
            yield _Part(file, root)
        finally:
            if not os.fstat(file.fileno()).st_size:
                path.unlink(missing_ok=True)
            if made:
                with suppress(OSError):
                    root.rmdir()


class _Part:
    """As much of the archive as has come: an open file, its size and hash; ``received`` are the bytes of this call."""

    def __init__(self, file: FileIO, root: Path) -> None:
        self.file, self.root, self.received = file, root, 0
        if there := os.fstat(file.fileno()).st_size:
            say(f"checking the {there:,} bytes that came before …")
        file.seek(0)
        self.hash, self.size = hashlib.file_digest(file, "sha1"), there

    def append(self, chunk: bytes) -> None:
        rest = memoryview(chunk)
        while rest:
            rest = rest[self.file.write(rest) :]
        self.hash.update(chunk)
        self.size += len(chunk)
        self.received += len(chunk)

    def clear(self) -> None:
        self.file.truncate(0)
        self.hash, self.size = hashlib.sha1(usedforsecurity=False), 0

    def demand_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.root).free
        if needed > free:
            raise RunError(
                f"`root={self.root}`: {needed:,} bytes are needed, {free:,} are free; make room, run it again"
            )


def _fetch(sha1: str, url: str, part: _Part) -> None:
    """Bring what is missing of the part; its sha1 is the given one when this returns."""
    furthest, failures = part.size, 0
    while part.hash.hexdigest() != sha1:
        try:
            _receive(url, part)
            break
        except ConnectionError as error:
            failures = 1 if part.size > furthest else failures + 1
            furthest = max(furthest, part.size)
            if failures > RETRIES:
                raise RunError(f"{url}: {error}; run it again: it goes on from {part.size:,} bytes") from error
            say(f"{url}: {error}; trying again from {part.size:,} bytes …")
            time.sleep(PAUSE_SECONDS * 2 ** (failures - 1))
    if (found := part.hash.hexdigest()) != sha1:
        part.clear()
        raise RunError(f"{url}: its sha1 is {found} and not {sha1}; what came was removed: run it again")


def _receive(url: str, part: _Part) -> None:
    """Ask for what is missing and append it, for as long as the connection holds."""
    with _request(url, part) as response:
        if response.status != 206:  # all of it comes: nothing had come before, or the server knows no ranges
            part.clear()
        if response.length is None:
            raise InputError(f"{url}: the server does not say how long it is; give another `base_url`")
        total = part.size + response.length
        part.demand_room(2 * total - part.size)  # the archive stays until it is unpacked, to hardly less than its size
        progress = Progress(f"download {url.rpartition('/')[2]}", total // MB, "MB")
        progress.resume(part.size // MB)
        while part.size < total:
            try:
                chunk = response.read1(1 << 20)
            except (OSError, HTTPException) as error:
                raise ConnectionError(f"the connection broke: {error}") from error
            if not chunk:
                raise ConnectionError("the connection was closed")
            part.append(chunk)
            _show(progress, part.size)


def _request(url: str, part: _Part) -> HTTPResponse:
    headers = {"Range": f"bytes={part.size}-"} if part.size else {}
    try:
        request = Request(url, headers=headers)  # noqa: S310 -- its scheme was checked
        response: HTTPResponse = build_opener(_StaysOnTheWeb).open(request, timeout=TIMEOUT_SECONDS)
        return response
    except HTTPError as error:
        error.close()
        if error.code == 416:  # the server has no byte behind ours
            part.clear()
        elif error.code < 500 and error.code not in (408, 429):
            raise InputError(f"{url}: {error.code} {error.reason}; check `base_url`") from error
        raise ConnectionError(f"{error.code} {error.reason}") from error
    except (ValueError, InvalidURL) as error:
        raise InputError(f"{url}: {error}; check `base_url`") from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, socket.gaierror) and reason.errno != socket.EAI_AGAIN:
            raise InputError(f"{url}: unknown host: {reason.strerror}; check `base_url`") from error
        raise ConnectionError(str(reason)) from error


class _StaysOnTheWeb(HTTPRedirectHandler):
    """urllib itself refuses redirects to ``file:`` and the like, but follows them to ``ftp:``."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if urlsplit(newurl).scheme not in SCHEMES:
            raise HTTPError(newurl, code, f"{msg} to {newurl}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _unpack(part: _Part, folder: Path, target: Path) -> None:
    """Unpack the archive, which is one folder of the target's name, into ``folder``, and move that to the target."""
    shutil.rmtree(folder, ignore_errors=True)  # a killed call's
    try:
        with ZipFile(part.file) as zipped:
            total, done = sum(member.file_size for member in zipped.infolist()), 0
            part.demand_room(total)
            progress = Progress(f"unpack {target.name}", total // MB, "MB")
            for member in zipped.infolist():
                zipped.extract(member, folder)
                done += member.file_size
                _show(progress, done)
        Path(folder, target.name).rename(target)
    except (BadZipFile, EOFError, RuntimeError) as error:  # RuntimeError: a Python without bzip2
        reason = f"its sha1 is right, but it cannot be unpacked: {first_line(error)}"
        raise RunError(f"{part.file.name}: {reason}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _show(progress: Progress, count: int) -> None:
    """Let the progress, which is in MB, stand at so many bytes."""
    if count // MB > progress.done:
        progress.advance(count // MB - progress.done)
