"""Damaged clips, hostile tables and hostile Parquet files, through the product's own readers.

    PYTHONPATH=tests python -m helpers.fuzz [--clips CLIP.mp3 …] [--runs 20000] [--seed 0] [--only clips] [--keep DIR]

- **clips** go through ``mgc.features.shards.write``: each must become a row of finite numbers or a quarantine row.
- **tables**, a CSV file and FMA's tracks.csv, go through ``read_tracks``, which reads them or says in one line why not.
- **sets**: plan, quarantine, manifest and shards of a feature set go through what reads them, which must do the same.

Readers run in child processes with a limit of time and of memory. The same seed and clips give the same files;
``--keep`` keeps those that were a finding.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import resource
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from helpers import sounds
from helpers.damage import CELLS, OF_CLIPS, OF_PARQUET, OF_TEXT, damaged, hostile_json, hostile_parquet
from helpers.wav_sets import GENRES, finish
from helpers.wav_sets import tracks as wav_tracks
from mgc.audio.logmel import LogMelSpec
from mgc.collection.tracks import SCHEMA as TRACKS
from mgc.collection.tracks import read_tracks
from mgc.core.errors import MgcError, Reason, first_line
from mgc.core.storage import Folder
from mgc.features import child_process, decoding, shards
from mgc.features.feature_set import FeatureSet
from mgc.features.layout import SHARDS
from mgc.features.plan import Plan, Recipe, with_sizes
from mgc.features.verify import verify

BAD = {"training/Folk-1.wav": b"", "training/Jazz-0.wav": b"no sound"}
RECIPE = Recipe(spec=LogMelSpec(seconds=3.0), min_seconds=0.5)
WRITTEN_SECONDS = 4.0
"""Of a clip, as which it is written in all formats that the decoder knows."""
NEVER = (Reason.FAILED, Reason.TIMED_OUT)
"""Reasons that no damage may end with. A decoder may crash: that is what the child is for."""
BATCH = 64


@dataclass
class Tally:
    """What became of the files of one kind."""

    outcomes: Counter = field(default_factory=Counter)
    findings: list = field(default_factory=list)
    seconds: float = 0.0
    memory: int = 0
    """Bytes of the largest child of this process so far."""

    def __str__(self):
        counts = ", ".join(f"{count} {name}" for name, count in self.outcomes.most_common())
        head = f"{sum(self.outcomes.values())} in {self.seconds:.0f} s, no child above {self.memory >> 20} MB: {counts}"
        return "\n".join([head, *(f"  FOUND {line}" for line in self.findings)])

    def finding(self, line, data, keep):
        self.findings.append(line)
        if keep:
            keep.mkdir(parents=True, exist_ok=True)
            (keep / line.partition(":")[0].replace(" ", "-")).write_bytes(data)


def fuzz(kind, files, *, runs, seed=0, limit=10.0, keep=None, start=0):
    """Try ``runs`` files of a kind of ``KINDS``, of which ``limit`` is the seconds of one."""
    tally, begin = Tally(), time.monotonic()
    for first in range(start, start + runs, BATCH):
        KINDS[kind](files, range(first, min(first + BATCH, start + runs)), seed, limit, tally, keep)
    tally.seconds = time.monotonic() - begin
    tally.memory = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return tally


# Clips


def clips_of(paths):
    """The bytes of clips: as they are, and their beginning in every format that the decoder knows."""
    files = [path.read_bytes() for path in paths]
    if paths:
        samples, rate = soundfile.read(paths[0], frames=int(WRITTEN_SECONDS * 44_100), dtype="float32")
    else:
        samples, rate = sounds.stereo(44_100, WRITTEN_SECONDS), 44_100
    for kind in soundfile.available_formats():
        for subtype in soundfile.available_subtypes(kind):
            for data in (samples, samples[:, 0] if samples.ndim == 2 else samples):
                written = io.BytesIO()
                try:
                    soundfile.write(written, data, rate, format=kind, subtype=subtype)
                except (soundfile.SoundFileError, ValueError, TypeError, AssertionError):
                    continue
                files.append(written.getvalue())
                break
    return files


def _try_clips(files, numbers, seed, limit, tally, keep):
    with tempfile.TemporaryDirectory() as folder:
        root, out, made, rows = Folder.at(folder), Folder.at(f"{folder}/set"), {}, []
        for number in numbers:
            data, how = damaged(files, OF_CLIPS, seed, number)
            made[number] = data, how
            Path(folder, f"{number}.mp3").write_bytes(data)
            row = {"track_id": number, "path": f"{number}.mp3", "genre": "a", "label": 0, "split": "training"}
            rows.append(row | {"artist_id": "a", "artist_name": "a", "license": "CC0-1.0"})
        plan = Plan.of(with_sizes(pa.Table.from_pylist(rows, schema=TRACKS), root), RECIPE)
        out.make(SHARDS)
        for shard in plan.shards:
            record = shards.write(shard, root, out, recipe=RECIPE, clip_timeout=limit)
            assert record == shards.read_record(out, shard.file)
            table = pq.read_table(f"{out}/{shard.file}")
            tally.outcomes["features"] += len(table)
            z = np.frombuffer(b"".join(table["logmel"].to_pylist()), "<f2")
            finite = np.isfinite(z).all() and len(z) == len(table) * math.prod(RECIPE.spec.shape)
            if not finite or not np.isfinite([table[n].to_numpy() for n in ("seconds", "mean_db", "std_db")]).all():
                tally.finding(f"clips {numbers[0]} and on: a row is not finite, seed {seed}", b"", keep)
            for row in record.quarantined:
                data, how = made[row["track_id"]]
                tally.outcomes[row["reason"]] += 1
                if row["reason"] in NEVER or len(row["detail"].splitlines()) != 1:
                    line = f"clip {row['track_id']}: {row['reason']}, {row['detail']} ({how}, seed {seed})"
                    tally.finding(line, data, keep)
                elif row["reason"] == Reason.CRASHED:
                    tally.outcomes[f"({row['detail']})"] += 0
            done = sorted([*table["track_id"].to_pylist(), *(row["track_id"] for row in record.quarantined)])
            if done != sorted(shard.clips["track_id"].to_pylist()):
                tally.finding(f"clips {numbers[0]} and on: not each is there once, seed {seed}", b"", keep)


# Tables and feature sets


def _read(item, readers):
    """How reading ended: what an ``MgcError`` of one line says is an answer, any other exception a finding."""
    name, place = item
    try:
        readers[name](place)
    except MgcError as error:
        return "refused" if len(str(error).splitlines()) == 1 else f"FOUND {name}: not one line: {error!r}"
    except MemoryError:
        return f"FOUND {name}: MemoryError"
    except Exception as error:
        return f"FOUND {name}: {type(error).__name__}: {first_line(error)}"
    return "read"


def _answers(items, readers, limit, tally, made, keep, what):
    found = child_process.each(partial(_read, readers=readers), items, seconds=limit, memory=decoding.CLIP_MEMORY)
    for (_, place), answer in zip(items, found, strict=True):
        data, how = made[place]
        said = f"FOUND {answer.how}, {answer.detail}" if isinstance(answer, child_process.Lost) else answer
        tally.outcomes[said if not said.startswith("FOUND") else "found"] += 1
        if said.startswith("FOUND"):
            tally.finding(f"{what} {Path(place).name}: {said.removeprefix('FOUND ')} ({how})", data, keep)


def tables():
    """A CSV file and a small tracks.csv of FMA, as bytes."""
    own, fma = io.StringIO(), io.StringIO()
    rows = [("path", "genre", "split", "artist", "title", "duration")]
    splits = ("training", "validation", "test")
    rows += [(f"{i % 3}/{i}.mp3", GENRES[i % 3], splits[i % 3], f"Artist {i}", f"a, {i}", f"{i}.5") for i in range(20)]
    csv.writer(own).writerows(rows)
    top = ("", "track", "set", "set", "artist", "artist", "track", "track")
    names = ("", "genre_top", "split", "subset", "id", "name", "title", "duration")
    csv.writer(fma).writerows([top, names, ("track_id", *[""] * 7)])
    cells = [(i, GENRES[i % 3], splits[i % 3], "small", i, f"Artist\n{i}", f"a, {i}", i * 9) for i in range(1, 20)]
    csv.writer(fma).writerows(cells)
    return [own.getvalue().encode(), fma.getvalue().encode()]


def _hostile_table(text, seed, number):
    """A table with some cells changed, or with its bytes damaged, or both."""
    random = np.random.default_rng([seed, number, 1])
    rows, how = list(csv.reader(io.StringIO(text.decode()))), ""
    for _ in range(int(random.integers(0, 6))):
        row = rows[random.integers(len(rows))]
        cell = CELLS[random.integers(len(CELLS))]
        row[random.integers(len(row))] = cell
        how += f"cell {cell[:20]!r}, "
    written = io.StringIO()
    csv.writer(written).writerows(rows)
    data = written.getvalue().encode(
        ("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1")[number % 6], "replace"
    )
    if random.random() < 0.5:
        data, more = damaged([data], OF_TEXT, seed, number)
        how += more
    return data, how


def _try_tables(files, numbers, seed, limit, tally, keep):
    with tempfile.TemporaryDirectory() as folder:
        made, items = {}, []
        for number in numbers:
            of_fma = number % 2
            data, how = _hostile_table(files[of_fma], seed, number)
            place = f"{folder}/{number}" + ("" if of_fma else ".csv")
            file = Path(place, "fma_metadata/tracks.csv") if of_fma else Path(place)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            made[place] = data, f"{how}, seed {seed}"
            items.append(("read_tracks", place))
        _answers(items, {"read_tracks": _collection}, limit, tally, made, keep, "table")


def _collection(place):
    tracks = read_tracks(place)
    table = with_sizes(tracks.table, tracks.audio_root)
    assert Plan.of(table, RECIPE).fingerprint
    assert all(label in range(len(tracks.genres)) for label in table["label"].to_pylist())


def finished_set():
    """The files of a small finished set, by name."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = replace(RECIPE, spec=LogMelSpec(seconds=0.5, n_mels=16), min_seconds=0.2, clips_per_shard=4)
        table = wav_tracks(Path(folder, "clips"), {"training": 2, "validation": 1, "test": 1}, bad=BAD)
        made = finish(Plan.of(table, recipe), Path(folder, "clips"), Folder.at(f"{folder}/set"))
        return {
            file.relative_to(made.folder.path).as_posix(): file.read_bytes() for file in made.folder.path.rglob("*.*")
        }


