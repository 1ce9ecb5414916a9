"""Files of an object store, through pyarrow's filesystems. ``Folder`` is how the other modules come here.

A file is put there by one request whose completion is atomic. All errors are ``StoreError``, but for
``FileNotFoundError``.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING

from mgc.core.errors import InputError, StoreError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from io import FileIO

    import pyarrow as pa
    import pyarrow.fs as pafs


class ObjectStore:
    """A folder of an object store; names are relative to it.

    Parameters
    ----------
    uri
        With all that is needed to reach it.
    shown
        The URI as messages name it, without a password.
    """

    def __init__(self, uri: str, shown: str) -> None:
        self.uri, self.shown = uri, shown

    def kind(self, name: str) -> str | None:
        """``"file"``, ``"folder"`` or None for what is at ``name``."""
        with self._asking():
            found = self.filesystem[0].get_file_info(self.key(name)).type.name
        return {"File": "file", "Directory": "folder"}.get(found)

    def files(self, name: str) -> list[str]:
        """Names of the files directly in a folder, sorted."""
        return sorted(path for path in self._below(name) if "/" not in path)

    def folders(self) -> list[str]:
        """Names of the folders directly in this one, sorted."""
        import pyarrow.fs as pafs

        with self._asking():
            found = self.filesystem[0].get_file_info(pafs.FileSelector(self.key(""), allow_not_found=True))
        return sorted(entry.base_name for entry in found if entry.type == pafs.FileType.Directory)

    def walk(self) -> Iterator[str]:
        """Relative paths of all files below that are not hidden, nor in a hidden folder."""
        yield from (path for path in sorted(self._below("")) if not re.search(r"(^|/)\.", path))

    def sizes(self, names: Iterable[str]) -> list[int]:
        """Size of each file, -1 where there is none; asked once for each top-level folder of them."""
        return [-1 if info is None else info.size for info in self._infos(names)]

    def modified(self, names: Iterable[str]) -> list[float]:
        """When each file was last written, in Unix seconds, 0 where there is none; asked for as sizes are."""
        return [0.0 if info is None else (info.mtime_ns or 0) / 1e9 for info in self._infos(names)]

    def _infos(self, names: Iterable[str]) -> list[pafs.FileInfo | None]:
        names = list(names)
        found: dict[str, pafs.FileInfo] = {}
        for top in sorted({name.partition("/")[0] if "/" in name else "" for name in names}):
            found |= {f"{top}/{path}" if top else path: info for path, info in self._below(top).items()}
        return [found.get(name) for name in names]

    def open(self, name: str) -> FileIO:
        """Copy a file to an anonymous temporary one, which ends with the process, and open that."""
        copy = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (the caller closes it)
        try:
            with self._asking(), self.filesystem[0].open_input_stream(self.key(name)) as stream:
                shutil.copyfileobj(stream, copy, 1 << 24)  # a request each
            copy.seek(0)
        except BaseException:
            copy.close()
            raise
        return copy

    def read(self, name: str) -> bytes:
        """All bytes of a file, by one request: a stream would get a mixture of one that is replaced meanwhile."""
        with self._asking(), self.filesystem[0].open_input_file(self.key(name)) as file:
            data: bytes = file.read()
            return data

    def random_access(self, name: str) -> pa.NativeFile:
        """Open a file for pyarrow, which then reads only the parts that it needs."""
        with self._asking():
            return self.filesystem[0].open_input_file(self.key(name))

    def make(self) -> None:
        """See that the bucket is there; folders need not be made."""
        bucket = self.key("").partition("/")[0]
        with self._asking():
            found = self.filesystem[0].get_file_info(bucket).type.name
        if found == "NotFound":
            raise InputError(f"{self.shown}: there is no bucket named {bucket}; make it or choose another")

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write a file in one piece: a stream that is closed early would leave a part of it as the file.

        Parameters
        ----------
        name
            Of the file; one that is there is replaced.
        data
            The whole content.
        """
        with self._asking(), self.filesystem[0].open_output_stream(self.key(name)) as stream:
            stream.write(data)

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        with suppress(FileNotFoundError), self._asking():
            self.filesystem[0].delete_file(self.key(name))

    def remove_folder(self, name: str) -> None:
        """Remove a folder and all in it if it is there."""
        with suppress(FileNotFoundError), self._asking():
            self.filesystem[0].delete_dir(self.key(name))

    @cached_property
    def filesystem(self) -> tuple[pafs.FileSystem, str]:
        """The filesystem of pyarrow, and this folder's path in it."""
        import pyarrow.fs as pafs  # here, because help must not wait for pyarrow

        return pafs.FileSystem.from_uri(self.uri)  # type: ignore[no-any-return]

    def key(self, name: str) -> str:
        """The path of a name: bucket and key."""
        base = self.filesystem[1].rstrip("/")
        return f"{base}/{name}" if name else base

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StoreError(f"{self.shown}: {first_line(error)}") from None

    def _below(self, name: str) -> dict[str, pafs.FileInfo]:
        """What is known of all objects below a folder, by relative path."""
        import pyarrow.fs as pafs

        base = self.key(name)
        with self._asking():
            found = self.filesystem[0].get_file_info(pafs.FileSelector(base, recursive=True, allow_not_found=True))
        return {entry.path[len(base) + 1 :]: entry for entry in found if entry.type == pafs.FileType.File}
