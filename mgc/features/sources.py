"""The files that a feature set is made from, hashed again: which of them are gone, or hold something else now."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from mgc.core.errors import InputError
from mgc.core.progress import Progress, say
from mgc.core.storage import Folder
from mgc.features.layout import read_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from mgc.features.feature_set import FeatureSet
    from mgc.features.plan import ShardPlan

SHARDS_AT_ONCE = 256
"""Shards whose clips' paths are Python objects at a time."""
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


def replaced(written: Sequence[ShardPlan], root: Folder, out: Folder) -> dict[str, list[str]]:
    """Find the sources of shards that were replaced by others of the same size since the shards were written.

    It is found as make does it: a source that is newer than its shard is hashed. No time is kept in a set, whose bytes
    follow from its input alone; so one that was replaced by an older file is found by ``verify`` with ``sources`` only.

    Parameters
    ----------
    written
        The shards, whose files are there.
    root
        The folder that the clips' paths are relative to.
    out
        The folder of the set.

    Returns
    -------
    dict
        The paths of replaced clips by the shard's file; clips in quarantine have no hash.

    Raises
    ------
    StoreError, RunError
        The disk or the object store does not answer.
    """
    suspects: dict[str, list[str]] = {}
    at_once = SHARDS_AT_ONCE if root.path else max(1, len(written))  # a bucket is listed as a whole
    for start in range(0, len(written), at_once):
        part = written[start : start + at_once]
        paths = [shard.table["path"].take(shard.rows).to_pylist() for shard in part]
        modified = iter(root.modified(path for each in paths for path in each))
        for shard, its, made in zip(part, paths, out.modified(shard.file for shard in part), strict=True):
            newer = [path for path, time in zip(its, modified) if time > made]  # noqa: B905 (of all shards in turn)
            if newer:
                suspects[shard.file] = newer
    if not suspects:
        return {}
    count = sum(map(len, suspects.values()))
    say(f"{count} clips are newer than their features: comparing what is in them …")
    progress, found = Progress("sources", count, "files"), dict[str, list[str]]()
    with ThreadPoolExecutor(THREADS) as pool:
        for file, paths_here in suspects.items():
            with out.random_access(file) as stream:
                table = read_table(stream, ["path", "source_sha1"])
            before = dict(zip(*(table[name].to_pylist() for name in ("path", "source_sha1")), strict=True))
            for path, now in zip(paths_here, _sha1(root, paths_here, pool), strict=True):
                if before.get(path, now) != now:
                    found.setdefault(file, []).append(path)
                progress.advance()
    return found


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
