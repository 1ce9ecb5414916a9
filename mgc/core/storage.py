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

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from io import FileIO

    import pyarrow as pa
    import pyarrow.fs as pafs

URI = re.compile(r"[a-z][a-z0-9+.-]+://")
_PASSWORD = re.compile(r"(?<=://)(?:[^/@:]*(?::[^@]*)?@)+")


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
            bucket = folder._key("").partition("/")[0]
        except (OSError, ValueError) as error:
            why = _PASSWORD.sub("", first_line(error))
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
        if self.path:
            return disk.kind(self.path / name)
        with self._asking():
            found = self._store[0].get_file_info(self._key(name)).type.name
        return {"File": "file", "Directory": "folder"}.get(found)

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
        if self.path:
            return disk.files(self.path / name)
        return sorted(path for path in self._below(name) if "/" not in path)

    def folders(self) -> list[str]:
        """Names of the folders directly in this one, sorted; empty where there is no such folder.

        Raises
        ------
        StoreError, RunError, InputError
            As ``kind``.
        """
        if self.path:
            return disk.folders(self.path)
        import pyarrow.fs as pafs

        with self._asking():
            found = self._store[0].get_file_info(pafs.FileSelector(self._key(""), allow_not_found=True))
        return sorted(entry.base_name for entry in found if entry.type == pafs.FileType.Directory)

    def walk(self) -> Iterator[str]:
        """Relative POSIX paths of all files below that are not hidden, nor in a hidden folder; sorted by folder.

        Links to folders are followed, each folder once, so that a loop of links ends.

        Raises
        ------
        StoreError, RunError, InputError
            As ``kind``, of this folder or one below.
        """
        if self.path:
            yield from disk.walk(self.path)
        else:
            yield from (path for path in sorted(self._below("")) if not re.search(r"(^|/)\.", path))

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
        if self.path:
            base = self.path
            return [disk.size(os.path.join(base, name)) for name in names]
        names = list(names)
        sizes: dict[str, int] = {}
        for top in sorted({name.partition("/")[0] if "/" in name else "" for name in names}):
            sizes |= {f"{top}/{path}" if top else path: size for path, size in self._below(top).items()}
        return [sizes.get(name, -1) for name in names]

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
        if self.path:
            return disk.open_regular(self.path / name)
        copy = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (the caller closes it)
        try:
            with self._asking(), self._store[0].open_input_stream(self._key(name)) as stream:
                shutil.copyfileobj(stream, copy, 1 << 24)  # a request each
            copy.seek(0)
        except BaseException:
            copy.close()
            raise
        return copy

    def read(self, name: str) -> bytes:
        """All bytes of a file; raises as ``open``."""
        if self.path:
            return (self.path / name).read_bytes()
        # One request for all: a stream would ask for 256 kB at a time, and of a file that is replaced get a mixture.
        with self._asking(), self._store[0].open_input_file(self._key(name)) as file:
            data: bytes = file.read()
            return data

    def random_access(self, name: str) -> pa.NativeFile:
        """Open a file for pyarrow, which then reads only the parts that it needs; raises as ``open``."""
        with self._asking():
            return self._store[0].open_input_file(self._key(name))

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
        return self._store

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
            return
        bucket = self._key("").partition("/")[0]
        with self._asking():
            found = self._store[0].get_file_info(bucket).type.name
        if found == "NotFound":
            raise InputError(f"{self}: there is no bucket named {bucket}; make it or choose another")

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
            return
        # One write of all bytes: a stream that is closed early would leave a part of the file as the file.
        with self._asking(), self._store[0].open_output_stream(self._key(name)) as stream:
            stream.write(data)

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
        with suppress(FileNotFoundError):
            if self.path:
                (self.path / name).unlink()
            else:
                with self._asking():
                    self._store[0].delete_file(self._key(name))

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
            with suppress(FileNotFoundError), self._asking():
                self._store[0].delete_dir(self._key(name))

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

    # The object store

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn all errors of an object store into StoreError, but for FileNotFoundError; a disk's stay OSError."""
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
        with self._asking():
            found = self._store[0].get_file_info(pafs.FileSelector(base, recursive=True, allow_not_found=True))
        return {entry.path[len(base) + 1 :]: entry.size for entry in found if entry.type == pafs.FileType.File}
