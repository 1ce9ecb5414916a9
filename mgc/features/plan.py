"""The plan of a feature set: which clip goes to which shard, fixed in ``plan.parquet`` before anything is decoded.

Clips are dealt to shards by a seeded shuffle within their split, so every shard is a fair sample and neither names nor
row order depend on the cluster. A later run is compared with the plan on disk: with the same recipe and source files
it resumes, new clips get new shards after the old ones, and any other difference is refused by name.

Licences are no part of a fingerprint: sets of before they were known stay as they are, without the column ``license``
in plan and shards. A hash of their own says whether a shard has the plan's licences.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mgc.audio.logmel import LogMelSpec
from mgc.collection.licences import UNKNOWN
from mgc.collection.splits import SPLITS
from mgc.collection.tracks import SCHEMA as TRACKS
from mgc.core.errors import InputError, StoreError, first_line
from mgc.features.layout import (
    FORMAT,
    MANIFEST,
    PLAN,
    SHARDS,
    ShardName,
    check_shards,
    parquet_writer,
    read_table,
    storage_failure,
)
from mgc.features.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from mgc.core.storage import Folder

SCHEMA = pa.schema([*TRACKS, pa.field("bytes", pa.int64()), pa.field("shard", pa.string())])
"""A row of the plan: a clip of the tracks table, its file's size (-1 where there is none) and its shard; in order.
Plans of before licences were known have no ``license``."""
_CLIPS = SCHEMA.remove(SCHEMA.get_field_index("shard"))
TASK = ["track_id", "path", "genre", "label", "split", "artist_id", "license"]
"""Columns that a shard's task needs."""
ROW_GROUP = 1 << 14
"""Rows of a row group of ``plan.parquet``."""
SIZES_AT_ONCE = 1 << 14
"""Files whose sizes are Python objects at a time."""
RECIPE_KEY = b"mgc.recipe"
LICENCES_KEY = b"mgc.licenses"
"""Key of a hash of the licences, in the metadata of a plan and of a shard; absent where they are not known."""
DECIDES = ("path", "bytes", "genre", "label", "split", "artist_id", "artist_name")
"""Columns whose values the fingerprint covers: those of a shard's rows, and those that leaks are found by."""
_WORDS = {
    "bytes": "file sizes",
    "license": "licences",
    "path": "paths",
    "label": "labels",
    "artist_id": "artists",
    "artist_name": "artists",
}


@dataclass(frozen=True)
class ShardPlan:
    """One shard before it is written."""

    file: str
    """Path relative to the set: ``shards/training-00003-of-00016.parquet``."""
    split: str
    fingerprint: str
    """Hash of the recipe and of the columns ``DECIDES`` of its clips: 64 hexadecimal digits."""
    table: pa.Table
    """The plan's table, whose rows are in any order."""
    rows: NDArray[Any]
    """The shard's clips in it, in order."""

    @property
    def count(self) -> int:
        """How many clips it has."""
        return len(self.rows)

    @cached_property
    def licences(self) -> bytes | None:
        """Hash of its clips' licences, in order; None in a plan without them."""
        if "license" not in self.table.column_names:
            return None
        return hashlib.sha256(repr(self.table["license"].take(self.rows).to_pylist()).encode()).hexdigest().encode()

    @property
    def clips(self) -> pa.Table:
        """Its clips in order: rows of the table, with the column ``shard``."""
        return self.table.take(self.rows).append_column("shard", pa.array([self.file] * self.count))