def _read_plan(place):
    """As a preprocessing that goes on: shards that are written are read as records."""
    plan = Plan.read(Folder.at(place))
    for shard in plan.shards:
        if shards.is_written(Folder.at(place), shard):
            shards.read_record(Folder.at(place), shard.file)


def _read_set(place):
    feature_set = FeatureSet.open(place)
    feature_set.to_pandas(spectrograms=True)
    for split in ("training", "validation", "test"):
        feature_set.torch_dataset(split)[0]


READERS = {"verify": verify, "plan": _read_plan, "set": _read_set}


def _try_sets(files, numbers, seed, limit, tally, keep):
    """Damage one file of a set; ``files`` is what ``finished_set`` gives."""
    with tempfile.TemporaryDirectory() as folder:
        names = sorted(name for name in files if name.endswith((".parquet", ".json")))
        made, items = {}, []
        for number in numbers:
            place = Path(folder, str(number))
            (place / SHARDS).mkdir(parents=True)
            name = names[number % len(names)]
            random = np.random.default_rng([seed, number, 2])
            if random.random() < 0.5:
                data, how = damaged([files[name]], OF_PARQUET, seed, number)
            elif name.endswith(".json"):
                data, how = hostile_json(files[name], random), "hostile"
            else:
                data, how = hostile_parquet(files[name], random), "hostile"
            for other, whole in files.items():
                (place / other).write_bytes(data if other == name else whole)
            made[str(place)] = data, f"{name} {how}, seed {seed}"
            items += [(reader, str(place)) for reader in READERS]
        _answers(items, READERS, limit, tally, made, keep, "set")


KINDS = {"clips": _try_clips, "tables": _try_tables, "sets": _try_sets}


def main():
    """Try all kinds, print what was found; exit with 1 where something was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", nargs="*", type=Path, default=[])
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=10.0)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    files = {"clips": lambda: clips_of(given.clips), "tables": tables, "sets": finished_set}
    found = 0
    for kind in [given.only] if given.only else KINDS:
        options = {
            "runs": given.runs,
            "seed": given.seed,
            "limit": given.limit,
            "keep": given.keep,
            "start": given.start,
        }
        tally = fuzz(kind, files[kind](), **options)
        print(f"{kind}: {tally}", flush=True)
        found += len(tally.findings)
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
