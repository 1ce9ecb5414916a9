"""Preprocessing and training with everything in an object store: the same bytes, and nothing lost, as on a disk."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from helpers.object_store import BUCKET, Store, contents

from mgc import cli
from mgc.collection import tracks
from mgc.collection.splits import SPLITS
from mgc.config import ModelConfig, TrainConfig
from mgc.core import lease
from mgc.core.errors import InputError
from mgc.core.progress import Progress
from mgc.core.storage import Folder
from mgc.dataset import clips
from mgc.features import preprocess as module
from mgc.features import shard_tasks
from mgc.features.feature_set import FeatureSet
from mgc.features.layout import MANIFEST, PLAN
from mgc.features.preprocess import preprocess
from mgc.features.verify import verify
from mgc.tracking.store import client, open_store
from mgc.training.train import train

CLIPS = 15
OPTIONS = {"clips_per_shard": 4, "max_quarantined": 0.1, "min_seconds": 1.0}
FLAGS = [word for name, value in OPTIONS.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture(scope="module")
def store():
    store = Store()
    yield store
    store.server.stop()


def noise(seed):
    data = io.BytesIO()
    soundfile.write(data, np.random.default_rng(seed).uniform(-0.5, 0.5, 24_000), 16_000, format="WAV")
    return data.getvalue()


@pytest.fixture(scope="module")
def collection(store, tmp_path_factory):
    """Fifteen clips and a broken one as a CSV file, on the disk and, the same, in the store below ``clips``."""
    folder = tmp_path_factory.mktemp("collection")
    lines = ["path,genre,split,artist"]
    for i in range(CLIPS):
        path = f"{('folk', 'rock')[i % 2]}/{i}.wav"
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(noise(i))
        lines.append(f"{path},{('Folk', 'Rock')[i % 2]},{SPLITS[max(0, i - CLIPS + 3)]},artist {i}")
    (folder / "broken.mp3").write_bytes(b"this is no music")
    lines.append("broken.mp3,Rock,training,artist 99")
    (folder / "clips.csv").write_text("\n".join(lines))
    store.upload(folder, "clips")
    return folder / "clips.csv"


@pytest.fixture(scope="module")
def undisturbed(ray_session, collection, tmp_path_factory):
    """The files of the set that the collection becomes on a disk."""
    out = tmp_path_factory.mktemp("sets") / "set"
    result = preprocess(collection, out, **OPTIONS)
    assert (result.written, result.reasons) == (CLIPS, {"not_audio": 1})
    return contents(out)


@pytest.fixture
def finished(store, undisturbed, tmp_path):
    """The prefix of a finished set in the store, to be damaged."""
    prefix = f"{tmp_path.name}/set"
    for path, data in undisturbed.items():
        store.s3.put_object(Bucket=BUCKET, Key=f"{prefix}/{path}", Body=data)
    return prefix


@pytest.fixture
def no_ray(monkeypatch):
    def fail():
        raise AssertionError("Ray was started")

    monkeypatch.setattr(module, "connect", fail)


# The same set wherever its clips are and wherever it goes


def test_the_command_with_credentials_in_the_environment_makes_the_same_set(
    store, collection, undisturbed, tmp_path, no_ray
):
    """As a user types it, with a Ray of its own; then once more, with nothing to do."""
    words = ["--root", f"s3://{BUCKET}/clips/clips.csv", "--out", f"s3://{BUCKET}/typed/set", *FLAGS, "--json"]
    line = [sys.executable, "-m", "mgc.preprocess", *words]
    done = subprocess.run(
        line, env=store.environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["written"], result["quarantined"]) == (CLIPS, 1)
    assert result["features"] == f"s3://{BUCKET}/typed/set"
    assert store.contents("typed/set") == undisturbed

    before = store.times("typed")
    result = preprocess(store.uri("clips/clips.csv"), store.uri("typed/set"), **OPTIONS)
    assert (result.written, result.skipped, result.quarantined, result.run_id) == (0, CLIPS, 1, None)
    assert store.times("typed") == before


def test_clips_on_a_disk_become_a_set_in_the_store(store, ray_session, collection, undisturbed):
    assert preprocess(collection, store.uri("from-disk/set"), **OPTIONS).written == CLIPS
    assert store.contents("from-disk") == {f"set/{path}": data for path, data in undisturbed.items()}


def test_clips_in_the_store_become_a_set_on_a_disk_and_no_password_is_kept(
    store, ray_session, collection, undisturbed, tmp_path
):
    result = preprocess(store.uri("clips/clips.csv"), tmp_path / "set", **OPTIONS)
    assert contents(tmp_path) == {f"set/{path}": data for path, data in undisturbed.items()}
    run = client(open_store(Folder.at(tmp_path))).get_run(result.run_id)
    assert run.data.params["root"].startswith(f"s3://{BUCKET}/clips/clips.csv")
    assert "SECRET" not in str(run.to_dictionary())


def test_a_folder_per_genre_is_split_the_same_and_gets_new_clips_the_same(store, ray_session, tmp_path):
    """A disk lists a folder's files before the folders in it, the store by their whole names: no split may see that."""
    paths = [f"{genre}/{name}.wav" for genre in ("Folk", "Rock") for name in ("a", "disc 1/b", "disc 1/ä", "z", "é")]
    music, out = tmp_path / "music", store.uri("genres/set")
    for seed, path in enumerate(paths):
        (music / path).parent.mkdir(parents=True, exist_ok=True)
        (music / path).write_bytes(noise(seed))
    store.upload(music, "genres/music")
    preprocess(store.uri("genres/music"), out, **OPTIONS)
    before = store.contents("genres/set")
    preprocess(music, tmp_path / "set", **OPTIONS)
    assert before == contents(tmp_path / "set")
    assert len(before) > 4

    for seed, path in enumerate(["Folk/0.wav", "Rock/disc 2/zz.wav"], start=100):
        (music / path).parent.mkdir(parents=True, exist_ok=True)
        (music / path).write_bytes(noise(seed))
    store.upload(music, "genres/music")
    result = preprocess(store.uri("genres/music"), out, **OPTIONS)
    assert (result.written, result.skipped) == (2, len(paths))
    after = store.contents("genres/set")
    shards = {path: data for path, data in before.items() if path.startswith("shards/")}
    assert shards.items() < after.items()
    rows = [row for split in SPLITS if split in _splits(out) for row in clips.load(FeatureSet.open(out), split).paths]
    assert len(rows) == len(set(rows)) == len(paths) + 2
    preprocess(music, tmp_path / "set", **OPTIONS)
    assert after == contents(tmp_path / "set")


