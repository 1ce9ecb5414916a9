"""Fetch one of FMA's archives and unpack it: ``ROOT/fma_small/000/000002.mp3``, ``ROOT/fma_metadata/tracks.csv``.

The archives never change and their sha1 is published, so the sha1 alone decides: what has come stays in a hidden part
file, and any later call goes on behind its last byte, from any server, with no ETag to remember. Nothing is unpacked
before the sha1 is right, and the folder gets its name last: where it is, it is whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import lzma
import os
import re
import shutil
import socket
import stat
import time
import zlib
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException, InvalidURL
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener
from zipfile import BadZipFile, ZipFile, ZipInfo

from mgc.core.errors import InputError, RunError
from mgc.core.progress import Progress, say

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
RECEIVE_BYTES = 1 << 20
UNPACK_BYTES = 16 << 10
"""Unpacked at once. FMA's archives are bzip2, of which 16 KiB can become hundreds of MiB in memory."""
MB, GIB = 10**6, 2**30


@dataclass(frozen=True)
class Archive:
    """What is known of an archive before it comes."""

    sha1: str
    """Of the whole zip file, in hexadecimal."""
    members: int
    """More files and folders than this are refused."""
    bytes: int
    """More bytes than this are refused, packed or unpacked."""


ARCHIVES = {
    "fma_small": Archive("ade154f733639d52e35e32f5593efe5be76c6d70", members=10_000, bytes=10 * GIB),
    "fma_medium": Archive("c67b69ea232021025fca9231fc1c7c1a063ab50b", members=30_000, bytes=30 * GIB),
    "fma_large": Archive("497109f4dd721066b5ce5e5f250ec604dc78939e", members=120_000, bytes=120 * GIB),
    "fma_metadata": Archive("f0df49ffe5f2a6008d7dc83c6915b31835dfe733", members=100, bytes=4 * GIB),
}
"""From FMA's README: 8,000, 25,000 and 106,574 clips in 7.2, 22 and 93 GiB, and 0.3 GiB of metadata."""


def download(name: str, root: str | Path, *, base_url: str = BASE_URL) -> dict[str, Any]:
    """Bring about the folder ``root/name``, going on where an earlier call was broken off or killed.

    Parameters
    ----------
    name
        A key of ``ARCHIVES``.
    root
        The folder that gets the folder ``name``; made if need be.
    base_url
        Where ``name.zip`` is, http or https.

    Returns
    -------
    dict
        Fit for JSON: ``name``, ``path`` of the folder, ``bytes`` downloaded by this call, ``files`` in the folder,
        ``already`` (it was there, and nothing was done), ``seconds`` taken.

    Raises
    ------
    InputError
        An unknown name; a root that cannot be written to, or into which another call is downloading the same; a URL
        that is none or has no such archive.
    RunError
        The connection keeps breaking or the disk is full (what was downloaded is kept), the sha1 is wrong (it is
        removed), or the archive is damaged or unsafe.
    """
    start = time.monotonic()
    if name not in ARCHIVES:
        raise InputError(f"name={name!r} is none of FMA's archives; choose from {', '.join(ARCHIVES)}")
    target, part_file = Path(root, name), Path(root, f".{name}.zip.part")
    try:
        already = _is_there(target)
        received = 0 if already else _bring(ARCHIVES[name], f"{_checked(base_url)}/{name}.zip", part_file, target)
    except OSError as error:
        reason = f"{error.filename or target}: {error.strerror or error}"
        raise RunError(f"{reason}; mend this, and the same command goes on with what was downloaded") from error
    if already:
        say(f"{target}: there already")
        with suppress(OSError):
            part_file.unlink()  # there if a call was killed in its very last step
    return {
        "name": name,
        "path": str(target),
        "bytes": received,
        "files": sum(len(files) for _, _, files in os.walk(target)),
        "already": already,
        "seconds": time.monotonic() - start,
    }


def _is_there(target: Path) -> bool:
    if os.path.lexists(target) and not target.is_dir():
        raise InputError(f"{target}: is there and is no folder; move it away or choose another root")
    return target.is_dir() and any(target.iterdir())


def _checked(base_url: str) -> str:
    with suppress(ValueError):
        parts = urlsplit(base_url)
        if parts.scheme in SCHEMES and parts.hostname:
            return base_url.rstrip("/")
    raise InputError(f"base_url={base_url!r} is no http or https URL; give one like {BASE_URL}")


