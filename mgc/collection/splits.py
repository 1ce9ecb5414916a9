"""Splits: drawn where a collection has none; and the artists that are in more than one.

An artist in two splits lets a model recognise the artist instead of the genre; on FMA that is worth about 13 points.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mgc.collection.names import same_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

SPLITS = ("training", "validation", "test")
SPLIT_WORDS = {name: name for name in SPLITS} | {
    "train": "training",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "development": "validation",
    "testing": "test",
}
"""What folders and tables call the splits, in lower case."""
NAMED = 5
"""The most artists or genres that a message names."""
_TENTHS = {"training": 8, "validation": 1, "test": 1}

Leak: TypeAlias = dict[str, Any]
"""An artist in more than one split, as manifests hold it: ``by`` (``id`` or ``name``: what its clips have in common),
``artist_id`` (of a leak by name all its ids, joined by commas), ``artist_name``, ``splits`` (clips in each split)."""


def draw_splits(
    groups: Sequence[str], genres: Sequence[str], seed: int, known: Mapping[str, str] | None = None
) -> list[str]:
    """Draw a split for each clip: 80/10/10 within each genre, all clips of a group in one split.

    Genre by genre, the one of fewest groups first, groups are sorted by size, largest first, and shuffled among equals
    by a hash of seed, genre and name (so that neither the clips' order nor a library's random numbers matter); each is
    assigned to the split that lacks most clips. Groups of one clip come out exactly: 100 clips of a genre are split
    into 80, 10 and 10.

    Parameters
    ----------
    groups : sequence of str [length=n]
        The group of each clip: its artist, or a name of its own.
    genres : sequence of str [length=n]
        The genre of each clip. A group of several genres is assigned with the first of them.
    seed
        Seed of the shuffle.
    known
        Split by group, for groups that have one already.

    Returns
    -------
    list of str [length=n]
        One of ``SPLITS`` for each clip. A genre of three or more groups is in all three splits (unless its groups were
        assigned with other genres), one of fewer may be in training alone.
    """
    clips: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for group, genre in zip(groups, genres, strict=True):
        clips[genre][group] += 1
    drawn = dict(known or {})
    for genre in sorted(clips, key=lambda name: (len(clips[name]), name)):
        _deal(clips[genre], f"{seed}/{genre}", drawn)
    return [drawn[group] for group in groups]


def _deal(sizes: Counter[str], salt: str, drawn: dict[str, str]) -> None:
    """Add the groups of one genre to ``drawn``; groups that are there already count as assigned."""
    filled: Counter[str] = Counter()
    for group in drawn.keys() & sizes.keys():
        filled[drawn[group]] += sizes[group]

    def shuffled(group: str) -> tuple[int, bytes]:
        return -sizes[group], _shuffled(f"{salt}/{group}")

    def lacking(split: str) -> int:
        return _TENTHS[split] * sizes.total() - 10 * filled[split]

    waiting = sorted(sizes.keys() - drawn.keys(), key=shuffled)
    for left, group in zip(range(len(waiting), 0, -1), waiting, strict=True):
        empty = [split for split in SPLITS if not filled[split]]
        last_chance = len(sizes) >= len(SPLITS) and left <= len(empty)
        drawn[group] = max(empty if last_chance else SPLITS, key=lacking)
        filled[drawn[group]] += sizes[group]


def draw_clips(splits: Sequence[str], genres: Sequence[str], ids: Sequence[int], limit: int) -> list[int]:
    """Draw so many clips, splits and genres in proportion: at least one clip each, where the limit allows it.

    The limit is dealt to the splits, each split's share to its genres: one clip each first, beginning with the largest,
    then in proportion (Webster's method). Which clips of a genre are drawn is decided by a hash of their ids, so that
    neither their order matters nor what else is there.

    Parameters
    ----------
    splits, genres, ids : sequences [length=n]
        Split, genre and id of each clip.
    limit
        How many clips to draw, at least 1.

    Returns
    -------
    list of int [length=min(limit, n)]
        Positions of the drawn clips, ascending.
    """
    cells: defaultdict[str, defaultdict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for position in sorted(range(len(ids)), key=lambda position: _shuffled(f"{ids[position]}")):
        cells[splits[position]][genres[position]].append(position)
    drawn: list[int] = []
    shares = _deal_out(limit, {split: sum(map(len, cells[split].values())) for split in SPLITS if split in cells})
    for split, share in shares.items():
        clips = cells[split]
        for genre, count in _deal_out(share, {genre: len(clips[genre]) for genre in sorted(clips)}).items():
            drawn += clips[genre][:count]
    return sorted(drawn)


def _deal_out(limit: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Deal seats by size, at most that many each: one each, largest first, then each to the highest quotient."""
    seats = dict.fromkeys(sizes, 0)
    for _ in range(min(limit, sum(sizes.values()))):
        open_to = [name for name in sizes if seats[name] < sizes[name]]
        none = [name for name in open_to if not seats[name]]
        chosen = max(none or open_to, key=lambda name: sizes[name] / (2 * seats[name] + 1))
        seats[chosen] += 1
    return seats


def _shuffled(name: str) -> bytes:
    return hashlib.sha1(name.encode(), usedforsecurity=False).digest()


def artist_leaks(table: pa.Table) -> list[Leak]:
    """Find the artists that occur in more than one split.

    Artists are identified by id, then by name, regardless of case and spacing. A name is listed only where it is in a
    split that none of its listed ids is in.

    Parameters
    ----------
    table
        A tracks table; its columns ``split``, ``artist_id`` and ``artist_name`` are read.

    Returns
    -------
    list of Leak
        Leaks by id first, each kind sorted by name.
    """
    by_id: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    by_name: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    import pyarrow as pa  # here, because training asks this module for the splits' names where there is no pyarrow

    table = table.select(["split", "artist_id", "artist_name"])
    table = table.filter(pa.array(_scattered(table, "artist_id") | _scattered(table, "artist_name")))
    for row in table.to_pylist():
        if (row["artist_id"] or "").strip():
            by_id[row["artist_id"]].append(row)
        if name := same_name(row["artist_name"] or ""):
            by_name[name].append(row)
    listed = {artist: leak for artist, rows in by_id.items() if len((leak := _where("id", rows))["splits"]) > 1}
    leaks = list(listed.values())
    for rows in by_name.values():
        leak = _where("name", rows)
        known = [listed[row["artist_id"]]["splits"] for row in rows if row["artist_id"] in listed]
        if len(leak["splits"]) > 1 and not any(leak["splits"].keys() <= splits.keys() for splits in known):
            leaks.append(leak)
    return sorted(leaks, key=lambda leak: (leak["by"], same_name(leak["artist_name"] or ""), leak["artist_id"] or ""))


def _scattered(table: pa.Table, name: str) -> NDArray[np.bool_]:
    """Whether a row's artist, by this column, is in more than one split, for each row [shape=(rows,)]."""
    import pyarrow as pa
    import pyarrow.compute as pc

    artists = pc.dictionary_encode(table[name].combine_chunks())
    groups: dict[str, int] = {}
    names = map(same_name, artists.dictionary.to_pylist())
    group_of = np.array([groups.setdefault(artist, len(groups)) for artist in names], np.int64)
    seen = np.zeros((len(groups), len(SPLITS)), bool)
    known: NDArray[np.bool_] = artists.is_valid().to_numpy(zero_copy_only=False)
    group = group_of[artists.indices.drop_null()]
    split = pc.index_in(table["split"], value_set=pa.array(SPLITS)).to_numpy()
    seen[group, split[known]] = True
    known[known] = (seen.sum(1) > 1)[group]
    return known


def _where(by: str, rows: list[dict[str, Any]]) -> Leak:
    """One artist and the splits its clips are in."""
    counts = Counter(row["split"] for row in rows)
    return {
        "by": by,
        "artist_id": ", ".join(sorted({row["artist_id"] for row in rows if row["artist_id"]})) or None,
        "artist_name": min((row["artist_name"] for row in rows if row["artist_name"]), default=None),
        "splits": {split: counts[split] for split in SPLITS if counts[split]},
    }


def gaps(table: pa.Table, genres: Sequence[str]) -> list[str]:
    """Say which genres a split lacks: a model cannot learn or is not measured on them.

    Parameters
    ----------
    table
        A tracks table; its columns ``split`` and ``genre`` are read.
    genres
        All genres of the collection.

    Returns
    -------
    list of str
        A line, for a person, for each split that lacks some or all genres.
    """
    found = table.group_by(["split", "genre"]).aggregate([])
    there = set(zip(found["split"].to_pylist(), found["genre"].to_pylist(), strict=True))
    lines = []
    for split in SPLITS:
        lacking = [genre for genre in genres if (split, genre) not in there]
        if len(lacking) == len(genres):
            lines.append(f"{split} has no clips")
        elif lacking:
            more = f" and {len(lacking) - NAMED} more genres" if len(lacking) > NAMED else ""
            consequence = ", which no model can learn then" if split == "training" else ""
            lines.append(f"{split} has no clips of {', '.join(lacking[:NAMED])}{more}{consequence}")
    return lines


def leak_message(leaks: Sequence[Leak], *, most: int = NAMED) -> str:
    """One line that names the artists in more than one split.

    Parameters
    ----------
    leaks
        As ``artist_leaks`` returns them.
    most
        How many to name; the others are counted.
    """
    if not leaks:
        return "no artist is in more than one split"

    def who(leak: Leak) -> str:
        name = " ".join((leak["artist_name"] or f"artist id {leak['artist_id']}").split())
        same = ", by name" if leak["by"] == "name" else ""
        return f"{name} ({', '.join(f'{split} {clips}' for split, clips in leak['splits'].items())}{same})"

    count = "1 artist is" if len(leaks) == 1 else f"{len(leaks)} artists are"
    more = f"; and {len(leaks) - most} more" if len(leaks) > most else ""
    return f"{count} in more than one split: {'; '.join(who(leak) for leak in leaks[:most])}{more}"
