"""A folder on a disk or in an object store (``s3://bucket/prefix``): the one place that knows the difference.

A file is written whole or not at all: on a disk under a temporary name that is then renamed, in an object store by an
upload whose completion is atomic. A process killed with SIGKILL leaves on a disk at most a hidden ``.NAME.….tmp``,
which ``remove_temporary_files`` removes, in a store an upload that nobody sees and that the bucket's lifecycle rule
(AbortIncompleteMultipartUpload) removes. Object stores are reached through pyarrow's filesystems: credentials and
endpoint come from the environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL`` …) or from the URI's query
(``?endpoint_override=…&scheme=http``).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
import stat
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from mgc.core.atomic_files import is_temporary, replacing
from mgc.core.errors import InputError, StoreError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pyarrow as pa
    import pyarrow.fs as pafs

URI = re.compile(r"[a-z][a-z0-9+.-]+://")
LOCK = ".lock"
_PASSWORD = re.compile(r"(?<=://)(?:[^/@:]*(?::[^@]*)?@)+")


@dataclass(frozen=True)
class Folder:
    """A folder by its absolute path or its URI; small and picklable, so that a task can be handed it."""

    uri: str

    @classmethod
    def at(cls, place: str | Path | Folder) -> Folder:
        """The folder at a path (made absolute) or a URI; it need not be there.

        Raises
        ------
        InputError
            The URI's scheme is unknown, or the URI names no bucket.
        """
        if isinstance(place, Folder):
            return place
        text = str(place)
        if text.startswith("file:///"):
            return cls(os.path.abspath(unquote(urlsplit(text).path)))
        if not URI.match(text):
            return cls(os.path.abspath(Path(place).expanduser()))
        folder = cls(text)
        try:
            bucket = folder._key("").partition("/")[0]
        except (OSError, ValueError) as error:
            why = _PASSWORD.sub("", first_line(error))
            raise InputError(
                f"{folder}: not understood ({why}); give a path or a URI such as s3://bucket/folder"
            ) from None
        if not bucket:
            raise InputError(f"{folder}: names no bucket; give s3://bucket/folder")
        return folder

    def __str__(self) -> str:
        """The path or URI, without a password that is in it."""
        return _PASSWORD.sub("", self.uri)

    def __repr__(self) -> str:
        """As ``str``: tracebacks and logs show it."""
        return f"Folder({str(self)!r})"

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self._key("").rpartition("/")[2]

    @property
    def path(self) -> Path | None:
        """The path on this machine's disks, or None in an object store."""
        return None if URI.match(self.uri) else Path(self.uri)

    def __truediv__(self, name: str) -> Folder:
        """A folder inside."""
        if self.path:
            return Folder(str(self.path / name))
        base, question, query = self.uri.partition("?")
        return Folder(f"{base.rstrip('/')}/{quote(name)}{question}{query}")

    @property
    def parent(self) -> tuple[Folder, str]:
        """The folder above, and this one's name in it: how a file that a user names is opened."""
        if self.path:
            return Folder(str(self.path.parent)), self.path.name
        base, question, query = self.uri.partition("?")
        above, _, name = base.rstrip("/").rpartition("/")
        return Folder(f"{above}{question}{query}"), unquote(name)

    # Looking

    def kind(self, name: str = "") -> str | None:
        """``"file"``, ``"folder"`` or None for what is at ``name``.

        Raises
        ------
        InputError
            The object store does not answer or refuses.
        """
        if self.path:
            path = self.path / name
            return "file" if path.is_file() else "folder" if path.is_dir() else None
        try:
            found = self._store[0].get_file_info(self._key(name)).type.name
        except OSError as error:
            raise InputError(f"{self}: cannot be looked at ({first_line(error)})") from None
        return {"File": "file", "Directory": "folder"}.get(found)

    def files(self, name: str = "") -> list[str]:
        """Names of the files directly in the folder ``name``, sorted; none where there is no such folder."""
        if self.path:
            try:
                return sorted(entry.name for entry in os.scandir(self.path / name) if entry.is_file())
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted(path for path in self._below(name) if "/" not in path)

    def walk(self) -> Iterator[str]:
        """Relative POSIX paths of all files below, sorted by folder, but for what is hidden.

        Links to folders are followed, each folder once, so that a loop of links ends.
        """
        if self.path is None:
            yield from (path for path in sorted(self._below("")) if not re.search(r"(^|/)\.", path))
            return
        seen: set[tuple[int, int]] = set()
        for folder, folders, files in os.walk(self.path, followlinks=True):
            status = os.stat(folder)
            here = (status.st_dev, status.st_ino)
            folders[:] = [] if here in seen else sorted(name for name in folders if not name.startswith("."))
            if here in seen:
                continue
            seen.add(here)
            for name in sorted(files):
                if not name.startswith("."):
                    yield (Path(folder) / name).relative_to(self.path).as_posix()

    def sizes(self, names: Iterable[str]) -> list[int]:
        """Bytes of each file, -1 where there is none; an object store is asked once a top-level folder."""
        if self.path:
            base = self.path
            return [_size(os.path.join(base, name)) for name in names]
        names = list(names)
        sizes: dict[str, int] = {}
        for top in sorted({name.partition("/")[0] if "/" in name else "" for name in names}):
            sizes |= {f"{top}/{path}" if top else path: size for path, size in self._below(top).items()}
        return [sizes.get(name, -1) for name in names]

    # Reading

    def open(self, name: str) -> FileIO:
        """Open a file as a real, unbuffered file of this machine, to be read.

        A file of an object store is copied to an anonymous temporary file, which is gone with the process.

        Raises
        ------
        OSError
            It is not there (FileNotFoundError), may not be read, or is not a regular file; StoreError if the object
            store did not answer.
        """
        if self.path is None:
            copy = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (the caller closes it)
            try:
                with self._asking(), self._store[0].open_input_stream(self._key(name)) as stream:
                    shutil.copyfileobj(stream, copy, 1 << 24)  # a request each
                copy.seek(0)
            except BaseException:
                copy.close()
                raise
            return copy
        handle = os.open(self.path / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not block
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise OSError(errno.EINVAL, "not a regular file")
        return FileIO(handle)

    def read(self, name: str) -> bytes:
        """All bytes of a file. Raises as ``open``."""
        if self.path:
            return (self.path / name).read_bytes()
        # One request for all: a stream would ask for 256 kB at a time, and of a file that is replaced get a mixture.
        with self._asking(), self._store[0].open_input_file(self._key(name)) as file:
            data: bytes = file.read()
            return data

    def random_access(self, name: str) -> pa.NativeFile:
        """Open a file for pyarrow, which then reads the parts that it needs. Raises as ``open``."""
        with self._asking():
            return self._store[0].open_input_file(self._key(name))

    # Writing

    def make(self, name: str = "") -> None:
        """Make a folder, and those above it, if it is not there; an object store needs its bucket only.

        Raises
        ------
        OSError
            It cannot be made, or there is no such bucket.
        """
        if self.path:
            (self.path / name).mkdir(parents=True, exist_ok=True)
            return
        bucket = self._key("").partition("/")[0]
        if self._store[0].get_file_info(bucket).type.name == "NotFound":
            raise OSError(f"no bucket named {bucket}")

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write a file whole or not at all; it replaces what is there.

        Raises
        ------
        OSError
            It cannot be written; nothing of it is left.
        """
        if self.path:
            with replacing(self.path / name) as temporary:
                temporary.write_bytes(data)
            return
        # One write of all bytes: a stream that is closed early would leave a part of the file as the file.
        with self._asking(), self._store[0].open_output_stream(self._key(name)) as stream:
            stream.write(data)

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        with suppress(FileNotFoundError):
            if self.path:
                (self.path / name).unlink()
            else:
                self._store[0].delete_file(self._key(name))

    def remove_temporary_files(self, name: str = "") -> None:
        """Remove the temporary files that killed processes have left in the folder ``name``."""
        if self.path:
            for file in self.files(name):
                if is_temporary(file):
                    self.remove(f"{name}/{file}" if name else file)

    @contextmanager
    def claim(self, flag: str, way_out: str = "or choose another folder") -> Iterator[None]:
        """Hold the folder, which must be there, against a second writer.

        The lock is the kernel's (``flock``), so that it ends with its process, however that dies. Object stores have
        no locks: there two writers of one plan write the same bytes twice.

        Raises
        ------
        InputError
            Another process holds it.
        """
        if self.path is None:
            yield
            return
        while True:
            file = (self.path / LOCK).open("a+")
            with file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    file.seek(0)
                    who = file.read().strip() or "another process"
                    raise InputError(f"{flag} {self}: {who} is writing it; wait until it is done, {way_out}") from None
                if not _same_file(file, self.path / LOCK):
                    continue  # its holder has just ended and removed it: the next round makes a new one
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                file.flush()
                try:
                    yield
                finally:
                    self.remove(LOCK)
                return

    # The object store

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Tell what the store says of a file, that it is not there, from all else that can go wrong with it."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            if self.path:
                raise
            raise StoreError(f"{self}: {first_line(error)}") from None

    @cached_property
    def _store(self) -> tuple[pafs.FileSystem, str]:
        import pyarrow.fs as pafs  # here, because help must not wait for pyarrow

        if self.path:
            return pafs.LocalFileSystem(), self.uri
        return pafs.FileSystem.from_uri(self.uri)  # type: ignore[no-any-return]

    def __getstate__(self) -> dict[str, str]:
        """Pickle the URI alone."""
        return {"uri": self.uri}

    def _key(self, name: str) -> str:
        base = self._store[1].rstrip("/")
        return f"{base}/{name}" if name else base

    def _below(self, name: str) -> dict[str, int]:
        """Sizes by relative path of all objects below a folder."""
        import pyarrow.fs as pafs

        base = self._key(name)
        selector = pafs.FileSelector(base, recursive=True, allow_not_found=True)
        try:
            found = self._store[0].get_file_info(selector)
        except OSError as error:
            raise InputError(f"{self}: cannot be listed ({first_line(error)})") from None
        return {entry.path[len(base) + 1 :]: entry.size for entry in found if entry.type == pafs.FileType.File}


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return -1


def _same_file(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
