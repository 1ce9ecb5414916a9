"""Small feature sets, written in a moment by the product's own writers."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from mgc.audio.logmel import LogMelSpec
from mgc.core.storage import Folder
from mgc.features import shards
from mgc.features.feature_set import FeatureSet
from mgc.features.layout import FORMAT, MANIFEST, SCHEMA, SHARDS, Manifest, parquet_bytes
from mgc.features.plan import Recipe

GENRES = ("Blues", "Folk", "Jazz", "Rock")


SPEC = LogMelSpec(seconds=0.75)
"""33 frames of 128 bands: enough for four poolings, and a fit takes a second."""


def make_features(path: Path, *, leaks: tuple[dict, ...] = (), seed: int = 0) -> FeatureSet:
    """Write a small feature set by the product's own writers."""
    generator = np.random.default_rng(seed)
    folder = Folder.at(path)
    folder.make(SHARDS)
    entries, counts, track_id = [], {}, 0
    for split, clips in (("training", 44), ("validation", 12), ("test", 13)):
        rows = []
        for index in range(clips):
            label = index % len(GENRES)
            mel = generator.normal(size=SPEC.shape) + _texture(label, generator.uniform(0, 2 * np.pi))
            rows.append(
                {
                    "track_id": track_id,
                    "split": split,
                    "genre": GENRES[label],
                    "label": label,
                    "artist_id": str(track_id),
                    "path": f"{track_id:06d}.mp3",
                    "license": "unknown",
                    "source_sha1": f"{track_id:040x}",
                    "seconds": SPEC.seconds,
                    "promised_seconds": SPEC.seconds,
                    "damaged": False,
                    "padded": False,
                    "mean_db": -30.0,
                    "std_db": 10.0,
                    "logmel": mel.astype("<f2").tobytes(),
                }
            )
            track_id += 1
        file = f"{SHARDS}/{split}-00000-of-00001.parquet"
        metadata = {shards.FINGERPRINT_KEY: b"f" * 64, shards.QUARANTINE_KEY: b"[]"}
        folder.write(file, parquet_bytes(pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(metadata))))
        record = shards.read_record(folder, file)
        entries.append(record.entry)
        counts[split] = record.genres
    manifest = Manifest(FORMAT, "f" * 64, Recipe(spec=SPEC).to_dict(), GENRES, counts, {}, leaks, tuple(entries))
    (path / MANIFEST).write_text(manifest.to_json())
    return FeatureSet(folder, manifest)


def _texture(label: int, phase: float) -> np.ndarray:
    """What a genre looks like: nothing, stripes in frequency, in time, or across."""
    band, frame = np.indices(SPEC.shape)
    return (0, 1.5 * np.sin(band + phase), 1.5 * np.sin(frame + phase), 1.5 * np.sin(band + frame + phase))[label]


SHARDED_SPEC = LogMelSpec(seconds=0.4, n_mels=12)
"""12 bands, 18 frames."""


def make_sharded(path, *, spec=SHARDED_SPEC, artist=str, genre=None, values=None, seed=0, **sizes):
    """Write a set of shards of the given sizes, by split, with the product's own writers.

    Without ``genre`` (of a track id: its label) and ``values`` (of a track id: its spectrogram) both are drawn.
    """
    generator = np.random.default_rng(seed)
    folder = Folder.at(path)
    folder.make(SHARDS)
    entries, counts, track_id = [], {}, 100
    for split, rows_of_shards in sizes.items():
        for number, count in enumerate(rows_of_shards):
            rows = []
            for _ in range(count):
                label = genre(track_id) if genre else int(generator.integers(len(GENRES)))
                mel = values(track_id) if values else generator.normal(size=spec.shape) + label
                rows.append(
                    dict.fromkeys(("seconds", "promised_seconds", "mean_db", "std_db"), 1.0)
                    | dict.fromkeys(("damaged", "padded"), False)
                    | {"track_id": track_id, "split": split, "genre": GENRES[label], "label": label}
                    | {"artist_id": artist(track_id), "path": f"{track_id}.mp3", "source_sha1": "0" * 40}
                    | {"license": "CC0-1.0"}
                    | {"logmel": mel.astype("<f2").tobytes()}
                )
                track_id += 1
            file = f"{SHARDS}/{split}-{number:05d}-of-{len(rows_of_shards):05d}.parquet"
            metadata = {shards.FINGERPRINT_KEY: b"f" * 64, shards.QUARANTINE_KEY: b"[]"}
            folder.write(file, parquet_bytes(pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(metadata))))
            record = shards.read_record(folder, file)
            entries.append(record.entry)
            counts[split] = {
                name: counts.get(split, {}).get(name, 0) + record.genres.get(name, 0)
                for name in counts.get(split, {}).keys() | record.genres.keys()
            }
    manifest = Manifest(FORMAT, "f" * 64, Recipe(spec=spec).to_dict(), GENRES, counts, {}, (), tuple(entries))
    (folder.path / MANIFEST).write_text(manifest.to_json())
    return FeatureSet.open(folder)