@dataclass(frozen=True)
class Plan:
    """All clips of a feature set, dealt to shards; a million clips are not copied for it."""

    recipe: Recipe
    table: pa.Table
    """The clips: columns of ``SCHEMA``, but for ``shard``, in any order."""
    deal: dict[str, NDArray[Any]]
    """The clips of each shard, by its file: rows of the table. Shards are in order, and so are their clips."""

    @classmethod
    def of(cls, clips: pa.Table, recipe: Recipe) -> Plan:
        """Plan a new set; the same clips in any order give the same plan.

        Parameters
        ----------
        clips
            Rows of the tracks table with ``bytes`` (see ``with_sizes``).
        recipe
            The settings of the set.
        """
        return cls(recipe, _CLIPS.empty_table(), {}).extended(clips)

    def extended(self, clips: pa.Table) -> Plan:
        """Plan more clips, in new shards after those that are there; these stay as they are.

        Parameters
        ----------
        clips
            Rows of the tracks table with ``bytes``, none of them in the plan.

        Returns
        -------
        Plan
            New shards are numbered on within their split; ``-of-`` is the number of shards when they were planned.
        """
        before = len(self.table)
        clips = clips.select(self.table.column_names).cast(self.table.schema)
        table = pa.concat_tables([self.table, clips]) if before else clips
        deal: dict[str, NDArray[Any]] = {}
        for code, split in enumerate(SPLITS):
            old = {file: rows for file, rows in self.deal.items() if _split(file) == split}
            new = np.flatnonzero(pc.equal(clips["split"], split))
            new = new[np.argsort(clips["track_id"].to_numpy()[new], kind="stable")].astype(np.int32)
            first, count = len(old), -(-len(new) // self.recipe.clips_per_shard)
            order = np.random.default_rng([self.recipe.seed, code, *([first] if first else [])]).permutation(len(new))
            deal |= old
            for index in range(count):
                deal[str(ShardName(split, first + index, first + count))] = before + new[order[index::count]]
        return Plan(self.recipe, table.combine_chunks(), deal)

    @property
    def clips(self) -> pa.Table:
        """All clips, ordered by split, shard and row of the shard: rows of ``SCHEMA``."""
        return pa.concat_tables([self._schema.empty_table(), *self._parts(1 << 20)])

    @property
    def _schema(self) -> pa.Schema:
        return _schema_of(self.table)

    def _parts(self, most: int) -> Iterator[pa.Table]:
        """The rows of ``clips``, some of them at a time."""
        ends = np.cumsum([len(rows) for rows in self.deal.values()])
        if not len(ends):
            return
        rows, files = np.concatenate(list(self.deal.values())), pa.array(self.deal)
        for start in range(0, len(rows), most):
            part = np.arange(start, min(start + most, len(rows)))
            shard = files.take(np.searchsorted(ends, part, side="right"))
            part_of = self.table.take(rows[part]).append_column("shard", shard)
            yield part_of.select(self._schema.names).cast(self._schema)

    @cached_property
    def shards(self) -> tuple[ShardPlan, ...]:
        """The shards in order."""
        table, recipe = self.table, self.recipe
        return tuple(
            ShardPlan(file, _split(file), _fingerprint(recipe, table, rows), table, rows)
            for file, rows in self.deal.items()
        )

    @cached_property
    def fingerprint(self) -> str:
        """Hash of names and fingerprints of all shards: 64 hexadecimal digits."""
        return hashlib.sha256("".join(f"{s.file} {s.fingerprint}\n" for s in self.shards).encode()).hexdigest()

    @property
    def licences(self) -> bytes | None:
        """Hash of the licences of all clips, in order; None in a plan without them."""
        its = [shard.licences for shard in self.shards]
        return None if None in its else hashlib.sha256(b"".join(filter(None, its))).hexdigest().encode()

    def slim(self) -> Plan:
        """Give the plan without the columns that only plans need, which are the larger part of its memory."""
        slim = replace(self, table=self.table.select([name for name in TASK if name in self.table.column_names]))
        shards = tuple(replace(shard, table=slim.table) for shard in self.shards)
        vars(slim).update(shards=shards, fingerprint=self.fingerprint)  # they cover the columns that are gone
        return slim

    def without(self, clips: pa.Table) -> pa.Table:
        """Select the rows of ``clips`` that are not in the plan, by track id."""
        return clips.filter(pc.invert(pc.is_in(clips["track_id"], value_set=self.table["track_id"].combine_chunks())))

    def differences(self, clips: pa.Table, recipe: Recipe) -> list[str]:
        """Say how a plan of ``clips`` by ``recipe`` differs from this one; new clips are no difference.

        Parameters
        ----------
        clips
            Rows of the tracks table with ``bytes``.
        recipe
            The settings of the other plan.

        Returns
        -------
        list[str]
            A line for each difference, for a person; empty if there is none.
        """
        before, now = self.recipe.to_dict(), recipe.to_dict()
        found = [f"{key} was {before[key]}, now {now[key]}" for key in now if before[key] != now[key]]
        known = pc.is_in(self.table["track_id"], value_set=clips["track_id"].combine_chunks())
        if gone := len(self.table) - pc.sum(known, min_count=0).as_py():
            found.append(f"{gone} of its {len(self.table)} clips are not among the {len(clips)} clips now")
        old = self.table.filter(known).sort_by("track_id")
        new = clips.filter(pc.is_in(clips["track_id"], value_set=old["track_id"].combine_chunks())).sort_by("track_id")
        found += [_change(name, old, new) for name in DECIDES if not old[name].equals(new[name])]
        return list(dict.fromkeys(found))

    def other_licences(self, clips: pa.Table) -> str | None:
        """Say how many of ``clips`` have another licence than in this plan; None if there are none.

        Parameters
        ----------
        clips
            Rows of the tracks table, with those of the plan among them.
        """
        old = self.table.sort_by("track_id")
        new = clips.filter(pc.is_in(clips["track_id"], value_set=old["track_id"].combine_chunks())).sort_by("track_id")
        if "license" not in old.column_names:
            known = sum(text != UNKNOWN for text in new["license"].to_pylist())
            return f"its licences were not known when it was made, {known} are now" if known else None
        return None if old["license"].equals(new["license"]) else _change("license", old, new)

    # On disk

    def begin(self, folder: Folder, *, overwrite: bool) -> None:
        """Write the plan and remove shards that are not in it, which another set has left.

        Parameters
        ----------
        folder
            The set's folder, which is there.
        overwrite
            Whether a set that is there is replaced.
        """
        if overwrite:
            folder.remove(MANIFEST)  # first, so that nobody reads a mixture
        self.write(folder)
        folder.make(SHARDS)
        for name in folder.files(SHARDS):
            file = f"{SHARDS}/{name}"
            if ShardName.parse(file) and file not in self.deal:
                folder.remove(file)

    def write(self, folder: Folder) -> None:
        """Write ``plan.parquet``."""
        metadata = {RECIPE_KEY: self.recipe.to_json().encode(), b"mgc.format": str(FORMAT).encode()}
        metadata |= {LICENCES_KEY: self.licences} if self.licences else {}
        with tempfile.TemporaryFile() as file:  # a buffer that grows takes three times what is in it
            with parquet_writer(file, self._schema.with_metadata(metadata)) as writer:
                for part in self._parts(ROW_GROUP):
                    writer.write_table(part)
            file.flush()
            folder.write(PLAN, pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))

    def stands_in(self, folder: Folder) -> bool:
        """Whether a plan of the same recipe and licences is in the folder; its clips are not read."""
        try:
            with folder.random_access(PLAN) as file:
                found = pq.read_schema(file).metadata or {}
            same = found.get(LICENCES_KEY) == self.licences
            return same and bool(found.get(RECIPE_KEY) == self.recipe.to_json().encode())
        except (OSError, StoreError, pa.ArrowException):
            return False

    @classmethod
    def read(cls, folder: Folder) -> Plan | None:
        """Read ``plan.parquet``; None where there is none.

        Raises
        ------
        InputError
            The file is there and is not a plan of this format.
        RunError
            The disk or the object store cannot be read.
        """
        try:
            with folder.random_access(PLAN) as file:
                table = read_table(file)
            metadata = table.schema.metadata
            if int(metadata[b"mgc.format"]) != FORMAT:
                raise ValueError(f"format {metadata[b'mgc.format'].decode()}, this version reads {FORMAT}")
            fields = json.loads(metadata[RECIPE_KEY])
            recipe = Recipe(**fields | {"spec": LogMelSpec(**fields["spec"])})
            check_shards(pc.unique(table["shard"]).to_pylist())
            return cls._from(recipe, table.cast(_schema_of(table)))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, StoreError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise storage_failure(f"{folder}/{PLAN}", error) or InputError(
                f"{folder}/{PLAN}: not a plan ({first_line(error)}); choose another folder, or `overwrite=True`"
            ) from None

    @classmethod
    def _from(cls, recipe: Recipe, clips: pa.Table) -> Plan:
        """The plan whose ``clips`` are these."""
        runs = pc.run_end_encode(clips["shard"].combine_chunks())
        ends = [0, *runs.run_ends.to_pylist()]
        deal = {
            file: np.arange(start, stop, dtype=np.int32)
            for file, (start, stop) in zip(runs.values.to_pylist(), pairwise(ends), strict=True)
        }
        return cls(recipe, clips.drop_columns(["shard"]).combine_chunks(), deal)


