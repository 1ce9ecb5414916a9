"""Splits: drawing them where a collection has none, and finding artists that are in more than one.

An artist in two splits lets a model recognise the artist instead of the genre; on FMA that is worth about 13 points.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

SPLITS = ("training", "validation", "test")
_TENTHS = {"training": 8, "validation": 1, "test": 1}


def draw_splits(
    groups: Sequence[str], genres: Sequence[str], seed: int, known: Mapping[str, str] | None = None
) -> list[str]:
    """Draw a split for each clip: 80/10/10 within each genre, all clips of a group in one split.

    Genre by genre, the one of fewest groups first, the groups are shuffled by a hash of seed, genre and name (so
    neither the clips' order nor a library's random numbers matter), the large ones before the small, and each goes
    where most clips are lacking. Groups of one clip come out exact: 100 clips of a genre are 80, 10 and 10.

    Parameters
    ----------
    groups
        A name a clip: its artist, or something of its own.
    genres
        A genre a clip. A group may have clips of several; it goes where the first of them puts it.
    seed
        Another seed shuffles otherwise.
    known
        Splits of groups that have one already.

    Returns
    -------
    list[str]
        One of ``SPLITS`` a clip. A genre of three or more groups is in all three splits (unless other genres
        have dealt its groups away already), one of fewer may be in training alone.
    """
    clips: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for group, genre in zip(groups, genres, strict=True):
        clips[genre][group] += 1
    drawn = dict(known or {})
    for genre in sorted(clips, key=lambda name: (len(clips[name]), name)):
        _deal(clips[genre], f"{seed}/{genre}", drawn)
    return [drawn[group] for group in groups]


def _deal(sizes: Counter[str], salt: str, drawn: dict[str, str]) -> None:
    """Add the groups of one genre to ``drawn``, reckoning with those that are there already."""
    filled: Counter[str] = Counter()
    for group in drawn.keys() & sizes.keys():
        filled[drawn[group]] += sizes[group]

    def shuffled(group: str) -> tuple[int, bytes]:
        return -sizes[group], hashlib.sha1(f"{salt}/{group}".encode(), usedforsecurity=False).digest()

    def lacking(split: str) -> int:
        return _TENTHS[split] * sizes.total() - 10 * filled[split]

    waiting = sorted(sizes.keys() - drawn.keys(), key=shuffled)
    for left, group in zip(range(len(waiting), 0, -1), waiting, strict=True):
        empty = [split for split in SPLITS if not filled[split]]
        last_chance = len(sizes) >= len(SPLITS) and left <= len(empty)
        drawn[group] = max(empty if last_chance else SPLITS, key=lacking)
        filled[drawn[group]] += sizes[group]


def artist_leaks(table: pa.Table) -> list[dict[str, Any]]:
    """Find the artists that occur in more than one split.

    Artists are told apart by id, then by name, without regard to case and spacing. A name is listed only where
    it reaches a split that none of its ids, listed already, does.

    Returns
    -------
    list[dict]
        ``{"by": "id" | "name", "artist_id", "artist_name", "splits": {split: clips}}``, those by id first, each by
        name. ``artist_id`` of a leak by name is every id of that name, joined by commas.
    """
    by_id: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    by_name: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in table.select(["split", "artist_id", "artist_name"]).to_pylist():
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


def _where(by: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One artist and the splits its clips are in."""
    counts = Counter(row["split"] for row in rows)
    return {
        "by": by,
        "artist_id": ", ".join(sorted({row["artist_id"] for row in rows if row["artist_id"]})) or None,
        "artist_name": min((row["artist_name"] for row in rows if row["artist_name"]), default=None),
        "splits": {split: counts[split] for split in SPLITS if counts[split]},
    }


def same_name(name: str) -> str:
    """What two spellings of one name have in common."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())


def leak_message(leaks: Sequence[dict[str, Any]], *, most: int = 5) -> str:
    """One line that names the artists of ``artist_leaks``: the first ``most``, and how many more there are."""
    if not leaks:
        return "no artist is in more than one split"

    def who(leak: dict[str, Any]) -> str:
        name = " ".join((leak["artist_name"] or f"artist id {leak['artist_id']}").split())
        same = ", by name" if leak["by"] == "name" else ""
        return f"{name} ({', '.join(f'{split} {clips}' for split, clips in leak['splits'].items())}{same})"

    count = "1 artist is" if len(leaks) == 1 else f"{len(leaks)} artists are"
    more = f"; and {len(leaks) - most} more" if len(leaks) > most else ""
    return f"{count} in more than one split: {'; '.join(who(leak) for leak in leaks[:most])}{more}"
