"""The toy set: FMA's layout, honest splits, known damage, the same bytes for the same seed."""

import csv
import dataclasses
import hashlib
import json
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from mgc.collection import toy
from mgc.core.errors import InputError, RunError


@pytest.fixture(scope="module")
def toy_set(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy") / "new" / "set"
    return root, toy.make_toy(root, clips_per_genre=3)


@pytest.fixture
def brief(monkeypatch):
    """Clips of a third of a second, for what does not depend on their length."""
    monkeypatch.setattr(toy, "CLIP_SECONDS", 0.3)


def tracks(root):
    return pd.read_csv(root / "fma_metadata" / "tracks.csv", index_col=0, header=[0, 1])


def small(root):
    table = tracks(root)
    return table[table["set", "subset"] == "small"]


def mp3(root, track_id):
    return root / "fma_small" / f"{track_id // 1000:03d}" / f"{track_id:06d}.mp3"


def digests(root):
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha1(path.read_bytes()).hexdigest() for path in files}


def test_tracks_csv_has_the_shape_of_fmas(toy_set):
    path = toy_set[0] / "fma_metadata" / "tracks.csv"
    with path.open(encoding="utf-8", newline="") as file:
        group, name, index, *rows = csv.reader(file)
    assert Counter(group) == {"": 1, "album": 13, "artist": 17, "set": 2, "track": 20}
    assert name[:4] == ["", "comments", "date_created", "date_released"]
    assert name[-3:] == ["publisher", "tags", "title"]
    assert index == ["track_id"] + [""] * 52
    assert {len(row) for row in rows} == {53}
    assert any("\n" in cell for row in rows for cell in row), "no multi-line cell"
    table = tracks(toy_set[0])
    assert table.index.is_unique
    assert table.index.is_monotonic_increasing
    assert table["track", "genre_top"].isna().any()
    assert {"small", "medium", "large"} == set(table["set", "subset"])


def test_header_is_fmas_own(toy_set):
    real = Path(__file__).parents[3] / "shared/data/fma_real/tracks_head.csv"
    if not real.exists():
        pytest.skip(f"{real} is absent")
    made = (toy_set[0] / "fma_metadata" / "tracks.csv").read_text(encoding="utf-8")
    assert made.splitlines()[:3] == real.read_text(encoding="utf-8").splitlines()[:3]


def test_every_genre_has_every_split_and_filled_columns(toy_set):
    table = small(toy_set[0])
    counts = Counter(zip(table["track", "genre_top"], table["set", "split"], strict=True))
    assert len(counts) == 8 * 3
    assert set(counts.values()) == {1}
    for column in [
        ("track", "duration"),
        ("track", "bit_rate"),
        ("track", "title"),
        ("artist", "id"),
        ("artist", "name"),
    ]:
        assert table[column].notna().all(), column
    assert set(table["track", "duration"]) == {30}


def test_audio_is_thirty_seconds_of_stereo_at_256_kbps(toy_set):
    root, summary = toy_set
    damaged = set(summary.broken.values())
    sound = [t for t in small(root).index if str(mp3(root, t).relative_to(root)) not in damaged]
    assert len(sound) == 23
    for track_id in sound:
        samples, rate = soundfile.read(mp3(root, track_id))
        assert (rate, samples.shape) == (44100, (1323000, 2))
        assert mp3(root, track_id).stat().st_size * 8 / 30 == pytest.approx(256_000, rel=0.01)
        assert 0.01 < samples.std() < 0.5


def test_only_rows_of_subset_small_have_audio(toy_set):
    root = toy_set[0]
    assert {int(path.stem) for path in root.rglob("*.mp3")} == set(small(root).index)
    assert len(tracks(root)) > len(small(root))


def test_the_result_says_what_is_there_and_is_json(toy_set):
    root, made = toy_set
    told = json.loads(json.dumps(made.to_dict()))
    assert list(told) == ["clips", "genres", "broken", "root"]
    assert told["clips"] == len(small(root)) == 24
    assert sorted(told["genres"]) == sorted(set(small(root)["track", "genre_top"]))
    assert told["root"] == str(root)
    assert list(told["broken"]) == ["too_short"]
    assert [line.split()[0] for line in str(made).splitlines()] == list(told)
    assert str(root) in str(made)


def test_nothing_is_left_beside_the_set(toy_set):
    assert [path.name for path in toy_set[0].parent.iterdir()] == ["set"]


