"""A folder on a disk or in an object store (``s3://bucket/prefix``); no other module tells the two apart.

A file is written whole or not at all: on a disk under a temporary name that is then renamed, in an object store by an
upload whose completion is atomic. A process killed with SIGKILL leaves on a disk at most a temporary file
(``remove_temporary_files``), in a store an incomplete upload, which is not listed and which the bucket's lifecycle rule
(AbortIncompleteMultipartUpload) removes. Object stores are reached through pyarrow's filesystems: credentials and
endpoint come from the environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL`` …) or from the URI's query
(``?endpoint_override=…&scheme=http``).

Errors: what looks for files raises ``StoreError`` or, of a disk, what ``path_error`` makes of it. What reads or writes
one file raises ``OSError`` of a disk, ``FileNotFoundError`` where there is no such file, and ``StoreError`` for all
else that an object store can answer.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from mgc.core import disk
from mgc.core.atomic_files import is_temporary, replacing
from mgc.core.disk import LOCK
from mgc.core.errors import InputError, StoreError, first_line
from mgc.core.lease import leased
from mgc.core.object_store import ObjectStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from io import FileIO

    import pyarrow as pa
    import pyarrow.fs as pafs

URI = re.compile(r"[a-z][a-z0-9+.-]+://")
_PASSWORD = re.compile(r"(?<=://)(?:[^/@:]*(?::[^@]*)?@)+")


def without_password(text: str) -> str:
    """A URI, or a text with URIs in it, as messages show it: without names and passwords before an ``@``."""
    return _PASSWORD.sub("", text)


@dataclass(frozen=True)
class Folder:
    """A folder by its absolute path or its URI; it pickles as this string alone, so that tasks take it."""

    uri: str
    """The absolute path or the URI."""

    @classmethod
    def at(cls, place: str | Path | Folder) -> Folder:
        """The folder at a path (made absolute) or a URI; it need not be there.

        Parameters
        ----------
        place
            A path, a URI of a scheme that pyarrow knows (``s3://``, ``gs://``, ``file:///``), or a ``Folder``, which is
            returned.

        Raises
        ------
        InputError
            The URI is not understood, or names no bucket.
        StoreError
            The object store does not answer: S3 is asked for the bucket's region if neither URI nor environment has it.
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
            bucket = folder._objects.key("").partition("/")[0]
        except (OSError, ValueError) as error:
            why = without_password(first_line(error))
            if isinstance(error, OSError):
                raise StoreError(f"{folder}: cannot be reached ({why})") from None
            raise InputError(
                f"{folder}: not understood ({why}); give a path or a URI such as s3://bucket/folder"
            ) from None
        if not bucket:
            raise InputError(f"{folder}: names no bucket; give s3://bucket/folder")
        return folder

    def __str__(self) -> str:
        """The path or URI, without a password that is in it."""
        return without_password(self.uri)

    def __repr__(self) -> str:
        """As ``str``: tracebacks and logs show it."""
        return f"Folder({str(self)!r})"

    def __fspath__(self) -> str:
        """The path, on a disk, so that ``open``, ``Path`` and libraries take the folder; a TypeError elsewhere."""
        if self.path:
            return self.uri
        raise TypeError(f"{self} is in an object store and has no path on this machine")

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.name if self.path else self._objects.key("").rpartition("/")[2]

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
        """The folder above and this one's name in it, which is how to open a file of which only the path is known."""
        if self.path:
            return Folder(str(self.path.parent)), self.path.name
        base, question, query = self.uri.partition("?")
        above, _, name = base.rstrip("/").rpartition("/")
        return Folder(f"{above}{question}{query}"), unquote(name)

    # Looking for files

    def kind(self, name: str = "") -> str | None:
        """What is at ``name``: ``"file"``, ``"folder"`` or None.

        Parameters
        ----------
        name
            Relative path; the folder itself by default.

        Raises
        ------
        StoreError, RunError
            The object store, or the disk, does not answer.
        InputError
            The path may not be looked at.
        """
        return disk.kind(self.path / name) if self.path else self._objects.kind(name)

    def files(self, name: str = "") -> list[str]:
        """Names of the files directly in the folder ``name``, sorted; empty where there is no such folder.

        Parameters
        ----------
        name
            Relative path; the folder itself by default.

        Raises
        ------
        StoreError, RunError, InputError
            As ``kind``.
        """
        return disk.files(self.path / name) if self.path else self._objects.files(name)

    def folders(self) -> list[str]:
        """Names of the folders directly in this one, sorted; empty where there is no such folder.

        Raises
        ------
        StoreError, RunError, InputError
            As ``kind``.
        """
        return disk.folders(self.path) if self.path else self._objects.folders()

    def walk(self) -> Iterator[str]:
        """Relative POSIX paths of all files below that are not hidden, nor in a hidden folder; sorted by folder.

        Links to folders are followed, each folder once, so that a loop of links ends.

        Raises
        ------
        StoreError, RunError, InputError
            As ``kind``, of this folder or one below.
        """
        yield from disk.walk(self.path) if self.path else self._objects.walk()

    def sizes(self, names: Iterable[str]) -> list[int]:
        """Size of each file in bytes, -1 where there is none or it may not be looked at.

        Parameters
        ----------
        names
            Relative paths. An object store is asked once for each top-level folder of them, not for each file.

        Raises
        ------
        StoreError, RunError
            The object store, or the disk, does not answer.
        """
        base = self.path
        return [disk.size(os.path.join(base, name)) for name in names] if base else self._objects.sizes(names)

    def modified(self, names: Iterable[str]) -> list[float]:
        """When each file was last written, in Unix seconds; 0 where there is none or it may not be looked at.

        Parameters
        ----------
        names
            Relative paths; an object store is asked as by ``sizes``.

        Raises
        ------
        StoreError
            The object store does not answer.
        """
        base = self.path
        return [disk.modified(os.path.join(base, name)) for name in names] if base else self._objects.modified(names)

    # Reading

    def open(self, name: str) -> FileIO:
        """Open a file for reading as an unbuffered file of this machine, with a file descriptor.

        A file of an object store is first copied to an anonymous temporary file, which ends with the process.

        Parameters
        ----------
        name
            Relative path.

        Raises
        ------
        OSError
            There is no such file (FileNotFoundError), it may not be read, or is not a regular file.
        StoreError
            The object store does not answer or refuses.
        """
        return disk.open_regular(self.path / name) if self.path else self._objects.open(name)

    def read(self, name: str) -> bytes:
        """All bytes of a file; raises as ``open``."""
        return (self.path / name).read_bytes() if self.path else self._objects.read(name)

    def random_access(self, name: str) -> pa.NativeFile:
        """Open a file for pyarrow, which then reads only the parts that it needs; raises as ``open``."""
        if self.path:
            return self.filesystem[0].open_input_file(str(self.path / name))
        return self._objects.random_access(name)

    @contextmanager
    def on_this_machine(self, *names: str) -> Iterator[Path]:
        """Give a folder of this machine that has some files of this one, for readers that want a path.

        Parameters
        ----------
        *names
            The files, directly in this folder.

        Yields
        ------
        Path
            The folder itself on a disk; of an object store a temporary copy, which ends with the block.

        Raises
        ------
        OSError, StoreError
            As ``read``.
        """
        if self.path:
            yield self.path
            return
        with tempfile.TemporaryDirectory() as copy:
            for name in names:
                Path(copy, name).write_bytes(self.read(name))
            yield Path(copy)

    @property
    def filesystem(self) -> tuple[pafs.FileSystem, str]:
        """The filesystem of pyarrow and this folder's path in it, for libraries that write there themselves."""
        if self.path is None:
            return self._objects.filesystem
        import pyarrow.fs as pafs  # here, because help must not wait for pyarrow

        return pafs.LocalFileSystem(), self.uri

    # Writing

    def make(self, name: str = "") -> None:
        """Make a folder, and those above it, where it is not there; an object store needs its bucket only.

        Parameters
        ----------
        name
            Relative path; the folder itself by default.

        Raises
        ------
        OSError
            It cannot be made on the disk.
        InputError
            There is no such bucket.
        StoreError
            The object store does not answer or refuses.
        """
        if self.path:
            (self.path / name).mkdir(parents=True, exist_ok=True)
        else:
            self._objects.make()

    def make_writable(self, name: str = "") -> None:
        """Make a folder as ``make`` does, and see that it may be written.

        Parameters
        ----------
        name
            Relative path; the folder itself by default.

        Raises
        ------
        OSError
            It cannot be made, or written, on the disk.
        InputError, StoreError
            As ``make``.
        """
        self.make(name)
        if self.path and not os.access(self.path / name, os.W_OK):
            raise PermissionError(errno.EACCES, "no permission")

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write a file whole or not at all; it replaces what is there.

        Parameters
        ----------
        name
            Relative path, in a folder that is there (an object store has no folders to be made).
        data
            The whole content.

        Raises
        ------
        OSError
            The disk cannot take it; nothing of it is left.
        StoreError
            The object store did not take it; nothing of it is left.
        """
        if self.path:
            with replacing(self.path / name) as temporary:
                temporary.write_bytes(data)
        else:
            self._objects.write(name, data)

    def remove(self, name: str) -> None:
        """Remove a file if it is there.

        Parameters
        ----------
        name
            Relative path.

        Raises
        ------
        OSError, StoreError
            The disk, or the object store, refuses.
        """
        if self.path:
            (self.path / name).unlink(missing_ok=True)
        else:
            self._objects.remove(name)

    def remove_folder(self, name: str) -> None:
        """Remove a folder inside this one and all that is in it, if it is there.

        Parameters
        ----------
        name
            Relative path.

        Raises
        ------
        OSError, StoreError
            The disk, or the object store, refuses.
        """
        if self.path:
            with suppress(FileNotFoundError):
                shutil.rmtree(self.path / name)
        else:
            self._objects.remove_folder(name)

    def remove_temporary_files(self, name: str = "") -> None:
        """Remove the temporary files that killed processes have left directly in a folder.

        Parameters
        ----------
        name
            Relative path; the folder itself by default.
        """
        if self.path:
            for file in self.files(name):
                if is_temporary(file):
                    self.remove(f"{name}/{file}" if name else file)

    @contextmanager
    def claim(self, what: str, way_out: str = "or choose another folder", lock: str = LOCK) -> Iterator[None]:
        """Lock the folder, which must be there, against a second writer, for the ``with`` block.

        On a disk the lock ends with its process, however that ends; in an object store some seconds later (``lease``).

        Parameters
        ----------
        what
            Begins the message, before the folder's path: the parameter that names the folder, between backticks.
        way_out
            Ends the message, after «wait until it is done,».
        lock
            Name of the file that is the lock; another one locks something else in the folder.

        Raises
        ------
        InputError
            Another process holds the lock.
        """
        with ExitStack() as held:
            try:
                held.enter_context(disk.locked(self.path, lock) if self.path else leased(self, lock))
            except disk.LockedError as error:
                raise InputError(f"{what} {self}: {error} is writing it; wait until it is done, {way_out}") from None
            yield

    @cached_property
    def _objects(self) -> ObjectStore:
        return ObjectStore(self.uri, str(self))

    def __getstate__(self) -> dict[str, str]:
        """Pickle the URI alone."""
        return {"uri": self.uri}