def _schema_of(table: pa.Table) -> pa.Schema:
    """``SCHEMA``, with licences only where the table has them."""
    return SCHEMA if "license" in table.column_names else SCHEMA.remove(SCHEMA.get_field_index("license"))


def with_sizes(clips: pa.Table, root: Folder) -> pa.Table:
    """Add the column ``bytes``, the size of each clip's file.

    Parameters
    ----------
    clips
        Rows of the tracks table.
    root
        The folder that their ``path`` is relative to.

    Returns
    -------
    pa.Table
        The same rows; ``bytes`` is -1 where there is no file.
    """
    at_once = SIZES_AT_ONCE if root.path else len(clips) or 1  # an object store is asked for all of a folder's files
    parts = [
        pa.array(root.sizes(clips["path"].slice(start, at_once).to_pylist()), pa.int64())
        for start in range(0, len(clips), at_once)
    ]
    return clips.append_column("bytes", pa.chunked_array(parts, pa.int64())).combine_chunks()


def _fingerprint(recipe: Recipe, table: pa.Table, rows: NDArray[Any]) -> str:
    digest = hashlib.sha256(recipe.to_json().encode())
    columns = table.select(["track_id", *DECIDES]).take(rows).to_pydict()
    for row in zip(*columns.values(), strict=True):
        digest.update(repr(row).encode())
    return digest.hexdigest()


def _split(file: str) -> str:
    """The split of a shard, by its file's name."""
    return file.removeprefix(f"{SHARDS}/").partition("-")[0]


def _change(name: str, old: pa.Table, new: pa.Table) -> str:
    """How many values of a column have changed, and the first of them."""
    pairs = zip(old["path"].to_pylist(), old[name].to_pylist(), new[name].to_pylist(), strict=True)
    changed: list[Any] = [(path, before, now) for path, before, now in pairs if before != now]
    path, before, now = changed[0]
    return f"{len(changed)} {_WORDS.get(name, name + 's')} changed ({path}: {before}, now {now})"
