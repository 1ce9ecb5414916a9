"""The plan of a feature set: which clip goes to which shard, fixed in ``plan.parquet`` before anything is decoded.

Clips are dealt to shards by a seeded shuffle within their split, so every shard is a fair sample and neither names nor
row order depend on the cluster. A later run is compared with the plan on disk: with the same recipe and source files
it resumes, new clips get new shards after the old ones, and any other difference is refused by name.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mgc.audio import decode as audio
from mgc.audio.logmel import LogMelSpec
from mgc.collection.splits import SPLITS
from mgc.collection.tracks import SCHEMA as TRACKS
from mgc.core.errors import InputError, StoreError, first_line
from mgc.core.progress import say
from mgc.features.layout import (
    FORMAT,
    MANIFEST,
    PLAN,
    SHARDS,
    ShardName,
    check_shards,
    parquet_bytes,
    read_manifest,
    read_table,
    storage_failure,
)

if TYPE_CHECKING:
    from mgc.core.storage import Folder

SCHEMA = pa.schema([*TRACKS, pa.field("bytes", pa.int64()), pa.field("shard", pa.string())])
"""A row of the plan: a clip of the tracks table, its file's size (-1 where there is none) and its shard; in order."""
RECIPE_KEY = b"mgc.recipe"
DECIDES = ("path", "bytes", "genre", "label", "split", "artist_id", "artist_name")
"""Columns whose values the fingerprint covers: those of a shard's rows, and those that leaks are found by."""
_WORDS = {"bytes": "file sizes", "path": "paths", "label": "labels", "artist_id": "artists", "artist_name": "artists"}


