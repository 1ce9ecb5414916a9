"""The plan of a feature set: which clip goes to which shard, fixed in ``plan.parquet`` before anything is decoded.

Clips are dealt to shards by a seeded shuffle within their split, so every shard is a fair sample and neither names nor
row order depend on the cluster. The plan on disk is what a later run is held to: the same recipe and the same source
files go on where it stopped, new clips get new shards behind the old ones, and anything else is refused by name.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mgc.audio import decode as audio
from mgc.audio.logmel import LogMelSpec
from mgc.collection.splits import SPLITS
from mgc.collection.tracks import SCHEMA as TRACKS
from mgc.core.errors import InputError, StoreError, first_line
from mgc.core.progress import say
from mgc.features.feature_set import FORMAT, MANIFEST, PLAN, SHARDS, parquet_bytes, read_manifest

if TYPE_CHECKING:
    from mgc.core.storage import Folder

SCHEMA = pa.schema([*TRACKS, pa.field("bytes", pa.int64()), pa.field("shard", pa.string())])
"""A row of the plan: a clip of the tracks table, its file's size (-1 where there is none) and its shard; in order."""
RECIPE_KEY = b"mgc.recipe"
DECIDES = ("path", "bytes", "genre", "label", "split", "artist_id", "artist_name")
"""Columns that a shard's content or the set's honesty depends on; another value of one is another set."""
_WORDS = {"bytes": "file sizes", "path": "paths", "label": "labels", "artist_id": "artists", "artist_name": "artists"}


@dataclass(frozen=True)
class Recipe:
    """Everything but the clips that decides a feature set's bytes."""

    spec: LogMelSpec = field(default_factory=LogMelSpec)
    min_seconds: float = 5.0
    """Clips with less audio are quarantined as ``too_short``."""
    keep_damaged: bool = False
    """Whether clips that decode to clearly less than their file promises become features all the same."""
    clips_per_shard: int = 64
    seed: int = 0
    """Of the shuffle that deals clips to shards."""
    decoder: str = audio.DECODER

    def to_json(self) -> str:
        """The recipe as one line; the same recipe gives the same line."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class ShardPlan:
    """One shard before it is written."""

    file: str
    """Path relative to the set: ``shards/training-00003-of-00016.parquet``."""
    split: str
    clips: pa.Table
    """Its rows of the plan, in order."""
    fingerprint: str
    """Hash of the recipe and of what ``DECIDES`` in its clips: 64 hexadecimal digits."""


@dataclass(frozen=True)
class Plan:
    """Every clip of a feature set in the order of its shards."""

    recipe: Recipe
    clips: pa.Table
    """Rows of ``SCHEMA``: by split, shard and place in the shard."""

    @classmethod
    def of(cls, clips: pa.Table, recipe: Recipe) -> Plan:
        """Plan a new set; the same clips in any order give the same plan.

        Parameters
        ----------
        clips
            Rows of the tracks table with ``bytes``.
        """
        return cls(recipe, pa.table({name: [] for name in SCHEMA.names}, schema=SCHEMA)).extended(clips)

    def extended(self, clips: pa.Table) -> Plan:
        """The plan with more clips, which are dealt to shards of their own behind those that are there.

        Shards are numbered on within their split; ``-of-`` is the number of shards when they were planned.
        """
        parts = []
        for code, split in enumerate(SPLITS):
            old = self.clips.filter(pc.equal(self.clips["split"], split))
            new = clips.filter(pc.equal(clips["split"], split)).sort_by("track_id")
            first, count = pc.count_distinct(old["shard"]).as_py(), -(-len(new) // self.recipe.clips_per_shard)
            order = np.random.default_rng([self.recipe.seed, code, *([first] if first else [])]).permutation(len(new))
            parts.append(old)
            for index in range(count):
                file = f"{SHARDS}/{split}-{first + index:05d}-of-{first + count:05d}.parquet"
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
        """Hash of all shards' fingerprints and names: 64 hexadecimal digits; another one is another set."""
        return hashlib.sha256("".join(f"{s.file} {s.fingerprint}\n" for s in self.shards).encode()).hexdigest()

    def without(self, clips: pa.Table) -> pa.Table:
        """Those of ``clips`` that are not in the plan."""
        return clips.filter(pc.invert(pc.is_in(clips["track_id"], value_set=self.clips["track_id"].combine_chunks())))

    def differences(self, clips: pa.Table, recipe: Recipe) -> list[str]:
        """What keeps this plan from being one of ``clips`` by ``recipe``, for a person; new clips do not."""
        before, now = asdict(self.recipe), asdict(recipe)
        said = [f"{key} was {before[key]}, now {now[key]}" for key in now if before[key] != now[key]]
        known = pc.is_in(self.clips["track_id"], value_set=clips["track_id"].combine_chunks())
        if gone := self.clips.filter(pc.invert(known)).num_rows:
            said.append(f"{gone} of its {len(self.clips)} clips are not among the {len(clips)} clips now")
        old = self.clips.filter(known).sort_by("track_id")
        new = clips.filter(pc.is_in(clips["track_id"], value_set=old["track_id"].combine_chunks())).sort_by("track_id")
        said += [_change(name, old, new) for name in DECIDES if not old[name].equals(new[name])]
        return list(dict.fromkeys(said))

    # On disk

    def begin(self, folder: Folder, *, overwrite: bool) -> None:
        """Put the plan in its place, and remove of another set, if one is to be replaced, what is not in the plan."""
        if overwrite:
            folder.remove(MANIFEST)  # first, so that nobody reads a mixture
        self.write(folder)
        folder.make(SHARDS)
        planned = {shard.file for shard in self.shards}
        for name in folder.files(SHARDS):
            if is_shard_name(name) and f"{SHARDS}/{name}" not in planned:
                folder.remove(f"{SHARDS}/{name}")

    def write(self, folder: Folder) -> None:
        """Write ``plan.parquet``."""
        metadata = {RECIPE_KEY: self.recipe.to_json().encode(), b"mgc.format": str(FORMAT).encode()}
        folder.write(PLAN, parquet_bytes(self.clips.replace_schema_metadata(metadata)))

    @classmethod
    def read(cls, folder: Folder) -> Plan | None:
        """The plan of a set that was begun, or None.

        Raises
        ------
        InputError
            The file is there and is not a plan of this format.
        """
        try:
            with folder.random_access(PLAN) as file:
                table = pq.read_table(file)
            metadata = table.schema.metadata
            if int(metadata[b"mgc.format"]) != FORMAT:
                raise ValueError(f"format {metadata[b'mgc.format'].decode()}, this version reads {FORMAT}")
            fields = json.loads(metadata[RECIPE_KEY])
            recipe = Recipe(**fields | {"spec": LogMelSpec(**fields["spec"])})
            return cls(recipe, table.cast(SCHEMA))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except StoreError:
            raise
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{folder}/{PLAN}: not a plan ({first_line(error)}); choose another folder or --overwrite"
            ) from None