def _bring(archive: Archive, url: str, part_file: Path, target: Path) -> int:
    """Download, check, unpack, tidy up; return how many bytes came."""
    with _held(part_file) as part:
        if not _is_there(target):  # else the call that held the part file until now has made it
            with _becoming(target) as folder:
                _fetch(archive, url, part)
                _unpack(archive, part, target.name, folder)
        part.clear()
        return part.received


@contextmanager
def _held(path: Path) -> Iterator[_Part]:
    """Open the part file for this call alone; an empty one does not stay, nor an empty root that was made for it."""
    root, made = path.parent, not path.parent.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)
    except OSError as error:
        raise InputError(f"{root}: no folder to write to: {error.strerror}; choose another root") from error
    with file:
        if not _lock(file):
            raise InputError(f"{path}: another call is downloading this archive; wait for it")
        try:
            yield _Part(file, root)
        finally:
            if not os.fstat(file.fileno()).st_size:
                path.unlink(missing_ok=True)
            if made:
                with suppress(OSError):
                    root.rmdir()


def _lock(file: FileIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(file.fileno()).st_nlink > 0  # 0: whoever held it has removed it since we opened it


@contextmanager
def _becoming(target: Path) -> Iterator[Path]:
    """Give an empty folder that becomes ``target`` when the block ends well; nothing else stays, before or after."""
    folder = target.with_name(f".{target.name}.unpacking")
    shutil.rmtree(folder, ignore_errors=True)  # a killed call's
    folder.mkdir()
    try:
        yield folder
        folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Part:
    """As much of the archive as has come: an open file, its size in bytes, its sha1; ``received`` by this call."""

    def __init__(self, file: FileIO, root: Path) -> None:
        self.file, self.root, self.received = file, root, 0
        if there := os.fstat(file.fileno()).st_size:
            say(f"checking the {_mb(there):,} MB that came before …")
        self._measure()

    def _measure(self) -> None:
        self.file.seek(0)
        self._hash = hashlib.file_digest(self.file, "sha1")
        self.size = self.file.tell()

    @property
    def sha1(self) -> str:
        return self._hash.hexdigest()

    def append(self, chunk: bytes) -> None:
        rest = memoryview(chunk)
        while rest:
            rest = rest[self.file.write(rest) :]
        self._hash.update(chunk)
        self.size += len(chunk)
        self.received += len(chunk)

    def clear(self) -> None:
        self.file.truncate(0)
        self._measure()

    def demand_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.root).free
        if needed > free:
            lacking = f"{_mb(needed):,} MB are needed and {free // MB:,} MB are free"
            raise RunError(f"{self.root}: {lacking}; make room, and the same command goes on")


def _fetch(archive: Archive, url: str, part: _Part) -> None:
    """Bring what is missing of the part; its sha1 is the archive's when this returns."""
    furthest, failures, whole = part.size, 0, part.sha1 == archive.sha1
    while not whole:
        try:
            _receive(archive, url, part)
            whole = True
        except ConnectionError as error:
            failures = 1 if part.size > furthest else failures + 1
            furthest = max(furthest, part.size)
            if failures > RETRIES:
                raise RunError(f"{url}: {error}; the same command goes on from {part.size:,} bytes") from error
            say(f"{url}: {error}; trying again from {part.size:,} bytes …")
            time.sleep(PAUSE_SECONDS * 2 ** (failures - 1))
    found = part.sha1
    if found != archive.sha1:
        part.clear()
        raise RunError(
            f"{url}: sha1 {found} where {archive.sha1} was expected; it was removed: try again from the start"
        )


def _receive(archive: Archive, url: str, part: _Part) -> None:
    """Ask for what is missing and append it, for as long as the connection holds."""
    with _request(url, part) as response:
        start, total = _span(url, response)
        if total > archive.bytes:
            raise InputError(f"{url}: {total:,} bytes are too many for this archive; give another base URL")
        if start != part.size:
            part.clear()
            if start:
                raise ConnectionError("the server sent another range than the one asked for")
        part.demand_room(2 * total - part.size)  # the archive stays until it is unpacked, to hardly less than its size
        progress, before = Progress(f"download {url.rpartition('/')[2]}", _mb(total - part.size), "MB"), part.size
        while part.size < total:
            try:
                chunk = response.read1(RECEIVE_BYTES)
            except (OSError, HTTPException) as error:
                raise ConnectionError(f"the connection broke: {error}") from error
            if not chunk:
                raise ConnectionError("the connection was closed")
            part.append(chunk)
            _show(progress, part.size - before)