def test_broken_clips_are_what_the_summary_says_and_all_in_training(tmp_path, brief):
    summary = toy.make_toy(tmp_path / "set", clips_per_genre=13, seed=1)  # 104 rows: 4 % are 4
    kinds = {reason: tmp_path / "set" / path for reason, path in summary.broken.items()}
    assert list(kinds) == ["too_short", "empty", "not_audio", "missing"]
    assert soundfile.info(kinds["too_short"]).duration == pytest.approx(1.5, abs=0.01)
    assert kinds["empty"].read_bytes() == b""
    assert len(kinds["not_audio"].read_text(encoding="utf-8")) > 0
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.info(kinds["not_audio"])
    assert not kinds["missing"].exists()
    splits = small(tmp_path / "set")["set", "split"]
    assert {splits[int(path.stem)] for path in kinds.values()} == {"training"}


@pytest.mark.parametrize(("clips", "broken"), [(3, 1), (6, 1), (7, 2), (12, 3), (13, 4), (100, 4)])
def test_at_most_four_percent_are_broken_but_at_least_one_and_at_most_four(clips, broken):
    damaged = [clip for clip in toy.plan(clips, seed=0) if clip.broken]
    assert len(damaged) == broken
    assert {clip.split for clip in damaged} == {"training"}


@pytest.mark.parametrize("clips", [3, 4, 5, 12, 50])
def test_no_artist_is_in_two_splits_or_two_genres(clips):
    splits, genres, artists = defaultdict(set), defaultdict(set), defaultdict(set)
    for clip in toy.plan(clips, seed=1):
        splits[clip.artist_id].add(clip.split)
        genres[clip.artist_id].add(clip.genre.name)
        artists[clip.genre.name].add(clip.artist_id)
    assert all(len(found) == 1 for found in [*splits.values(), *genres.values()])
    assert all(len(found) >= min(4, clips) for found in artists.values())


def test_artist_names_are_artist_filtered_like_their_ids(toy_set):
    table = tracks(toy_set[0])
    assert table.groupby(("artist", "name"))[[("artist", "id"), ("set", "split")]].nunique().to_numpy().max() == 1


def test_twelve_clips_are_split_eight_two_two():
    counts = Counter((clip.genre.name, clip.split) for clip in toy.plan(12, seed=0))
    assert {split: {counts[genre.name, split] for genre in toy.GENRES} for split in toy.SPLITS} == {
        "training": {8},
        "validation": {2},
        "test": {2},
    }


def test_same_seed_gives_the_same_bytes_on_any_number_of_processes(tmp_path, brief, monkeypatch):
    toy.make_toy(tmp_path / "two", clips_per_genre=4, seed=5)
    monkeypatch.setattr(toy.os, "cpu_count", lambda: 1)
    toy.make_toy(tmp_path / "one", clips_per_genre=4, seed=5)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_another_seed_gives_other_audio():
    clip = dataclasses.replace(toy.plan(3, seed=0)[0], seconds=1.0)
    assert np.array_equal(toy.audio(clip, 0), toy.audio(clip, 0))
    assert not np.array_equal(toy.audio(clip, 0), toy.audio(clip, 1))


def test_every_genre_is_finite_and_within_full_scale():
    clips = {clip.genre.name: clip for clip in toy.plan(12, seed=0)}
    for clip in clips.values():
        samples = toy.audio(dataclasses.replace(clip, seconds=5.0), 0)
        assert samples.shape == (220500, 2)
        assert np.isfinite(samples).all()
        assert 0.01 < np.abs(samples).max() <= 1


def test_full_folder_is_refused_and_untouched(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"`out=.*set`: is not empty; choose another folder"):
        toy.make_toy(tmp_path / "set")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["set", "set/thesis.txt"]


def test_empty_folder_is_used(tmp_path, brief):
    (tmp_path / "set").mkdir()
    toy.make_toy(tmp_path / "set", clips_per_genre=3)
    assert len(small(tmp_path / "set")) == 24


@pytest.mark.parametrize("arguments", [{"clips_per_genre": 2}, {"clips_per_genre": 10_001}, {"seed": -1}])
def test_impossible_number_names_its_parameter(tmp_path, arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(InputError, match=f"`{name}={value}`: must be "):
        toy.make_toy(tmp_path / "set", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_place_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file`: is a file"):
        toy.make_toy(tmp_path / "file")
    with pytest.raises(InputError, match="set`: cannot be written"):
        toy.make_toy(tmp_path / "file" / "set")


def test_current_folder_is_not_pulled_from_under_the_shell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="current folder"):
        toy.make_toy(Path())


def test_failure_on_the_way_leaves_nothing(tmp_path, brief, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(toy, "_write_tracks", full_disk)
    with pytest.raises(RunError, match="No space left"):
        toy.make_toy(tmp_path / "set", clips_per_genre=3)
    assert list(tmp_path.iterdir()) == []


def test_import_is_light():
    heavy = "torch ray mlflow librosa pandas sklearn"
    code = f"import sys, mgc.collection.toy; print([m for m in '{heavy}'.split() if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