def settle(target: Folder, clips: pa.Table, recipe: Recipe, *, overwrite: bool) -> Plan:
    """The plan that a folder is to be made by: a new one, or the one in it with the clips that are new.

    Raises
    ------
    InputError
        The folder holds a set that is not one of these clips by this recipe, or something else.
    """
    before = None if overwrite else Plan.read(target)
    if before is None:
        _refuse_foreign(target, overwrite=overwrite)
        return Plan.of(clips, recipe)
    if differences := before.differences(clips, recipe):
        raise InputError(
            f"--out {target}: holds another feature set: {'; '.join(differences)}; "
            "choose another folder, or --overwrite to replace what differs"
        )
    new = before.without(clips)
    if len(new):
        say(f"{target}: {len(new)} new clips go to new shards, {len(before.clips)} stay")
    return before.extended(new) if len(new) else before


def is_shard_name(name: str) -> bool:
    """Whether a file's name is one that a plan gives its shards."""
    return re.fullmatch(rf"({'|'.join(SPLITS)})-\d{{5,}}-of-\d{{5,}}\.parquet", name) is not None


def with_sizes(clips: pa.Table, root: Folder) -> pa.Table:
    """The tracks table with the size of each clip's file."""
    return clips.append_column("bytes", pa.array(root.sizes(clips["path"].to_pylist()), pa.int64()))


def _refuse_foreign(target: Folder, *, overwrite: bool) -> None:
    """Refuse a folder without a plan that holds something all the same."""
    files = [name for name in target.files() if not name.startswith(".")]
    if MANIFEST in files:
        if not overwrite:
            read_manifest(target)  # of another format: says so
            raise InputError(f"--out {target}: {PLAN} is lost; choose another folder, or --overwrite")
    elif PLAN not in files and (files or (target.path and any(target.path.glob("[!.]*")))):
        raise InputError(f"--out {target}: is not empty and holds no feature set; choose another folder")


def _fingerprint(recipe: Recipe, clips: pa.Table) -> str:
    digest = hashlib.sha256(recipe.to_json().encode())
    columns = clips.select(["track_id", *DECIDES]).to_pydict()
    for row in zip(*columns.values(), strict=True):
        digest.update(repr(row).encode())
    return digest.hexdigest()


def _change(name: str, old: pa.Table, new: pa.Table) -> str:
    """How many values of a column are others, and the first of them."""
    pairs = zip(old["path"].to_pylist(), old[name].to_pylist(), new[name].to_pylist(), strict=True)
    changed: list[Any] = [(path, before, now) for path, before, now in pairs if before != now]
    path, before, now = changed[0]
    return f"{len(changed)} {_WORDS.get(name, name + 's')} changed ({path}: {before}, now {now})"
