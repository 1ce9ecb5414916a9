"""The overview: its figures are those of the set, and its picture shows the clips that it names, of every genre."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from helpers.wav_sets import BAD, GENRES, RATE, finish, tracks
from matplotlib.image import imread

from mgc.audio.logmel import LogMelSpec, log_mel
from mgc.collection.splits import SPLITS
from mgc.core.errors import InputError
from mgc.core.storage import Folder
from mgc.features import inspect as module
from mgc.features.contact_sheet import ROWS
from mgc.features.inspect import COLUMNS, SHOWN, inspect
from mgc.features.layout import MANIFEST, QUARANTINE, SHARDS
from mgc.features.plan import Plan, Recipe

SPEC = LogMelSpec(seconds=0.5)
RECIPE = Recipe(spec=SPEC, min_seconds=0.2, clips_per_shard=10)


def make(folder, counts, *, genres=GENRES, recipe=RECIPE, change=None, **options):
    """A finished set of so many clips a genre in each split."""
    clips = tracks(folder / "clips", counts, genres, **options)
    return finish(Plan.of(change(clips) if change else clips, recipe), folder / "clips", Folder.at(folder / "set"))


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Three genres of 11/2/1 clips, three clips in quarantine: four training shards."""
    folder = tmp_path_factory.mktemp("inspect")
    return make(folder, {"training": 11, "validation": 2, "test": 1}, bad=BAD)


@pytest.fixture(scope="session")
def result(made, tmp_path_factory):
    return inspect(made.folder.path, out=tmp_path_factory.mktemp("picture") / "sheet.png")


@pytest.fixture
def drawn(monkeypatch):
    """The figure that the next inspection saves."""
    figures = []
    monkeypatch.setattr(module, "_save", lambda figure, picture: figures.append(figure))
    return figures


def rows_of(features, columns=None):
    tables = [pq.read_table(features.folder.path / entry.file, columns=columns) for entry in features.manifest.shards]
    return [row for table in tables for row in table.to_pylist()]


def titles(figure):
    """Track ids by genre, as they stand in the picture."""
    shown, genre = {}, None
    for axes in figure.axes:
        if axes.get_ylabel() and axes.get_title(loc="left"):
            genre = shown.setdefault(axes.get_ylabel(), [])
        if axes.get_title(loc="left"):
            genre.append(int(axes.get_title(loc="left")))
    return shown


# Figures


def test_the_figures_are_those_of_the_rows(made, result):
    rows = rows_of(made)
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()
    assert result.clips == len(rows) == 3 * 14 - len(BAD)
    assert result.by_split == {split: sum(row["split"] == split for row in rows) for split in SPLITS}
    cells = Counter((row["genre"], row["split"]) for row in rows)
    assert result.by_genre_and_split == {genre: {split: cells[genre, split] for split in SPLITS} for genre in GENRES}
    for name in ("seconds", "mean_db", "std_db"):
        values = sorted(row[name] for row in rows)
        low, middle, high = values[0], np.median(values), values[-1]
        assert asdict(result.figures[name]) == pytest.approx({"min": low, "median": middle, "max": high}, abs=1e-3)
    assert (result.padded, result.damaged) == (0, 0)
    assert (result.features, result.fingerprint) == (str(made.folder), made.manifest.fingerprint)
    assert result.shards == len(made.manifest.shards)
    assert result.bytes == sum(file.stat().st_size for file in made.folder.path.rglob("*") if file.is_file())


def test_the_recipe_is_one_line(result):
    assert len(result.recipe.splitlines()) == 1
    for part in ("22050 Hz", "0.5 s", "128 mel bands", "damaged clips quarantined", RECIPE.decoder):
        assert part in result.recipe


def test_quarantined_clips_are_counted_by_reason_and_the_first_are_named(result):
    assert result.to_dict()["quarantined"] == {
        "empty": {"clips": 2, "first": ["training/Folk-3.wav", "validation/Rock-0.wav"]},
        "not_audio": {"clips": 1, "first": ["training/Jazz-2.wav"]},
    }


