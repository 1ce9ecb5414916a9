"""A playlist a genre: what the model is sure of, the most confident first, by paths that a player finds."""

import os

import pyarrow as pa
import pytest

from mgc.core.errors import InputError
from mgc.core.storage import Folder
from mgc.features.layout import ShardEntry, parquet_bytes
from mgc.library.labels import SCHEMA, LabelManifest, Labels, Settings
from mgc.library.playlists import _names, file_name, playlists

GENRES = ("AC/DC-like", "AC:DC-like", "Folk", "Rock")


def label_set(folder, root, rows):
    """A label set as ``mgc label`` leaves it; a row is path, genre, confidence, whether unsure."""
    table = pa.Table.from_pylist(
        [
            {"path": path, "seconds": 29.9, "genre": genre, "confidence": confidence, "unsure": unsure}
            for path, genre, confidence, unsure in rows
        ],
        schema=SCHEMA,
    )
    (folder / "shards").mkdir(parents=True)
    (folder / "shards" / "labels-00000.parquet").write_bytes(parquet_bytes(table).to_pybytes())
    settings = Settings("m" * 64, GENRES, 0.9, 0.5, "decoder")
    entry = ShardEntry("shards/labels-00000.parquet", "", len(rows), 1, "s")
    manifest = LabelManifest(1, str(root), settings, {}, 0, {}, (entry,))
    (folder / "manifest.json").write_text(manifest.to_json())
    return folder


@pytest.fixture
def library(tmp_path):
    for name in ("a/one.mp3", "a/two.mp3", "#1 hit.mp3", "b/line\nbreak.mp3", "é & ü.flac"):
        (tmp_path / "music" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "music" / name).write_bytes(b"x")
    rows = [
        ("a/one.mp3", "Folk", 0.7, False),
        ("a/two.mp3", "Folk", 0.9, False),
        ("#1 hit.mp3", "AC/DC-like", 0.8, False),
        ("é & ü.flac", "Folk", 0.8, False),
        ("a/two.mp3", "AC:DC-like", 0.9, False),
        ("gone.mp3", "Rock", 0.99, False),
        ("b/line\nbreak.mp3", "Rock", 0.3, True),
    ]
    return label_set(tmp_path / "labels", tmp_path / "music", rows)


def paths(file):
    return [line for line in file.read_text().splitlines() if not line.startswith("#")]


def test_each_genre_has_its_sure_tracks_the_most_confident_first(library, tmp_path):
    made = playlists(library, tmp_path / "music" / "playlists")
    assert made.files == {"AC_DC-like.m3u8": 1, "_AC_DC-like.m3u8": 1, "Folk.m3u8": 3}
    assert (made.unsure, made.gone) == (1, 1)
    folk = tmp_path / "music" / "playlists" / "Folk.m3u8"
    assert folk.read_text().splitlines()[:3] == ["#EXTM3U", "#mgc", "#PLAYLIST:Folk"]
    assert paths(folk) == ["../a/two.mp3", "../é & ü.flac", "../a/one.mp3"]
    assert all((folk.parent / path).is_file() for path in paths(folk))
    assert "in no playlist: 1 unsure, 1 gone" in str(made)


def test_a_track_that_looks_like_a_comment_is_a_path(library, tmp_path):
    playlists(library, tmp_path / "music")
    assert paths(tmp_path / "music" / "AC_DC-like.m3u8") == ["./#1 hit.mp3"]


def test_library_and_playlists_can_be_moved_together(library, tmp_path):
    playlists(library, tmp_path / "music" / "lists")
    os.rename(tmp_path / "music", tmp_path / "moved")
    folk = tmp_path / "moved" / "lists" / "Folk.m3u8"
    assert all((folk.parent / path).is_file() for path in paths(folk))


def test_unsure_tracks_are_taken_if_asked_for_and_old_lists_go(library, tmp_path):
    out = tmp_path / "lists"
    (tmp_path / "music" / "gone.mp3").write_bytes(b"x")
    made = playlists(library, out, unsure=True)
    assert paths(out / "Rock.m3u8") == ["../music/gone.mp3"]  # a path with a line break cannot stand in a playlist
    assert (made.unsure, made.gone) == (0, 1)
    (tmp_path / "music" / "gone.mp3").unlink()
    (out / "mine.m3u8").write_text("mine")
    playlists(library, out)
    assert sorted(file.name for file in out.iterdir()) == [
        "AC_DC-like.m3u8",
        "Folk.m3u8",
        "_AC_DC-like.m3u8",
        "mine.m3u8",
    ]


def test_a_playlist_that_somebody_else_made_is_refused_and_not_touched(library, tmp_path):
    out = tmp_path / "lists"
    out.mkdir()
    (out / "Folk.m3u8").write_text("#EXTM3U\nmine.mp3\n")
    with pytest.raises(InputError, match=r"Folk\.m3u8 is not a playlist of mgc"):
        playlists(library, out)
    assert [(file.name, file.read_text()) for file in out.iterdir()] == [("Folk.m3u8", "#EXTM3U\nmine.mp3\n")]


def test_paths_are_right_through_a_link_to_the_folder(library, tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "er")
    playlists(library, tmp_path / "link")
    folder = tmp_path / "deep" / "er"
    assert all((folder / path).is_file() for path in paths(folder / "Folk.m3u8"))


def test_genres_that_differ_in_capitals_alone_have_two_files():
    assert _names(["Rock", "rock", "Pop"]) == {"Rock": "Rock.m3u8", "rock": "_rock.m3u8", "Pop": "Pop.m3u8"}


def test_genres_make_names_for_any_disk():
    assert [file_name(name) for name in ("R&B", 'a/b\\c:"d"', "..", "Hip-Hop ", "")] == [
        "R&B",
        "a_b_c_d_",
        "_",
        "Hip-Hop",
        "_",
    ]


def test_what_is_no_finished_label_set_is_refused(library, tmp_path):
    with pytest.raises(InputError, match="no label set"):
        playlists(tmp_path / "nothing", tmp_path / "lists")
    (library / "manifest.json").unlink()
    with pytest.raises(InputError, match="unfinished"):
        playlists(library, tmp_path / "lists")
    assert not (tmp_path / "lists").exists()


def test_a_library_in_an_object_store_has_no_playlists(tmp_path):
    there = label_set(tmp_path / "labels", "s3://bucket/music", [])
    with pytest.raises(InputError, match="which no player opens"):
        playlists(Labels.open(Folder.at(there)), tmp_path / "lists")
