"""A library is labelled as single files are, each file once, whatever is killed; a later run does what is new."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import soundfile
from helpers.object_store import Store
from library.conftest import samples

from mgc import cli
from mgc.core.errors import InputError
from mgc.library import label_plan
from mgc.library.label import label
from mgc.library.labels import Labels
from mgc.library.predict import predict

pytestmark = pytest.mark.timeout(300)
RATE = 22_050


def sound(path, seconds, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples(seconds, seed), RATE)
    return path


@pytest.fixture
def library(tmp_path):
    root = tmp_path / "music"
    for index in range(10):
        sound(root / f"{'abc'[index % 3]}/{index}.{('wav', 'flac', 'ogg')[index % 3]}", 1.5 + index % 4, index)
    (root / "a" / "broken.mp3").write_bytes(b"no audio " * 99)
    (root / "empty.ogg").write_bytes(b"")
    (root / "cover.jpg").write_bytes(b"x")
    for path in root.rglob("*.*"):
        os.utime(path, (0, 0))
    return root


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(label_plan, "FILES_PER_SHARD", 4)


def rows(folder):
    return {row["path"]: row for row in Labels.open(folder).table().to_pylist()}


def shards(folder):
    return {file.name: file.read_bytes() for file in sorted((folder / "shards").glob("*.parquet"))}


def test_each_file_has_the_label_that_predict_gives_it(ray_session, library, half_seconds, tmp_path, small_shards):
    made = label(library, half_seconds, tmp_path / "labels", precision=0.6)
    found = rows(tmp_path / "labels")
    assert len(found) == made.files == made.labelled == 10
    expected = predict(half_seconds, [library / path for path in found], precision=0.6).clips
    assert len({clip.genre for clip in expected}) > 1
    for (path, row), clip in zip(found.items(), expected, strict=True):
        assert (row["genre"], row["unsure"], row["warning"]) == (clip.genre, clip.unsure, clip.warning), path
        assert row["probabilities"] == pytest.approx(list(clip.probabilities.values()), abs=1e-5)
        assert row["confidence"] == pytest.approx(max(row["probabilities"]))
        assert row["seconds"] == pytest.approx(1.5 + int(Path(path).stem) % 4, abs=0.05)
        assert (row["windows"][0]["start"], row["windows"][-1]["end"]) == pytest.approx((0, row["seconds"]), abs=0.51)
    assert 0 < made.unsure < 10
    assert made.unsure == sum(row["unsure"] for row in found.values())
    assert made.quarantined == {"empty": 1, "not_audio": 1}
    quarantine = pq.read_table(tmp_path / "labels" / "quarantine.parquet").to_pylist()
    assert {row["path"]: row["reason"] for row in quarantine} == {"a/broken.mp3": "not_audio", "empty.ogg": "empty"}
    assert len(shards(tmp_path / "labels")) == 3
    frame = Labels.open(tmp_path / "labels").to_pandas()
    assert list(frame["genre"].value_counts()) == list(made.genres.values())
    assert "10 files, 10 of them labelled now" in str(made)


def test_a_second_run_does_what_is_new_and_drops_what_is_gone(
    ray_session, library, whole_clips, tmp_path, small_shards
):
    out = tmp_path / "labels"
    label(library, whole_clips, out)
    before = shards(out)
    assert label(library, whole_clips, out).labelled == 0
    assert shards(out) == before

    sound(library / "new.wav", 2, 99)
    sound(library / "a/0.wav", 3, 98)  # another recording
    (library / "b/1.flac").unlink()
    kept = (library / "a/3.wav").stat()
    sound(library / "a/3.wav", 1.5 + 3, 97)  # of the same size, written after its label
    assert (library / "a/3.wav").stat().st_size == kept.st_size
    made = label(library, whole_clips, out)
    assert (made.files, made.labelled) == (10, 3)
    assert {*rows(out)} == {path.relative_to(library).as_posix() for path in library.rglob("*.[wfo][alg][vag]*")} - {
        "empty.ogg"
    }
    (third,) = {name for name in shards(out) if name not in before}
    assert pq.read_table(out / "shards" / third)["path"].to_pylist() == ["a/0.wav", "a/3.wav", "new.wav"]
    fresh = label(library, whole_clips, tmp_path / "fresh")
    assert fresh.genres == made.genres
    for path, row in rows(tmp_path / "fresh").items():
        assert rows(out)[path]["probabilities"] == pytest.approx(row["probabilities"], abs=1e-6)
    assert label(library, whole_clips, out).labelled == 0


def test_a_damaged_or_lost_shard_is_written_again(ray_session, library, whole_clips, tmp_path, small_shards):
    out = tmp_path / "labels"
    label(library, whole_clips, out)
    before = shards(out)
    (out / "shards" / "labels-00001.parquet").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"labels-00001.parquet: damaged .* run «mgc label» again"):
        Labels.open(out).table()
    (out / "shards" / "labels-00000.parquet").unlink()
    assert label(library, whole_clips, out).labelled == sum(map(len, (["a"] * 3, ["a"] * 4)))
    assert shards(out) == before


def test_labels_of_another_model_are_refused_by_name(ray_session, library, whole_clips, half_seconds, tmp_path, capsys):
    out = tmp_path / "labels"
    label(library, whole_clips, out)
    before = shards(out)
    for model, more, said in (
        (half_seconds, [], "another model"),
        (whole_clips, ["--precision", "0.5"], "precision was 0.9, now 0.5"),
    ):
        code = cli.run(["label", str(library), "--model", str(model), "--out", str(out), *more])
        assert code == 2
        assert said in capsys.readouterr().err
        assert shards(out) == before
    made = label(library, half_seconds, out, overwrite=True)
    assert made.labelled == 10
    assert Labels.open(out).manifest.settings.model != before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{music}/nowhere", "--out", "{tmp}/labels"], "nowhere: no such folder"),
        (["{music}/empty_folder", "--out", "{tmp}/labels"], "no audio files"),
        (["{music}", "--out", "{music}"], "is not empty (cover.jpg) and holds no labels"),
        (["{music}", "--out", "{tmp}/labels", "--precision", "0"], "--precision 0: must be above 0"),
        (["{music}", "--out", "{tmp}/labels", "--workers", "0"], "--workers 0: must be at least 1"),
        (["{music}", "--out", "{tmp}/labels", "--clip-timeout", "0"], "--clip-timeout 0"),
    ],
)
def test_what_cannot_be_labelled_is_one_line(library, whole_clips, tmp_path, capsys, arguments, said):
    (library / "empty_folder").mkdir()
    (library / "empty.ogg").unlink()
    there = sorted(library.rglob("*"))
    words = [each.format(music=library, tmp=tmp_path) for each in arguments]
    assert cli.run(["label", *words, "--model", str(whole_clips)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert [path for path in sorted(library.rglob("*")) if path.name not in (".lock", "shards")] == there
    assert not (tmp_path / "labels").exists()


def test_a_model_without_calibration_is_unsure_of_all_and_says_why(ray_session, library, whole_clips, tmp_path, capsys):
    bare = tmp_path / "bare"
    shutil.copytree(whole_clips, bare)
    (bare / "calibration.json").unlink()
    made = label(library, bare, tmp_path / "labels")
    assert (made.unsure, Labels.open(tmp_path / "labels").manifest.settings.threshold) == (10, None)
    assert "no validation predictions" in capsys.readouterr().err


def test_a_run_killed_after_its_plan_and_before_its_first_shard_goes_on(
    ray_session, library, whole_clips, tmp_path, monkeypatch
):
    out = tmp_path / "labels"
    with monkeypatch.context() as patch:
        patch.setattr("mgc.library.label._start_ray", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            label(library, whole_clips, out)
    shutil.rmtree(out / "shards")  # as if killed right behind the plan
    assert label(library, whole_clips, out).labelled == 10
    shutil.rmtree(out / "shards")
    assert label(library, whole_clips, out).labelled == 10


def test_a_file_whose_name_is_not_utf_8_is_said_and_costs_nothing(ray_session, library, whole_clips, tmp_path, capsys):
    out = tmp_path / "labels"
    label(library, whole_clips, out)
    shutil.copy(library / "a" / "0.wav", os.fsencode(library) + b"/b\xe9.wav")
    assert label(library, whole_clips, out).files == 10
    assert "1 files have names that are not UTF-8" in capsys.readouterr().err


def test_quarantined_files_are_tried_again_if_asked_for(ray_session, library, whole_clips, tmp_path):
    out, away = tmp_path / "labels", tmp_path / "away.wav"
    (library / "here.wav").symlink_to(away)  # to a disk that is not there now
    made = label(library, whole_clips, out, clip_timeout=1e-4)
    assert made.quarantined == {"timed_out": 13}
    sound(away, 2, 5)
    assert label(library, whole_clips, out).labelled == 1  # it has a size now
    again = label(library, whole_clips, out, retry=True)
    assert (again.files, again.quarantined) == (11, {"empty": 1, "not_audio": 1})


def test_a_moved_library_is_known_and_another_is_refused(ray_session, library, whole_clips, tmp_path, capsys):
    out = tmp_path / "labels"
    label(library, whole_clips, out)
    library.rename(tmp_path / "moved")
    assert label(tmp_path / "moved", whole_clips, out).labelled == 0
    assert Labels.open(out).manifest.root == str(tmp_path / "moved")
    before = shards(out)
    sound(tmp_path / "other" / "x.wav", 2, 1)
    with pytest.raises(InputError, match=r"holds the labels of another library, .*/moved"):
        label(tmp_path / "other", whole_clips, out)
    assert shards(out) == before
    shutil.rmtree(tmp_path / "moved" / "a")
    assert label(tmp_path / "moved", whole_clips, out).files == 6
    assert "5 of 12 files are gone" in capsys.readouterr().err


def test_overwrite_touches_labels_alone_and_labels_all_again(ray_session, library, whole_clips, tmp_path, features):
    other = tmp_path / "features"
    shutil.copytree(features.folder.path, other)
    there = {path: path.read_bytes() for path in other.rglob("*.*") if path.is_file()}
    with pytest.raises(InputError, match=r"`out=.*/features`"):
        label(library, whole_clips, other, overwrite=True)
    assert {path: path.read_bytes() for path in there} == there
    out = tmp_path / "labels"
    label(library, whole_clips, out)
    assert label(library, whole_clips, out, overwrite=True).labelled == 10


@pytest.mark.slow
def test_a_library_in_a_bucket_is_labelled_into_a_bucket(ray_session, library, whole_clips, tmp_path):
    store = Store()
    store.upload(library, "music")
    made = label(store.uri("music"), whole_clips, store.uri("labels"))
    assert made.labelled == 10
    label(library, whole_clips, tmp_path / "labels")
    here = {path: row["probabilities"] for path, row in rows(tmp_path / "labels").items()}
    there = {row["path"]: row["probabilities"] for row in Labels.open(store.uri("labels")).table().to_pylist()}
    assert here == there
    assert label(store.uri("music"), whole_clips, store.uri("labels")).labelled == 0
    assert "SECRET" not in store.contents("labels")["manifest.json"].decode()
    store.server.stop()


PROGRAM = """
import sys
import mgc.library.label_plan as label_plan
label_plan.FILES_PER_SHARD = 4
from mgc.cli import main
{before}
main(["label", *sys.argv[1:]])
"""


def begin(before, library, model, out, **options):
    words = [str(library), "--model", str(model), "--out", str(out), "--json"]
    command = [sys.executable, "-c", PROGRAM.format(before=before), *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": out.parent}
    return subprocess.Popen(command, start_new_session=True, **pipes, **options)


@pytest.mark.slow
def test_a_killed_labelling_goes_on_and_ends_as_an_undisturbed_one(
    ray_session, library, whole_clips, tmp_path, small_shards
):
    for index in range(10, 40):
        sound(library / f"d/{index}.wav", 2, index)
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "killed" / "labels"
    out.parent.mkdir()
    assert label(library, whole_clips, undisturbed).labelled == 40
    process = begin("", library, whole_clips, out)
    deadline = time.monotonic() + 120
    while len(list(out.glob("shards/*.parquet"))) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)  # the driver and its raylet, whose workers end with it
    process.wait()
    assert not (out / "manifest.json").exists()
    with pytest.raises(InputError, match="unfinished"):
        Labels.open(out)
    time.sleep(2)  # a worker that was writing
    there = shards(out)
    again = label(library, whole_clips, out)
    assert shards(out) == shards(undisturbed)
    assert there.items() <= shards(out).items()
    assert again.labelled < again.files == 40


@pytest.mark.slow
def test_where_there_are_gpus_actors_run_the_network_on_what_tasks_decode(
    ray_session, library, whole_clips, tmp_path, small_shards
):
    """Ray counts a GPU that is not there, so the network is on the CPU; where it runs is Ray's matter."""
    out = tmp_path / "gpu" / "labels"
    out.parent.mkdir()
    before = """
import ray
ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
import mgc.library.label_tasks as label_tasks
def alone(*_, **__): raise AssertionError("one task does both")
label_tasks.label_shard = alone
"""
    process = begin(before, library, whole_clips, out)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    label(library, whole_clips, tmp_path / "cpu")
    assert shards(out) == shards(tmp_path / "cpu")