def _request(url: str, part: _Part) -> HTTPResponse:
    headers = {"Range": f"bytes={part.size}-"} if part.size else {}
    advice = "see that it names the archive, or give another base URL"
    try:
        request = Request(url, headers=headers)  # noqa: S310 -- its scheme was checked
        response: HTTPResponse = build_opener(_StaysOnTheWeb).open(request, timeout=TIMEOUT_SECONDS)
        return response
    except HTTPError as error:
        error.close()
        if error.code == 416:  # the server has no byte behind ours
            part.clear()
        elif error.code < 500 and error.code not in (408, 429):
            raise InputError(f"{url}: {error.code} {error.reason}; {advice}") from error
        raise ConnectionError(f"{error.code} {error.reason}") from error
    except (ValueError, InvalidURL) as error:
        raise InputError(f"{url!r}: {error}; {advice}") from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, socket.gaierror) and not part.received:
            raise InputError(f"{url}: unknown host: {reason.strerror}; {advice}") from error
        raise ConnectionError(str(reason)) from error


class _StaysOnTheWeb(HTTPRedirectHandler):
    """urllib itself refuses redirects to ``file:`` and the like, but follows them to ``ftp:``."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if urlsplit(newurl).scheme not in SCHEMES:
            raise HTTPError(newurl, code, f"{msg} to {newurl}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _span(url: str, response: HTTPResponse) -> tuple[int, int]:
    """Where in the archive the response begins, and how long the archive is; -1 where it begins is not said."""
    if response.status == 206:
        said = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        return (int(said[1]), int(said[2])) if said else (-1, 0)
    length = response.headers.get("Content-Length", "")
    if not length.isdecimal():
        raise InputError(f"{url}: the server does not say how long it is; give another base URL")
    return 0, int(length)


def _unpack(archive: Archive, part: _Part, name: str, folder: Path) -> None:
    """Unpack the archive, without its one top-level folder, into ``folder``."""
    try:
        with ZipFile(part.file) as zipped:
            members = _safe_members(archive, name, zipped.infolist())
            total, done = sum(member.file_size for member in members), 0
            part.demand_room(total)
            progress = Progress(f"unpack {name}", _mb(total), "MB")
            for member in members:
                path = folder / member.filename.removeprefix(f"{name}/")
                if member.is_dir():
                    path.mkdir(parents=True, exist_ok=True)
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                with zipped.open(member) as packed, path.open("xb") as file:
                    while chunk := packed.read(UNPACK_BYTES):  # zipfile ends at the declared size, which is bounded
                        file.write(chunk)
                        done += len(chunk)
                        _show(progress, done)
                    if file.tell() < member.file_size:
                        raise BadZipFile(f"{member.filename} is shorter than it declares")
    except (OSError, BadZipFile, EOFError, RuntimeError, ValueError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno:  # the disk's, while bzip2's has no number
            raise
        damage = f"the sha1 is right and the archive is damaged: {type(error).__name__}: {error}"
        raise RunError(f"{part.file.name}: {damage}; remove this file and try again") from error


def _safe_members(archive: Archive, name: str, members: list[ZipInfo]) -> list[ZipInfo]:
    """The members, all of which are plain files and folders below ``name``, within the bounds, each there once."""
    total, seen = sum(member.file_size for member in members), set()
    if len(members) > archive.members or total > archive.bytes:
        held, most = f"{len(members):,} members of {total:,} bytes", f"{archive.members:,} of {archive.bytes:,}"
        raise RunError(f"{name}.zip holds {held} where at most {most} are expected; nothing was unpacked")
    for member in members:
        path = member.orig_filename.removesuffix("/")
        faults = {
            f"is not below {name}/": not member.orig_filename.startswith(f"{name}/"),
            "has an unsafe name": not {"", ".", ".."}.isdisjoint(path.split("/")) or not set("\\:\0").isdisjoint(path),
            "is there twice": path in seen,
            "is encrypted": member.flag_bits & 1,
            "is neither file nor folder": stat.S_IFMT(member.external_attr >> 16)
            not in (0, stat.S_IFDIR if member.is_dir() else stat.S_IFREG),
        }
        for fault, found in faults.items():
            if found:
                raise RunError(f"{name}.zip: {member.orig_filename!r} {fault}; nothing was unpacked")
        seen.add(path)
    return members


def _mb(count: int) -> int:
    return -(-count // MB)


def _show(progress: Progress, count: int) -> None:
    """Let the progress, in MB, stand at ``count`` bytes; a begun MB counts."""
    if _mb(count) > progress.done:
        progress.advance(_mb(count) - progress.done)
