"""Feature sets of WAV files, made without Ray."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import soundfile

from mgc.audio.logmel import LogMelSpec
from mgc.collection.splits import artist_leaks
from mgc.collection.tracks import SCHEMA as TRACKS
from mgc.core.storage import Folder
from mgc.features import shards
from mgc.features.card import dataset_card
from mgc.features.croissant import croissant
from mgc.features.feature_set import FeatureSet
from mgc.features.layout import CARD, CROISSANT, FORMAT, MANIFEST, QUARANTINE, SHARDS, Manifest, parquet_bytes
from mgc.features.plan import Recipe, with_sizes

RATE = 22_050


SPEC = LogMelSpec(seconds=0.5)


RECIPE = Recipe(spec=SPEC, min_seconds=0.2, clips_per_shard=4)


GENRES = ("Folk", "Jazz", "Rock")


LICENCES = ("CC-BY-4.0", "Attribution-NonCommercial 3.0 International", "unknown")
"""Licences of the clips, in turn."""


BAD = {"training/Folk-3.wav": b"", "training/Jazz-2.wav": b"no sound", "validation/Rock-0.wav": b""}
"""Clips that end in quarantine."""


def tracks(root, counts, genres=GENRES, seconds=0.55, bad=None):
    """Make so many clips a genre in each split, as WAV files, and their tracks table."""
    generator, rows = np.random.default_rng(0), []
    for split, count in counts.items():
        (root / split).mkdir(parents=True, exist_ok=True)
        for label, genre in enumerate(genres):
            for index in range(count):
                path = f"{split}/{genre.replace('/', '')}-{index}.wav"
                samples = generator.normal(0, 0.02 * 2**label, round(RATE * seconds))
                soundfile.write(root / path, samples, RATE)
                if path in (bad or {}):
                    (root / path).write_bytes(bad[path])
                row = {"track_id": 100 + len(rows), "path": path, "genre": genre, "label": label, "split": split}
                row |= {"artist_id": f"a{len(rows)}", "artist_name": f"Artist {len(rows)}"}
                rows.append(row | {"license": LICENCES[len(rows) % len(LICENCES)]})
    return with_sizes(pa.Table.from_pylist(rows, schema=TRACKS), Folder.at(root))


def finish(plan, root, out):
    """Write the set of a plan by the product's own writers, as ``mgc preprocess`` does, without Ray."""
    out.make(SHARDS)
    plan.write(out)
    records = [
        shards.read_record(out, shard.file)
        if shards.is_written(out, shard)
        else shards.write(shard, Folder.at(root), out, recipe=plan.recipe, clip_timeout=60)
        for shard in plan.shards
    ]
    out.write(QUARANTINE, parquet_bytes(shards.quarantine(records)))
    manifest = Manifest(
        format=FORMAT,
        fingerprint=plan.fingerprint,
        recipe=plan.recipe.to_dict(),
        genres=tuple(sorted(set(plan.clips["genre"].to_pylist()))),
        artist_leaks=tuple(artist_leaks(plan.clips)),
        shards=tuple(record.entry for record in records),
        **shards.totals(records),
    )
    out.write(CROISSANT, croissant(manifest).encode())
    out.write(CARD, dataset_card(manifest).encode())
    out.write(MANIFEST, manifest.to_json().encode())
    return FeatureSet.open(out)