def test_of_many_quarantined_clips_the_first_are_named(tmp_path):
    paths = [f"training/{genre}-{index}.wav" for genre in GENRES for index in range(2)]
    made = make(tmp_path, {"training": 2}, bad=dict.fromkeys(paths, b""))
    result = inspect(made.folder.path, out=tmp_path / "sheet.png")
    assert result.to_dict()["quarantined"] == {"empty": {"clips": 6, "first": paths[:SHOWN]}}
    assert f"in quarantine, empty: 6 ({', '.join(paths[:SHOWN])}, …)" in str(result)


def test_padded_and_kept_damaged_clips_are_counted(tmp_path, drawn):
    """Of twelve clips one is of 0.4 s, and one is an MP3 that was cut."""

    def spoil(clips):
        short, cut, *_ = (tmp_path / "clips" / path for path in clips["path"].to_pylist())
        soundfile.write(short, np.full(round(0.4 * RATE), 0.1), RATE)
        soundfile.write(cut, np.random.default_rng(0).normal(0, 0.1, 3 * RATE), RATE, format="MP3")
        cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 3])
        return clips

    recipe = replace(RECIPE, spec=LogMelSpec(seconds=3.0), keep_damaged=True)
    made = make(tmp_path, {"training": 4}, change=spoil, recipe=recipe, seconds=3.1)
    result = inspect(made.folder.path, out=tmp_path / "sheet.png")
    assert (result.padded, result.damaged) == (2, 1)
    assert result.figures["seconds"].min == 0.4
    assert "damaged clips kept" in result.recipe


def test_artists_in_two_splits_are_named(tmp_path, drawn):
    def one_artist(clips):
        return clips.set_column(5, clips.field("artist_id"), [["a7"] * len(clips)])

    made = make(tmp_path, {"training": 1, "test": 1}, change=one_artist)
    result = inspect(made.folder.path, out=tmp_path / "sheet.png")
    assert result.artist_leaks == list(made.manifest.artist_leaks) != []
    assert "LEAK: 1 artist is in more than one split" in str(result)


# The picture


def test_the_picture_is_a_png_the_same_each_time_and_replaces_the_last(made, result, tmp_path):
    first = Path(result.picture)
    height, width, _ = imread(first).shape
    assert width > height > 300
    (tmp_path / "again.PNG").write_bytes(b"the last one")
    again = inspect(made.folder.path, out=tmp_path / "again.PNG")
    assert Path(again.picture).read_bytes() == first.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["again.PNG"]


