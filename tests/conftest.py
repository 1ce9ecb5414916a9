"""What tests share: one Ray session, one MLflow store, real music, and a small feature set that is quick to learn."""

import os
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mgc import shards
from mgc.features import FORMAT, MANIFEST, SCHEMA, SHARDS, FeatureSet, Manifest, parquet_bytes
from mgc.folder import Folder
from mgc.logmel import LogMelSpec
from mgc.plan import Recipe

SHARED = Path(__file__).parents[2] / "shared" / "data"
GENRES = ("Blues", "Folk", "Jazz", "Rock")
SPEC = LogMelSpec(seconds=0.75)
"""33 frames of 128 bands: enough for four poolings, and a fit takes a second."""


RAY_FILES = pytest.StashKey[set[Path]]()
"""Files with a test that needs Ray."""


def pytest_collection_modifyitems(config, items):
    """Forking goes first, then files that need Ray, then those that hold slow tests.

    test_isolation counts what its own process has open, which Ray adds to. The slow ones early let neither of two
    processes end long after the other.
    """
    ray = config.stash[RAY_FILES] = {item.path for item in items if "ray_session" in item.fixturenames}
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.name != "test_isolation.py", item.path not in ray, item.path not in slow))


def pytest_runtest_setup(item):
    """Leave Ray before the first file that does not need it.

    Those files fork, and a process that forks while it is a Ray driver may wait for ever in its next call: Ray gives
    gRPC's fork support to its workers, not to its drivers (ray-project/ray#65984). mgc forks in workers only.
    """
    if item.path not in item.config.stash[RAY_FILES] and "ray" in sys.modules:
        sys.modules["ray"].shutdown()


@pytest.fixture(scope="session", autouse=True)
def working_directory(tmp_path_factory):
    """A directory of its own for the whole session: its ``mlflow_runs`` is every test's default store."""
    before = Path.cwd()
    folder = tmp_path_factory.mktemp("work")
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ.pop("RAY_ADDRESS", None)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="session")
def ray_session(working_directory):
    """The one Ray session, on this machine's two CPUs, until a file does without."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def shared(name: str) -> Path:
    """A folder of real data, or skip the test."""
    if not (SHARED / name).exists():
        pytest.skip(f"real data {name} is not on this machine")
    return SHARED / name


@pytest.fixture(scope="session")
def mini() -> Path:
    """120 real clips of eight game soundtracks, in FMA's layout."""
    return shared("soundtrack8-mini")


@pytest.fixture(scope="session")
def odd_mp3() -> Path:
    """13 odd and broken files."""
    return shared("odd_mp3")


@pytest.fixture(scope="session")
def fma_clip() -> Path:
    """The one real FMA clip."""
    return shared("fma_real") / "000002.mp3"


@pytest.fixture(scope="session")
def features(tmp_path_factory) -> FeatureSet:
    """A finished feature set of four genres: noise with stripes; 44/12/13 clips (13 is prime)."""
    return make_features(tmp_path_factory.mktemp("features") / "set")


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
    manifest = Manifest(FORMAT, "f" * 64, asdict(Recipe(spec=SPEC)), GENRES, counts, {}, leaks, tuple(entries))
    (path / MANIFEST).write_text(manifest.to_json())
    return FeatureSet(folder, manifest)


def _texture(label: int, phase: float) -> np.ndarray:
    """What a genre looks like: nothing, stripes in frequency, in time, or across."""
    band, frame = np.indices(SPEC.shape)
    return (0, 1.5 * np.sin(band + phase), 1.5 * np.sin(frame + phase), 1.5 * np.sin(band + frame + phase))[label]
