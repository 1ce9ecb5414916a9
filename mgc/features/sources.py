"""The files that a feature set was made from, hashed again: which of them are gone, or hold something else now."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from mgc.core.errors import InputError
from mgc.core.progress import Progress
from mgc.core.storage import Folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mgc.features.feature_set import FeatureSet

THREADS = 8
"""Files that are read at a time: a disk in a network, or an object store, takes its time to answer."""


def changed(root: str | Path, feature_set: FeatureSet, shards: list[str]) -> tuple[int, list[tuple[str, str]]]:
    """Hash the source file of every row of some shards.

    Parameters
    ----------
    root
        The collection that the set was made from: its folder or its CSV file, by path or URI.
    feature_set
        The set.
    shards
        Files of the shards whose rows can be read.

    Returns
    -------
    count
        How many files were compared; clips in quarantine have no hash.
    differences
        Path, relative to the collection, and what is wrong with it, of each file that is not as it was.

    Raises
    ------
    InputError
        There is no such collection.
    RunError
        The disk or the object store does not answer.
    """
    folder = Folder.at(root)
    kind = folder.kind()
    if kind is None:
        raise InputError(f"`sources={folder}`: no such file or folder; give the collection that the set was made from")
    if kind == "file":
        folder, _ = folder.parent
    entries = [entry for entry in feature_set.manifest.shards if entry.file in shards]
    count = sum(entry.rows for entry in entries)
    progress, differences = Progress("sources", count, "files"), []
    with ThreadPoolExecutor(THREADS) as pool:
        for entry in entries:
            table = feature_set.table(entry, ["path", "source_sha1"])
            paths, hashes = (table[name].to_pylist() for name in ("path", "source_sha1"))
            for path, before, now in zip(paths, hashes, _sha1(folder, paths, pool), strict=True):
                if now != before:
                    known = len(now) == len(before)
                    why = f"has changed (sha1 {now[:12]}…, it was {before[:12]}…)" if known else now
                    differences.append((path, why))
                progress.advance()
    return count, differences


def _sha1(folder: Folder, paths: list[str], pool: ThreadPoolExecutor) -> Iterator[str]:
    """The hash of each file in turn, or in words why it has none."""

    def of(path: str) -> str:
        try:
            with folder.open(path) as file:
                return hashlib.file_digest(file, "sha1").hexdigest()
        except FileNotFoundError:
            return "missing"
        except (OSError, ValueError) as error:
            return f"cannot be read ({getattr(error, 'strerror', None) or error})"

    return pool.map(of, paths)