def test_the_picture_is_in_the_working_directory_by_default(made, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(module, "_save", lambda figure, picture: written.append(picture))
    monkeypatch.chdir(tmp_path)
    assert inspect(made.folder.path).picture == str(tmp_path / "contact_sheet.png")
    assert written == [tmp_path / "contact_sheet.png"]


def test_a_row_is_a_genre_and_each_picture_a_training_clip_of_it(made, drawn, tmp_path):
    result = inspect(made.folder.path, out=tmp_path / "sheet.png")
    genre_of = {row["track_id"]: row["genre"] for row in rows_of(made) if row["split"] == "training"}
    shown = titles(drawn[0])
    assert list(shown) == list(GENRES)
    for genre, clips in shown.items():
        assert len(set(clips)) == len(clips) == COLUMNS
        assert {genre_of[clip] for clip in clips} == {genre}
    assert result.left_out == []


def test_what_is_drawn_is_the_clip_in_db_below_its_loudest_value(made, drawn, tmp_path):
    inspect(made.folder.path, out=tmp_path / "sheet.png")
    path_of = {row["track_id"]: row["path"] for row in rows_of(made, ["track_id", "path"])}
    checked = 0
    for axes in drawn[0].axes:
        if axes.get_title(loc="left"):
            samples, _ = soundfile.read(
                made.folder.path.parent / "clips" / path_of[int(axes.get_title(loc="left"))], dtype="float32"
            )
            db = log_mel(samples[: SPEC.n_samples], SPEC)
            np.testing.assert_allclose(axes.images[0].get_array(), db - db.max(), atol=0.1)
            checked += 1
    assert checked == 3 * COLUMNS


def test_frequencies_stand_at_their_bands(made, drawn, tmp_path):
    """A tone of 2 kHz is brightest where the axis says 2 kHz."""
    inspect(made.folder.path, out=tmp_path / "sheet.png")
    axes = drawn[0].axes[0]
    assert axes.images[0].get_extent() == [0, SPEC.seconds, 0, SPEC.n_mels]
    assert axes.images[0].origin == "lower"
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["500 Hz", "2 kHz", "8 kHz"]
    for hertz, place in zip((500, 2000, 8000), axes.get_yticks(), strict=True):
        tone = np.sin(2 * np.pi * hertz * np.arange(SPEC.n_samples) / RATE).astype(np.float32)
        band = log_mel(tone, SPEC)[:, 10].argmax()
        assert abs(place - (band + 0.5)) <= 1


def test_genres_beyond_the_most_are_left_out_by_name(tmp_path, drawn):
    genres = [f"Genre {index:02d}" for index in range(30)]

    def fewer(clips):  # the first ten genres have one clip, the others two
        return clips.filter([index % 2 == 0 or index // 2 >= 10 for index in range(len(clips))])

    made = make(tmp_path, {"training": 2}, genres=genres, change=fewer, recipe=Recipe(spec=SPEC, min_seconds=0.2))
    result = inspect(made.folder.path, out=tmp_path / "sheet.png")
    shown = titles(drawn[0])
    assert len(shown) == ROWS
    assert list(shown) == sorted(shown)
    assert sorted([*shown, *result.left_out]) == genres
    assert {len(clips) for clips in shown.values()} == {2}
    assert drawn[0].get_figheight() < 18
    assert "14 more genres are left out" in drawn[0].get_suptitle()
    assert f"(without {', '.join(result.left_out)})" in str(result)


def test_genres_of_one_clip_and_odd_names_are_drawn(tmp_path):
    genres = ["A$_{$", "Old-Time / Historic and a very long name that has no end"]
    made = make(tmp_path, {"training": 1, "test": 1}, genres=genres)
    result = inspect(made.folder.path, out=tmp_path / "sheet.png")
    assert imread(result.picture).size
    assert result.left_out == []


def test_without_training_clips_those_of_the_next_split_are_drawn(tmp_path, drawn):
    made = make(tmp_path, {"test": 2})
    inspect(made.folder.path, out=tmp_path / "sheet.png")
    assert "test clips" in drawn[0].get_suptitle()


def test_a_set_of_quarantined_clips_alone_has_no_picture(tmp_path):
    made = make(tmp_path, {"training": 1}, bad={f"training/{genre}-0.wav": b"" for genre in GENRES})
    result = inspect(made.folder.path, out=tmp_path / "sheet.png")
    assert (result.clips, result.picture, result.figures) == (0, None, {})
    assert not (tmp_path / "sheet.png").exists()
    assert "no clip to draw" in str(result)


def test_a_silent_clip_is_drawn_dark(tmp_path, drawn):
    def silence(clips):
        for path in clips["path"].to_pylist():
            soundfile.write(tmp_path / "clips" / path, np.zeros(RATE), RATE)
        return clips

    made = make(tmp_path, {"training": 1}, change=silence)
    inspect(made.folder.path, out=tmp_path / "sheet.png")
    assert (drawn[0].axes[0].images[0].get_array() == -SPEC.top_db).all()


def test_matrices_are_read_of_the_shards_of_the_shown_clips_alone(made, drawn, tmp_path, monkeypatch):
    read = []

    def spy(source, columns=None):
        table = real(source, columns=columns)
        read.append((columns, len(table)))
        return table

    real = pq.read_table
    monkeypatch.setattr(pq, "read_table", spy)
    inspect(made.folder.path, out=tmp_path / "sheet.png")
    assert all(columns for columns, _ in read)
    with_matrices = [rows for columns, rows in read if "logmel" in columns]
    assert len(with_matrices) < sum(entry.split == "training" for entry in made.manifest.shards)


# Refusals


def refused(features, out, *words):
    with pytest.raises(InputError) as caught:
        inspect(features, out=out)
    assert len(str(caught.value).splitlines()) == 1
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["sheet.jpg", "sheet", "sheet.png.parquet", ".png"])
def test_another_suffix_is_refused_and_nothing_is_overwritten(made, tmp_path, name):
    (tmp_path / name).write_text("mine")
    refused(made.folder.path, tmp_path / name, "`out=", "must end in .png")
    assert (tmp_path / name).read_text() == "mine"


def test_a_picture_inside_the_set_is_refused(made, tmp_path, monkeypatch):
    before = sorted(made.folder.walk())
    refused(made.folder.path, made.folder.path / "sheet.png", "inside the feature set")
    (tmp_path / "link").symlink_to(made.folder.path)
    refused(made.folder.path, tmp_path / "link" / SHARDS / "sheet.png", "inside the feature set")
    monkeypatch.chdir(made.folder.path)
    refused(".", None, "inside the feature set")
    assert sorted(made.folder.walk()) == before


def test_a_picture_that_cannot_be_written_is_refused(made, tmp_path):
    refused(made.folder.path, tmp_path / "no" / "sheet.png", "its folder is not there")
    (tmp_path / "sheet.png").mkdir()
    refused(made.folder.path, tmp_path / "sheet.png", "is a folder")
    refused(made.folder.path, tmp_path / ("x" * 300 + ".png"), "cannot be written")


def test_an_absent_or_unfinished_set_is_refused(made, tmp_path):
    refused(tmp_path / "no", None, "no such directory")
    copy = shutil.copytree(made.folder.path, tmp_path / "set")
    (copy / MANIFEST).unlink()
    refused(copy, None, "unfinished")


@pytest.mark.parametrize("file", [QUARANTINE, f"{SHARDS}/training-00000-of-00004.parquet"])
def test_a_damaged_set_is_refused_by_the_file(made, tmp_path, file):
    copy = shutil.copytree(made.folder.path, tmp_path / "set")
    data = (copy / file).read_bytes()
    (copy / file).write_bytes(data[: len(data) // 2])
    refused(copy, tmp_path / "sheet.png", file, "mgc verify")
    pq.write_table(pq.read_table(made.folder.path / file).select(["path"]), copy / file)
    refused(copy, tmp_path / "sheet.png", file, "mgc verify")
    (copy / file).unlink()
    refused(copy, tmp_path / "sheet.png", file, "mgc verify")
    assert not (tmp_path / "sheet.png").exists()


def test_a_matrix_of_the_wrong_size_is_refused_by_the_file(made, tmp_path):
    copy = shutil.copytree(made.folder.path, tmp_path / "set")
    file = f"{SHARDS}/training-00000-of-00004.parquet"
    table = pq.read_table(copy / file)
    pq.write_table(table.set_column(13, "logmel", [[b"\0\0"] * len(table)]), copy / file)
    refused(copy, tmp_path / "sheet.png", file, "mgc verify")


# For a terminal


def test_the_keys_of_the_result_are_those_of_the_contract(result):
    assert list(result.to_dict()) == [
        *("features", "fingerprint", "recipe", "clips", "by_split", "by_genre_and_split", "figures", "padded"),
        *("damaged", "quarantined", "artist_leaks", "shards", "bytes", "picture", "left_out"),
    ]


def test_the_summary_is_an_aligned_table_and_says_where_the_picture_is(made, result):
    lines = str(result).splitlines()
    assert lines[0].startswith(f"{made.folder}: 39 clips in {len(made.manifest.shards)} shards")
    (head,) = (line for line in lines if line.startswith("genre"))
    (every,) = (line for line in lines if line.startswith("all "))
    assert head.split() == ["genre", *SPLITS, "all"]
    assert every.split() == ["all", *map(str, result.by_split.values()), "39"]
    assert len(head) == len(every)
    assert "in quarantine, empty: 2 (training/Folk-3.wav, validation/Rock-0.wav)" in lines
    assert "artists: none is in more than one split" in lines
    assert lines[-1] == f"contact sheet: {result.picture}"


def test_neither_torch_nor_ray_nor_matplotlib_is_loaded_with_the_module():
    code = (
        "import sys, mgc.features.inspect, mgc.features.verify;"
        "sys.exit(', '.join({'torch', 'ray', 'mlflow', 'matplotlib'} & sys.modules.keys()) or None)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