def _splits(uri):
    return {entry.split for entry in FeatureSet.open(uri).manifest.shards if entry.rows}


def test_fma_in_the_store_is_read_as_on_a_disk(store, tmp_path):
    """Four tracks, one without its file, another of no genre and another of a larger subset."""
    header = [["", "set", "set", "artist", "artist", "track"], ["", "split", "subset", "id", "name", "genre_top"]]
    rows = [[str(i), SPLITS[i % 3], "small", str(i), f"artist {i}", ("Folk", "Rock")[i % 2]] for i in range(1, 5)]
    rows += [["5", "training", "small", "5", "artist 5", ""], ["6", "training", "large", "6", "artist 6", "Jazz"]]
    table = "\n".join(",".join(row) for row in [*header, ["track_id", "", "", "", "", ""], *rows])
    for path in ("fma_metadata/tracks.csv", *(f"fma_small/000/{i:06d}.mp3" for i in (1, 3, 4))):
        (tmp_path / "fma" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fma" / path).write_text(table if path.endswith("csv") else "music")
    store.upload(tmp_path / "fma", "fma")
    on_disk, there = tracks.read_tracks(tmp_path / "fma"), tracks.read_tracks(store.uri("fma"))
    assert there.table["track_id"].to_pylist() == [1, 2, 3, 4]
    assert there.table.equals(on_disk.table)
    assert there.left_out == on_disk.left_out == {"other_subset": 1, "no_genre": 1}
    assert there.audio_root.sizes(there.table["path"].to_pylist()) == [5, -1, 5, 5]
    store.s3.delete_object(Bucket=BUCKET, Key="fma/fma_metadata/tracks.csv")
    with pytest.raises(InputError, match=r"no fma_metadata/tracks\.csv"):
        tracks.read_tracks(store.uri("fma"))


def test_a_path_in_a_csv_is_the_same_clip_on_a_disk_and_in_the_store(store, tmp_path):
    (tmp_path / "my clips.csv").write_text("path,genre\n./a.wav,Folk\nb//c.wav,Folk\nb/../d.wav,Rock\n")
    (tmp_path / "a.wav").write_bytes(b"1")
    (tmp_path / "d.wav").write_bytes(b"22")
    store.upload(tmp_path, "odd")
    on_disk, there = tracks.read_tracks(tmp_path / "my clips.csv"), tracks.read_tracks(store.uri("odd/my%20clips.csv"))
    assert there.table.equals(on_disk.table)
    paths = there.table["path"].to_pylist()
    assert dict(zip(paths, there.audio_root.sizes(paths), strict=True)) == {"a.wav": 1, "b/c.wav": -1, "d.wav": 2}


# A set that is there


def test_a_set_in_the_store_is_read_and_verified(store, finished, undisturbed):
    uri = store.uri(finished)
    feature_set = FeatureSet.open(uri)
    loaded = {split: clips.load(feature_set, split) for split in SPLITS}
    assert [len(split) for split in loaded.values()] == [CLIPS - 2, 1, 1]
    shard = pq.read_table(pa.BufferReader(undisturbed[next(e.file for e in feature_set.manifest.shards)]))
    first = np.frombuffer(shard["logmel"][0].as_py(), "<f2").reshape(128, -1)
    np.testing.assert_array_equal(loaded["training"].mel_NFT[0], first)
    assert loaded["training"].track_ids_N[0] == shard["track_id"][0].as_py()
    found = verify(uri)
    assert (found.ok, found.clips) == (True, CLIPS)
    assert "SECRET" not in str(found)

    broken, gone = (entry.file for entry in feature_set.manifest.shards[:2])
    store.s3.put_object(Bucket=BUCKET, Key=f"{finished}/{broken}", Body=undisturbed[broken][:-1])
    store.s3.delete_object(Bucket=BUCKET, Key=f"{finished}/{gone}")
    assert {problem.file for problem in verify(uri).problems} == {broken, gone}
    with pytest.raises(InputError, match="cannot be read"):
        clips.load(feature_set, "training")


def test_what_is_lost_or_broken_is_written_again_and_no_more(store, ray_session, collection, finished, undisturbed):
    gone, half, *kept = sorted(path for path in undisturbed if path.startswith("shards/"))
    store.s3.delete_object(Bucket=BUCKET, Key=f"{finished}/{gone}")
    store.s3.put_object(Bucket=BUCKET, Key=f"{finished}/{half}", Body=undisturbed[half][:1000])
    before = store.times(finished)
    time.sleep(1)  # the store's clock shows seconds
    result = preprocess(store.uri("clips/clips.csv"), store.uri(finished), **OPTIONS)
    assert 0 < result.written < CLIPS
    assert store.contents(finished) == undisturbed
    after = store.times(finished)
    assert {path: after[f"{finished}/{path}"] for path in kept} == {path: before[f"{finished}/{path}"] for path in kept}


def test_a_set_of_another_recipe_or_without_its_plan_is_refused_as_it_is(store, collection, finished, no_ray):
    before = store.contents(finished)
    with pytest.raises(InputError, match=r"min_seconds was 1\.0, now 1\.2") as caught:
        preprocess(store.uri("clips/clips.csv"), store.uri(finished), **(OPTIONS | {"min_seconds": 1.2}))
    assert len(str(caught.value).splitlines()) == 1
    assert "SECRET" not in str(caught.value)
    store.s3.delete_object(Bucket=BUCKET, Key=f"{finished}/{PLAN}")
    with pytest.raises(InputError, match=f"{PLAN} is lost"):
        preprocess(store.uri("clips/clips.csv"), store.uri(finished), **OPTIONS)
    store.s3.delete_object(Bucket=BUCKET, Key=f"{finished}/{MANIFEST}")
    with pytest.raises(InputError, match="is not empty and holds no feature set"):
        preprocess(store.uri("clips/clips.csv"), store.uri(finished), **OPTIONS)
    assert before.items() - store.contents(finished).items() == {(path, before[path]) for path in (PLAN, MANIFEST)}


def test_a_model_is_trained_from_a_set_in_the_store(store, features):
    store.upload(features.folder.path, "small/set")
    result = train(store.uri("small/set"), TrainConfig(model=ModelConfig(channels=(4, 4)), epochs=1), gpus=0)
    assert Path(result.checkpoint).is_dir()
    run = client(open_store(features.folder)).get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mgc.features.path"].startswith(f"s3://{BUCKET}/small/set")
    assert "SECRET" not in str(run.to_dictionary())


# Killed

KILLED_AT = """
import os, signal, sys
from mgc.core import lease
from mgc.core.progress import Progress
from mgc.features.preprocess import preprocess
from mgc.core.storage import Folder
from mgc.tracking import runs, store
import ray.data

write = Folder.write


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def watched(self, name, data):
    if moment == f"before {name}":
        die()
    write(self, name, data)
    if moment == f"after {name}":
        die()


lease.DEAD_SECONDS = 6.0
for line in sys.stdin:  # a forked process each, because importing Ray takes seconds
    moment = line.strip()
    pid = os.fork()
    if pid == 0:
        Folder.write = watched
        if moment == "after a shard":
            Progress.advance = lambda *_: die()
        preprocess(sys.argv[1], sys.argv[2], workers=1, **eval(sys.argv[3]))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def test_a_driver_killed_at_any_moment_goes_on_and_leaves_nothing_else(
    store, ray_session, collection, undisturbed, monkeypatch
):
    """Killed with SIGKILL three times over one set, which then has exactly the objects of an undisturbed one."""
    root, out = store.uri("clips/clips.csv"), store.uri("killed/set")
    address = ray_session.get_runtime_context().gcs_address  # this session's Ray, because another takes long to start
    seen = []
    command = [sys.executable, "-c", KILLED_AT, root, out, repr(OPTIONS)]
    options = {"env": os.environ | {"RAY_ADDRESS": address}, "text": True, "bufsize": 1}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options) as driver:
        for moment in (f"after {PLAN}", "after a shard", f"before {MANIFEST}"):
            driver.stdin.write(f"{moment}\n")
            assert driver.stdout.readline() == "-9\n", moment
            now = store.contents("killed/set")
            assert now.items() <= undisturbed.items()  # what is there is whole and right
            seen.append(set(now))
            with pytest.raises(InputError, match="unfinished"):
                FeatureSet.open(out)
    shards = {path for path in undisturbed if path.startswith("shards/")}
    assert seen[0] == {PLAN}
    assert seen[1] & shards
    assert seen[2] == undisturbed.keys() - {MANIFEST}
    monkeypatch.setattr(lease, "DEAD_SECONDS", 6.0)
    monkeypatch.setattr(module, "connect", lambda: 1 / 0)  # all shards are there
    assert preprocess(root, out, **OPTIONS).written == 0
    assert store.contents("killed") == {f"set/{path}": data for path, data in undisturbed.items()}
    uploads = store.s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    assert [upload["Key"] for upload in uploads if upload["Key"].startswith("killed/")] == []


# A store that goes away


def interrupted(root, out, event, tmp_path, monkeypatch, capsys):
    """Run the command; ``event`` comes when a shard is done, and before the test split's is begun. What it says."""
    write, flag = shard_tasks.write_shard, tmp_path / "gone"

    def task(block, *, job):
        end = time.monotonic() + 60
        while block["split"][0].as_py() == "test" and not flag.exists() and time.monotonic() < end:
            time.sleep(0.05)
        return write(block, job=job)

    def advance(self, count):
        if not flag.exists():
            event()
            flag.touch()

    with monkeypatch.context() as patch:
        patch.setattr(shard_tasks, "write_shard", task)
        patch.setattr(Progress, "advance", advance)
        code = cli.run(["preprocess", "--root", root, "--out", out, *FLAGS])
    assert flag.exists()
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("mgc: preprocess: ")
    assert "SECRET" not in last
    assert code == 1
    return last


def test_a_bucket_that_is_deleted_half_way_fails_with_one_line_and_a_later_run_goes_on(
    store, ray_session, collection, undisturbed, tmp_path, monkeypatch, capsys
):
    store.s3.create_bucket(Bucket="volatile")
    kept = {}

    def delete():
        """As long as a task writes into it meanwhile, it is not empty."""
        while True:
            kept.update(store.contents("set", bucket="volatile"))
            for entry in store.s3.list_objects_v2(Bucket="volatile").get("Contents", []):  # the lock, too
                store.s3.delete_object(Bucket="volatile", Key=entry["Key"])
            with suppress(store.s3.exceptions.ClientError):
                store.s3.delete_bucket(Bucket="volatile")
                return

    out = store.uri("set", bucket="volatile")
    last = interrupted(str(collection), out, delete, tmp_path, monkeypatch, capsys)
    assert "NO_SUCH_BUCKET" in last
    assert "run it again" in last
    store.s3.create_bucket(Bucket="volatile")
    for path, data in kept.items():
        store.s3.put_object(Bucket="volatile", Key=f"set/{path}", Body=data)
    before = store.contents("set", bucket="volatile")
    assert PLAN in before
    assert MANIFEST not in before
    assert len(before) > 1
    assert before.items() <= undisturbed.items()
    assert 0 < preprocess(collection, out, **OPTIONS).written < CLIPS
    assert store.contents("set", bucket="volatile") == undisturbed


def test_clips_whose_store_stops_answering_are_not_put_in_quarantine(
    ray_session, store, collection, undisturbed, tmp_path, monkeypatch, capsys
):
    """One outage must not cost a set these clips for ever: a shard that is there is never written again."""
    other = Store()  # the same buckets at another port
    port = other.server.get_host_and_port()[1]
    root, out = other.uri("clips/clips.csv"), tmp_path / "set"
    last = interrupted(root, str(out), other.server.stop, tmp_path, monkeypatch, capsys)
    assert "onnect" in last
    assert "run it again" in last
    assert not (out / MANIFEST).exists()
    before = contents(out)
    assert len(before) > 1
    assert before.items() <= undisturbed.items()
    again = Store(port)
    try:
        assert 0 < preprocess(root, out, **OPTIONS).written < CLIPS
    finally:
        again.server.stop()
    assert contents(out) == undisturbed