@dataclass(frozen=True)
class Recipe:
    """All settings that the bytes of a feature set depend on."""

    spec: LogMelSpec = field(default_factory=LogMelSpec)
    min_seconds: float = 5.0
    """Seconds; clips with less audio are quarantined as ``too_short``."""
    keep_damaged: bool = False
    """Keep clips that decode to clearly less audio than their file's headers announce."""
    clips_per_shard: int = 64
    seed: int = 0
    """Seed of the shuffle that deals clips to shards."""
    decoder: str = audio.DECODER
    """Libraries that decode and resample, with their versions."""

    def to_json(self) -> str:
        """Encode the recipe as one line of JSON; the same recipe gives the same line."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class ShardPlan:
    """One shard before it is written."""

    file: str
    """Path relative to the set: ``shards/training-00003-of-00016.parquet``."""
    split: str
    clips: pa.Table
    """Rows of the plan, in order."""
    fingerprint: str
    """Hash of the recipe and of the columns ``DECIDES`` of its clips: 64 hexadecimal digits."""


@dataclass(frozen=True)
class Plan:
    """All clips of a feature set in the order of its shards."""

    recipe: Recipe
    clips: pa.Table
    """Rows of ``SCHEMA``, ordered by split, shard and row of the shard."""

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
        return cls(recipe, pa.table({name: [] for name in SCHEMA.names}, schema=SCHEMA)).extended(clips)

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
        parts = []
        for code, split in enumerate(SPLITS):
            old = self.clips.filter(pc.equal(self.clips["split"], split))
            new = clips.filter(pc.equal(clips["split"], split)).sort_by("track_id")
            first, count = pc.count_distinct(old["shard"]).as_py(), -(-len(new) // self.recipe.clips_per_shard)
            order = np.random.default_rng([self.recipe.seed, code, *([first] if first else [])]).permutation(len(new))
            parts.append(old)
            for index in range(count):
                file = str(ShardName(split, first + index, first + count))
                members = new.take(order[index::count])
                parts.append(members.append_column("shard", pa.array([file] * len(members))).cast(SCHEMA))
        return replace(self, clips=pa.concat_tables(parts).combine_chunks())

    @cached_property
    def shards(self) -> tuple[ShardPlan, ...]:
        """The shards in order."""
        runs = pc.run_end_encode(self.clips["shard"].combine_chunks())
        ends = [0, *runs.run_ends.to_pylist()]
        return tuple(
            ShardPlan(file, members["split"][0].as_py(), members, _fingerprint(self.recipe, members))
            for file, members in zip(
                runs.values.to_pylist(),
                (self.clips.slice(start, stop - start) for start, stop in pairwise(ends)),
                strict=True,
            )
        )

    @property
    def fingerprint(self) -> str:
        """Hash of names and fingerprints of all shards: 64 hexadecimal digits."""
        return hashlib.sha256("".join(f"{s.file} {s.fingerprint}\n" for s in self.shards).encode()).hexdigest()

    def without(self, clips: pa.Table) -> pa.Table:
        """Select the rows of ``clips`` that are not in the plan, by track id."""
        return clips.filter(pc.invert(pc.is_in(clips["track_id"], value_set=self.clips["track_id"].combine_chunks())))

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
        before, now = asdict(self.recipe), asdict(recipe)
        found = [f"{key} was {before[key]}, now {now[key]}" for key in now if before[key] != now[key]]
        known = pc.is_in(self.clips["track_id"], value_set=clips["track_id"].combine_chunks())
        if gone := self.clips.filter(pc.invert(known)).num_rows:
            found.append(f"{gone} of its {len(self.clips)} clips are not among the {len(clips)} clips now")
        old = self.clips.filter(known).sort_by("track_id")
        new = clips.filter(pc.is_in(clips["track_id"], value_set=old["track_id"].combine_chunks())).sort_by("track_id")
        found += [_change(name, old, new) for name in DECIDES if not old[name].equals(new[name])]
        return list(dict.fromkeys(found))

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
        planned = {shard.file for shard in self.shards}
        for name in folder.files(SHARDS):
            file = f"{SHARDS}/{name}"
            if ShardName.parse(file) and file not in planned:
                folder.remove(file)

    def write(self, folder: Folder) -> None:
        """Write ``plan.parquet``."""
        metadata = {RECIPE_KEY: self.recipe.to_json().encode(), b"mgc.format": str(FORMAT).encode()}
        folder.write(PLAN, parquet_bytes(self.clips.replace_schema_metadata(metadata)))

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
            return cls(recipe, table.cast(SCHEMA))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, StoreError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise storage_failure(f"{folder}/{PLAN}", error) or InputError(
                f"{folder}/{PLAN}: not a plan ({first_line(error)}); choose another folder, or `overwrite=True`"
            ) from None


def settle(target: Folder, before: Plan | None, clips: pa.Table, recipe: Recipe, *, overwrite: bool) -> Plan:
    """Make the plan of a run: a new one, or the one in the folder with the clips that are new.

    Parameters
    ----------
    target
        Folder of the feature set, which is there.
    before
        The plan in it; None to make a new one.
    clips
        Rows of the tracks table with ``bytes``.
    recipe
        The settings of the set.
    overwrite
        Whether a set that is there is replaced.

    Raises
    ------
    InputError
        The folder holds a set of other clips or another recipe, or files that are no feature set.
    """
    if before is None:
        _refuse_foreign(target, overwrite=overwrite)
        return Plan.of(clips, recipe)
    if differences := before.differences(clips, recipe):
        raise InputError(
            f"`out={target}`: holds another feature set: {'; '.join(differences)}; "
            "choose another folder, or `overwrite=True` to replace what differs"
        )
    new = before.without(clips)
    if len(new):
        say(f"{target}: {len(new)} new clips go to new shards, {len(before.clips)} stay")
    return before.extended(new) if len(new) else before


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
    return clips.append_column("bytes", pa.array(root.sizes(clips["path"].to_pylist()), pa.int64()))


def _refuse_foreign(target: Folder, *, overwrite: bool) -> None:
    """Refuse a folder that has no plan and is not empty."""
    files = [name for name in target.files() if not name.startswith(".")]
    if MANIFEST in files:
        if not overwrite:
            read_manifest(target)  # of another format: says so
            raise InputError(f"`out={target}`: {PLAN} is lost; choose another folder, or `overwrite=True`")
    elif PLAN not in files and (files or (target.path and any(target.path.glob("[!.]*")))):
        raise InputError(f"`out={target}`: is not empty and holds no feature set; choose another folder")


def _fingerprint(recipe: Recipe, clips: pa.Table) -> str:
    digest = hashlib.sha256(recipe.to_json().encode())
    columns = clips.select(["track_id", *DECIDES]).to_pydict()
    for row in zip(*columns.values(), strict=True):
        digest.update(repr(row).encode())
    return digest.hexdigest()


def _change(name: str, old: pa.Table, new: pa.Table) -> str:
    """How many values of a column have changed, and the first of them."""
    pairs = zip(old["path"].to_pylist(), old[name].to_pylist(), new[name].to_pylist(), strict=True)
    changed: list[Any] = [(path, before, now) for path, before, now in pairs if before != now]
    path, before, now = changed[0]
    return f"{len(changed)} {_WORDS.get(name, name + 's')} changed ({path}: {before}, now {now})"
