"""The plan of a label set: which file is in which shard, fixed in ``plan.parquet`` before anything is decoded.

A later run is compared with it: files that are as they were keep their rows, new and changed ones get new shards, and
rows of files that are gone or changed are dropped.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from mgc.core.errors import InputError, StoreError, first_line
from mgc.features.layout import PLAN, SHARDS, check_shards, parquet_bytes, read_table, storage_failure
from mgc.library.labels import FORMAT, Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mgc.core.storage import Folder

FILES_PER_SHARD = 32
BYTES_PER_SHARD = 128 << 20
"""Of audio files: some two hours of MP3, whose spectrograms take some 100 MB in a task."""
SCHEMA = pa.schema([("path", pa.string()), ("bytes", pa.int64()), ("shard", pa.string())])
SETTINGS_KEY, FORMAT_KEY, ROOT_KEY = b"mgc.labels.settings", b"mgc.labels.format", b"mgc.labels.root"


@dataclass(frozen=True)
class LabelPlan:
    """All files of a label set, dealt to shards."""

    settings: Settings
    root: str
    """The library, by path or URI."""
    shards: Mapping[str, Mapping[str, int]]
    """Size in bytes by path, of the files of each shard, by the shard's file; both in order."""

    @classmethod
    def of(cls, files: Mapping[str, int], settings: Settings, root: str) -> LabelPlan:
        """Plan a new set.

        Parameters
        ----------
        files
            Size in bytes by path.
        settings
            Of the set.
        root
            The library.
        """
        return cls(settings, root, {}).updated(files, set(), root)

    @property
    def files(self) -> dict[str, int]:
        """Size in bytes by path, of the files of all shards."""
        return {path: size for its in self.shards.values() for path, size in its.items()}

    def updated(self, files: Mapping[str, int], changed: set[str], root: str) -> LabelPlan:
        """Plan the files of now: those that are as they were stay where they are, all others get new shards.

        Parameters
        ----------
        files
            Size in bytes by path.
        changed
            Paths of files that are to be labelled again.
        root
            Where the library is now.
        """
        kept = {
            file: {path: size for path, size in its.items() if files.get(path) == size and path not in changed}
            for file, its in self.shards.items()
        }
        there = {path for its in kept.values() for path in its}
        new = sorted(path for path in files if path not in there)
        number = max((int(file.rpartition("-")[2].partition(".")[0]) for file in self.shards), default=-1)
        shards = {file: its for file, its in kept.items() if its}
        its: dict[str, int] = {}
        for path in new:
            if not its or len(its) == FILES_PER_SHARD or sum(its.values()) + files[path] > BYTES_PER_SHARD:
                number += 1
                its = shards[f"{SHARDS}/labels-{number:05d}.parquet"] = {}
            its[path] = files[path]
        return LabelPlan(self.settings, root, shards)

    def fingerprint(self, file: str) -> str:
        """Hash of the settings and of the files of a shard: 64 hexadecimal digits."""
        digest = hashlib.sha256(self.settings.to_json().encode())
        for path, size in self.shards[file].items():
            digest.update(repr((path, size)).encode())
        return digest.hexdigest()

    def write(self, folder: Folder) -> None:
        """Write ``plan.parquet``."""
        metadata = {SETTINGS_KEY: self.settings.to_json().encode(), FORMAT_KEY: str(FORMAT).encode()}
        metadata[ROOT_KEY] = self.root.encode()
        rows = [
            {"path": path, "bytes": size, "shard": file}
            for file, its in self.shards.items()
            for path, size in its.items()
        ]
        folder.write(PLAN, parquet_bytes(pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(metadata))))

    @classmethod
    def read(cls, folder: Folder) -> LabelPlan | None:
        """Read ``plan.parquet``; None where there is none.

        Raises
        ------
        InputError
            The file is there and is not the plan of a label set.
        RunError
            The disk or the object store cannot be read.
        """
        try:
            with folder.random_access(PLAN) as file:
                table = read_table(file)
            if int(table.schema.metadata[FORMAT_KEY]) != FORMAT:
                raise ValueError(f"not of format {FORMAT}")
            settings = Settings.from_json(table.schema.metadata[SETTINGS_KEY])
            shards: dict[str, dict[str, int]] = {}
            for path, size, name in zip(*(table[column].to_pylist() for column in SCHEMA.names), strict=True):
                shards.setdefault(name, {})[path] = size
            check_shards(shards)
            return cls(settings, table.schema.metadata[ROOT_KEY].decode(), shards)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, StoreError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise storage_failure(f"{folder}/{PLAN}", error) or InputError(
                f"`out={folder}`: {PLAN} is not of a label set ({first_line(error)}); choose another folder"
            ) from None


def differences(before: Settings, now: Settings) -> Iterable[str]:
    """Say how the settings of a set that is there differ from those asked for.

    Parameters
    ----------
    before
        Of the set that is there.
    now
        Asked for.
    """
    if before.model != now.model:
        yield f"another model (fingerprint {before.model[:12]}…, now {now.model[:12]}…)"
    if before.precision != now.precision:
        yield f"precision was {before.precision:g}, now {now.precision:g}"
    if before.decoder != now.decoder:
        yield f"the decoder was {before.decoder}, now {now.decoder}"
