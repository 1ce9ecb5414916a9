"""The tracks table: three kinds of root, ids and splits that stay put, and artists that leak."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from mgc.collection import tracks
from mgc.collection.licences import LicenceFilter
from mgc.collection.splits import SPLITS, artist_leaks, draw_clips, draw_splits, gaps, leak_message
from mgc.collection.tracks import SCHEMA, path_id, read_tracks
from mgc.core.errors import InputError
from mgc.core.storage import Folder

SHARED = Path(__file__).parents[3] / "shared" / "data"
MINI = SHARED / "soundtrack8-mini"
REAL_HEAD = SHARED / "fma_real" / "tracks_head.csv"


def genre_folders(root, clips=20, genres=("blues", "rock")):
    for genre in genres:
        (root / genre).mkdir(parents=True, exist_ok=True)
        for i in range(clips):
            (root / genre / f"{genre}.{i:05d}.wav").write_bytes(b"RIFF")
    return root


def write_csv(tmp_path, text):
    file = tmp_path / "clips.csv"
    file.write_text(text, encoding="utf-8")
    return file


def column_by_path(found, column):
    return dict(zip(found.table["path"].to_pylist(), found.table[column].to_pylist(), strict=True))


def rows_table(*rows):
    """A table for artist_leaks of (split, artist_id, artist_name)."""
    names = ("split", "artist_id", "artist_name")
    return pa.Table.from_pylist(
        [dict(zip(names, row, strict=True)) for row in rows], schema=pa.schema([(name, pa.string()) for name in names])
    )


# An FMA folder


def test_the_mini_set_has_its_official_split_and_eight_labels():
    if not MINI.is_dir():
        pytest.skip(f"{MINI} is absent: a checkout without the shared data")
    found = read_tracks(MINI)
    assert found.table.schema == SCHEMA
    assert Counter(found.table["split"].to_pylist()) == {"training": 88, "validation": 16, "test": 16}
    assert len(found.genres) == 8
    assert found.left_out == {"other_subset": 60, "no_genre": 0}
    assert min(found.audio_root.sizes(found.table["path"].to_pylist())) > 0
    assert artist_leaks(found.table) == []


def test_rows_whose_clips_are_absent_stay_and_labels_are_positions_in_the_sorted_genres(tmp_path):
    if not REAL_HEAD.is_file():
        pytest.skip(f"{REAL_HEAD} is absent: a checkout without the shared data")
    (tmp_path / "fma_metadata").mkdir()
    shutil.copy(REAL_HEAD, tmp_path / "fma_metadata" / "tracks.csv")
    found = read_tracks(tmp_path)
    assert found.table.num_rows > 2
    assert found.genres == tuple(sorted(set(found.table["genre"].to_pylist())))
    for row in found.table.to_pylist():
        assert found.genres[row["label"]] == row["genre"]
    assert found.table.slice(0, 1).to_pylist() == [
        {
            "track_id": 2,
            "path": "fma_small/000/000002.mp3",
            "genre": "Hip-Hop",
            "label": found.genres.index("Hip-Hop"),
            "split": "training",
            "artist_id": "1",
            "artist_name": "AWOL",
            "title": "Food",
            "duration": 168.0,
            "license": "Attribution-NonCommercial-ShareAlike 3.0 International",
        }
    ]


def test_an_fma_folder_without_metadata_is_not_taken_for_genre_folders(tmp_path):
    genre_folders(tmp_path / "fma_small", genres=("000", "001"))
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match=r"no fma_metadata/tracks\.csv"):
        read_tracks(tmp_path)


def test_the_inside_of_fma_small_is_not_taken_for_genre_folders(tmp_path):
    for name in ("000/000002.mp3", "141/141576.mp3"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=r"inside of fma_small.*folder above"):
        read_tracks(tmp_path)


# A folder per genre


def test_a_folder_per_genre_is_split_80_10_10_with_unknown_artists(tmp_path):
    found = read_tracks(genre_folders(tmp_path))
    assert found.table.schema == SCHEMA
    assert found.audio_root == Folder.at(tmp_path)
    assert found.genres == ("blues", "rock")
    for genre in found.genres:
        split = [row["split"] for row in found.table.to_pylist() if row["genre"] == genre]
        assert Counter(split) == {"training": 16, "validation": 2, "test": 2}
    assert found.table["artist_id"].null_count == found.table["artist_name"].null_count == 40
    assert found.table["path"].to_pylist() == sorted(found.table["path"].to_pylist(), key=path_id)


def test_only_visible_audio_files_inside_genre_folders_count(tmp_path):
    genre_folders(tmp_path, clips=1)
    for name in ("rock/deep/A.MP3", "rock/notes.txt", "rock/._a.mp3", ".cache/a.mp3", "loose.flac", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = read_tracks(tmp_path)
    assert column_by_path(found, "genre") == {
        "blues/blues.00000.wav": "blues",
        "rock/rock.00000.wav": "rock",
        "rock/deep/A.MP3": "rock",
    }
    assert found.left_out == {"no_genre": 1, "not_audio": 2}


def split_folders(root, names, genres=("blues", "rock"), path="{split}/{genre}/{split}.wav"):
    for split in names:
        for genre in genres:
            file = root / path.format(split=split, genre=genre)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"RIFF")
    return root


@pytest.mark.parametrize("path", ["{split}/{genre}/1.wav", "{split}/{genre}/deep/1.wav", "{genre}/{split}/1.wav"])
@pytest.mark.parametrize(
    "names",
    [("train", "val", "test"), ("Training", "valid", "testing"), ("TRAIN", "dev", "Test"), ("training", "validation")],
)
def test_folders_named_like_splits_are_splits_and_said_to_be(tmp_path, names, path):
    found = read_tracks(split_folders(tmp_path, names, path=path))
    assert found.genres == ("blues", "rock")
    assert {(row["path"], row["split"], row["genre"]) for row in found.table.to_pylist()} == {
        (path.format(split=name, genre=genre), split, genre)
        for name, split in zip(names, SPLITS, strict=False)
        for genre in ("blues", "rock")
    }
    (note,) = found.notes
    assert "are read as splits" in note
    assert all(name in note for name in names)


def test_clips_beside_the_genres_of_a_split_have_none(tmp_path):
    split_folders(tmp_path, ("train", "test"))
    (tmp_path / "train" / "loose.wav").write_bytes(b"RIFF")
    found = read_tracks(tmp_path)
    assert (found.table.num_rows, found.left_out["no_genre"]) == (4, 1)


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (
            ["train/rock/1.wav", "test/rock/1.wav", "pop/1.wav"],
            r"test, train is named like a split, pop is not; rename",
        ),
        (
            ["train/rock/1.wav", "train/pop/1.wav"],
            r"one folder only \(train\), which is named like a split; give .*/train",
        ),
        (["val/a/1.wav", "valid/a/1.wav", "train/a/1.wav", "train/b/1.wav"], "two of train, val, valid name the same"),
        (["train/1.wav", "test/2.wav"], "no folder of a genre in them"),
        (["train/train/1.wav", "test/rock/2.wav"], "and, in them, train are named like splits"),
        (["rock/train/1.wav", "rock/test/1.wav", "pop/live/1.wav"], "some genres have folders named test, train"),
        (["rock/train/1.wav", "rock/test/1.wav", "pop/1.wav"], "some genres have folders named test, train"),
        (["train/rock/1.wav", "test/rock/2.wav"], r"audio in one folder only \(rock\)"),
    ],
)
def test_folders_that_may_be_splits_or_genres_are_refused(tmp_path, paths, said):
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"RIFF")
    with pytest.raises(InputError, match=said):
        read_tracks(tmp_path)


def test_an_album_named_like_a_split_is_none(tmp_path):
    genre_folders(tmp_path, clips=1)
    (tmp_path / "rock" / "Test").mkdir()
    (tmp_path / "rock" / "Test" / "1.wav").write_bytes(b"RIFF")
    found = read_tracks(tmp_path)
    assert (found.genres, found.notes) == (("blues", "rock"), ())


def test_the_list_of_endings_follows_the_decoder(tmp_path):
    genre_folders(tmp_path, clips=1)
    for name in ("rock/a.opus", "rock/b.oga", "rock/c.mp2", "blues/d.M4A", "blues/e.wma", "blues/cover.jpg"):
        (tmp_path / name).write_bytes(b"x")
    found = read_tracks(tmp_path)
    assert {"rock/a.opus", "rock/b.oga", "rock/c.mp2"} < set(found.table["path"].to_pylist())
    assert found.table.num_rows == 5
    assert found.left_out == {"no_genre": 0, "not_audio": 1, "no_decoder": 2}


def test_music_in_other_formats_alone_says_that_there_is_no_decoder_for_it(tmp_path):
    for name in ("rock/a.m4a", "blues/b.aac"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=r"no folder with audio in it; mgc has no decoder for \.aac, \.m4a, convert"):
        read_tracks(tmp_path)


def test_a_csv_with_music_that_is_not_decoded_says_so(tmp_path):
    found = read_tracks(write_csv(tmp_path, "path,genre\n1.M4A,Rock\n2.m4a,Pop\n3.mp3,Pop\n"))
    assert found.table.num_rows == 3
    assert found.notes == ("2 clips end in .m4a, for which mgc has no decoder: convert them to FLAC or MP3",)


def test_a_copy_elsewhere_is_the_same_table_to_the_byte(tmp_path):
    here, there = genre_folders(tmp_path / "a"), tmp_path / "b"
    shutil.copytree(here, there)
    assert read_tracks(here).table.equals(read_tracks(there).table)
    assert read_tracks(str(here) + "/").table.equals(read_tracks(there).table)


def test_adding_clips_keeps_every_old_id(tmp_path):
    before = column_by_path(read_tracks(genre_folders(tmp_path, clips=5)), "track_id")
    genre_folders(tmp_path, clips=9, genres=("ambient", "blues", "rock"))
    after = column_by_path(read_tracks(tmp_path), "track_id")
    assert len(after) == 27
    assert before.items() <= after.items()
    assert len(set(after.values())) == 27
    assert all(0 < track_id <= 2**48 for track_id in after.values())


def test_an_id_is_what_it_was_in_the_first_release():
    assert path_id("rock/rock.00000.wav") == 121179905276954


def test_another_seed_draws_another_split_and_the_same_seed_the_same(tmp_path):
    genre_folders(tmp_path)
    first, again, other = (column_by_path(read_tracks(tmp_path, seed=seed), "split") for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert Counter(first.values()) == Counter(other.values())


def test_clips_of_the_same_id_are_an_error_that_names_both(tmp_path, monkeypatch):
    monkeypatch.setattr(tracks, "path_id", lambda path: 7)
    with pytest.raises(InputError, match=r"track_id 7 stands for two clips, .*00000.wav and .*wav; remove or rename"):
        read_tracks(genre_folders(tmp_path))


def test_a_folder_without_two_genres_says_what_a_root_is(tmp_path):
    with pytest.raises(InputError, match=r"no folder with audio in it; `root` is an FMA .*folder per genre.*CSV"):
        read_tracks(tmp_path)
    with pytest.raises(InputError, match=r"audio in one folder only \(rock\)"):
        read_tracks(genre_folders(tmp_path, genres=("rock",)))


def test_a_csv_of_one_genre_is_refused_as_a_folder_is(tmp_path):
    for rows in ("1.mp3,Rock\n2.mp3,Rock\n", "1.mp3,Rock\n2.mp3,rock\n"):
        with pytest.raises(InputError, match="all clips are of one genre, Rock; a model needs two"):
            read_tracks(write_csv(tmp_path, f"path,genre\n{rows}"))


def test_no_such_root_and_no_such_subset_are_named(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        read_tracks(tmp_path / "nowhere")
    with pytest.raises(InputError, match="subset=full"):
        read_tracks(genre_folders(tmp_path), subset="full")


def test_more_genres_than_an_int8_label_can_count_are_refused(tmp_path):
    genre_folders(tmp_path, clips=1, genres=[f"g{i}" for i in range(127)])
    assert read_tracks(tmp_path).table["label"].to_pylist().count(126) == 1
    genre_folders(tmp_path, clips=1, genres=["one more"])
    with pytest.raises(InputError, match="128 genres, at most 127"):
        read_tracks(tmp_path)


def test_a_file_name_that_is_not_utf8_is_one_clear_line():
    with pytest.raises(InputError, match="not UTF-8; rename it"):
        path_id("rock/\udcff.mp3")


# A CSV file


def test_a_csv_gives_its_split_artist_title_duration_and_licence(tmp_path):
    file = write_csv(
        tmp_path,
        "\ufeffpath,mood,genre,split,artist,title,duration,license\n"
        '"a, b/1.mp3",sad,Rock,TRAIN, The  Who ,"My\nGeneration",198.5,CC-BY-4.0\n'
        "\n"
        "./x/../2.mp3,,Blues,val,,,,\n"
        "3.mp3,,Blues,Testing\n4.mp3,,Blues,dev\n",
    )
    found = read_tracks(file)
    rows = {row["path"]: row for row in found.table.to_pylist()}
    assert found.table.schema == SCHEMA
    assert found.audio_root == Folder.at(tmp_path)
    assert rows["a, b/1.mp3"] == {
        "track_id": path_id("a, b/1.mp3"),
        "path": "a, b/1.mp3",
        "genre": "Rock",
        "label": 1,
        "split": "training",
        "artist_id": "the who",
        "artist_name": "The  Who",
        "title": "My\nGeneration",
        "duration": 198.5,
        "license": "CC-BY-4.0",
    }
    assert rows["2.mp3"]["license"] == rows["3.mp3"]["license"] == "unknown"
    assert [rows[f"{i}.mp3"]["split"] for i in (2, 3, 4)] == ["validation", "test", "validation"]
    assert rows["2.mp3"]["artist_id"] is rows["2.mp3"]["artist_name"] is rows["2.mp3"]["duration"] is None


LICENSED = (
    "path,genre,license\n1.mp3,Rock,CC-BY-4.0\n2.mp3,Rock,CC-BY-NC-4.0\n3.mp3,Pop,CC0-1.0\n"
    "4.mp3,Pop,Attribution-NoDerivatives 4.0 International\n5.mp3,Jazz,\n6.mp3,Jazz,CC-BY-NC-4.0\n"
)


def test_what_a_filter_of_licences_leaves_out_is_as_if_it_were_not_in_the_collection(tmp_path):
    found = read_tracks(write_csv(tmp_path, LICENSED), licences=LicenceFilter(without=["NC", "ND"]))
    alone = read_tracks(write_csv(tmp_path, "path,genre,license\n1.mp3,Rock,CC-BY-4.0\n3.mp3,Pop,CC0-1.0\n"))
    assert found.table.equals(alone.table)  # labels and drawn splits, too
    assert found.genres == ("Pop", "Rock")
    assert found.left_out == {"license": 4}
    assert found.notes == (
        f"{tmp_path}: 4 of 6 clips are left out for their licence: 2 CC-BY-NC-4.0, "
        "1 Attribution-NoDerivatives 4.0 International, 1 unknown",
    )


def test_a_filter_that_no_clip_passes_is_refused_with_the_licences_that_are_there(tmp_path):
    file = write_csv(tmp_path, LICENSED)
    with pytest.raises(InputError, match=r"none of its 6 clips has a licence that is asked for: 2 CC-BY-NC-4\.0, 1 "):
        read_tracks(file, licences=LicenceFilter(only=["MIT"]))
    assert read_tracks(file, licences=LicenceFilter(only=["cc-by", "CC0"])).table.num_rows == 2
    assert read_tracks(file, licences=LicenceFilter()).table.equals(read_tracks(file).table)


def test_folders_of_genres_have_no_licence(tmp_path):
    genre_folders(tmp_path)
    assert set(read_tracks(tmp_path).table["license"].to_pylist()) == {"unknown"}
    with pytest.raises(InputError, match=r"none of its \d+ clips has a licence that is asked for: \d+ unknown"):
        read_tracks(tmp_path, licences=LicenceFilter(without=["NC"]))


def test_absolute_paths_inside_the_folder_are_the_relative_ones_and_outside_stay_where_allowed(tmp_path):
    relative = read_tracks(write_csv(tmp_path, "path,genre\nsub/1.mp3,Rock\n2.mp3,Pop\n"))
    absolute = read_tracks(write_csv(tmp_path, f"path,genre\n{tmp_path}/sub/1.mp3,Rock\n2.mp3,Pop\n"))
    assert absolute.table.equals(relative.table)
    rows = f"/music/1.mp3,Rock\n../2.mp3,Rock\n{tmp_path}/../3.mp3,Pop\n"
    outside = read_tracks(write_csv(tmp_path, f"path,genre\n{rows}"), allow_outside=True)
    assert set(outside.table["path"].to_pylist()) == {"/music/1.mp3", "../2.mp3", f"{tmp_path.parent}/3.mp3"}
    assert (outside.audio_root / "/music/1.mp3").path == Path("/music/1.mp3")


@pytest.mark.parametrize("path", ["/etc/passwd", "../2.mp3", "a/../../2.mp3", "./..//2.mp3", ".."])
def test_a_path_that_leads_out_of_the_files_folder_is_refused(tmp_path, path):
    file = write_csv(tmp_path, f"path,genre\n1.mp3,Rock\n{path},Pop\n")
    with pytest.raises(InputError, match="is outside the file's folder") as caught:
        read_tracks(file)
    said = caught.value.for_command_line()
    assert said.startswith(f"{file}, line 3: path={path!r} ")
    assert said.endswith("or pass --allow-outside")
    assert "..mp3" in read_tracks(write_csv(tmp_path, "path,genre\n..mp3,Rock\n2.mp3,Pop\n")).table["path"].to_pylist()


def test_a_drawn_split_keeps_an_artist_in_one_split_however_the_name_is_spelt(tmp_path):
    artists = [f"Artist {i % 30}" if i % 2 else f" artist {i % 30} ".upper() for i in range(300)]
    lines = [f"{i}.mp3,{('Rock', 'Pop', 'Folk')[i % 7 % 3]},{artist}" for i, artist in enumerate(artists)]
    found = read_tracks(write_csv(tmp_path, "\n".join(["path,genre,artist", *lines])))
    assert artist_leaks(found.table) == []
    assert set(found.table["split"].to_pylist()) == set(SPLITS)


def test_the_order_of_a_csvs_lines_does_not_matter(tmp_path):
    lines = [f"{i}.mp3,{('Rock', 'Pop')[i % 3 % 2]},{('', 'X', 'Y', 'Z')[i % 4]}" for i in range(60)]
    first = read_tracks(write_csv(tmp_path, "\n".join(["path,genre,artist", *lines])))
    random.Random(3).shuffle(lines)
    again = read_tracks(write_csv(tmp_path, "\n".join(["path,genre,artist", *lines])))
    assert first.table.equals(again.table)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na,b\n", "needed columns are missing: path, genre;"),
        ("path;genre\na;b\n", "needed columns are missing: path, genre; .*commas"),
        ("", "needed columns are missing"),
        ("path,genre\n", "no rows below the header"),
        ('path,genre,title\n1.mp3,Rock,"a\nb"\n2.mp3, \n', "line 4: genre is empty"),
        ("path,genre\n1.mp3\n", "line 2: genre is empty"),
        ("path,genre\n,Rock\n", "line 2: path is empty"),
        ("path,genre\n1.mp3,Rock\n\n./1.mp3,Rock\n", r"line 4: path='\./1\.mp3' is on line 2 already"),
        ("path,genre,split\n1.mp3,Rock,train\n2.mp3,Rock,held\n", "line 3: split='held'; expected one of training"),
        ("path,genre,split\n1.mp3,Rock,train\n2.mp3,Rock\n", "line 3: split=''"),
        ("path,genre,duration\n1.mp3,Rock,3:20\n", "line 2: duration='3:20' is no number"),
        ("path,genre\n1, 2.mp3,Rock\n", "line 2: 3 cells under 2 columns; .*double quotes"),
    ],
)
def test_a_line_of_a_csv_that_cannot_be_used_is_named(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        read_tracks(write_csv(tmp_path, text))
    assert "clips.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_csv_is_read_by_its_byte_order_mark(tmp_path, encoding):
    text = "path,genre,artist\n1.mp3,Électro,Zoé\n2.mp3,Rock,Ж\n"
    mark = "\ufeff" if encoding[-3:] in ("-le", "-be") else ""
    (tmp_path / "clips.csv").write_bytes((mark + text).encode(encoding))
    found = read_tracks(tmp_path / "clips.csv")
    assert column_by_path(found, "genre") == {"1.mp3": "Électro", "2.mp3": "Rock"}
    assert column_by_path(found, "artist_name") == {"1.mp3": "Zoé", "2.mp3": "Ж"}


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16-le", "utf-16-be"])
def test_a_csv_in_another_encoding_is_to_be_saved_as_utf_8(tmp_path, encoding):
    lines = "".join(f"{i}.mp3,Rock\n" for i in range(2000))
    (tmp_path / "clips.csv").write_bytes(f"path,genre\n{lines}x.mp3,Électro\n".encode(encoding))
    with pytest.raises(InputError, match=r"clips\.csv: .*not.* UTF-8.*; save it as UTF-8") as caught:
        read_tracks(tmp_path / "clips.csv")
    assert "\n" not in str(caught.value)
    assert "\0" not in str(caught.value)


def test_a_binary_file_as_root_says_what_a_root_is(tmp_path):
    (tmp_path / "a.mp3").write_bytes(b"\xff\xfb\x90\x64" * 50)
    with pytest.raises(InputError, match=r"a\.mp3: not readable as CSV: .*`root` is"):
        read_tracks(tmp_path / "a.mp3")


# Names

E_ACUTE, E_AND_ACUTE = "\u00c9", "E\u0301"
"""«É» as one character, and as two."""


def test_genres_that_differ_in_case_spacing_or_form_are_one_and_it_is_said(tmp_path):
    rows = ["Rock", "rock", "Rock", " Rock  n  Roll", "rock n roll", f"{E_AND_ACUTE}lectro", f"{E_ACUTE}lectro"]
    file = write_csv(tmp_path, "\n".join(["path,genre", *(f"{i}.mp3,{genre}" for i, genre in enumerate(rows))]))
    found = read_tracks(file)
    assert found.genres == ("Rock", "Rock n Roll", f"{E_ACUTE}lectro")
    assert [note.partition(":")[0] for note in found.notes] == [f"one genre, {genre}" for genre in found.genres]
    assert found.notes[0] == "one genre, Rock: 'Rock' × 2, 'rock' × 1"
    assert "with decomposed letters" in found.notes[2]


def test_folders_of_one_genre_are_one(tmp_path):
    genre_folders(tmp_path, clips=3, genres=("Rock", "rock", f"{E_ACUTE}lectro", f"{E_AND_ACUTE}lectro"))
    found = read_tracks(tmp_path)
    assert Counter(found.table["genre"].to_pylist()) == {"Rock": 6, f"{E_ACUTE}lectro": 6}
    assert len(found.notes) == 2
    assert min(found.audio_root.sizes(found.table["path"].to_pylist())) > 0


@pytest.mark.parametrize("written", [E_ACUTE, E_AND_ACUTE])
@pytest.mark.parametrize("named", ["{0}/{0}.mp3", "{1}/{1}.mp3", "{0}/{1}.mp3", "../{1}/{1}{1}.mp3"])
def test_files_are_found_however_their_names_are_composed(tmp_path, written, named):
    there = named.format(E_ACUTE, E_AND_ACUTE)
    root = tmp_path / "root"
    (root / there).parent.mkdir(parents=True)
    (root / there).write_bytes(b"x")
    text = f"path,genre\n{there.replace(E_ACUTE, written).replace(E_AND_ACUTE, written)},Rock\n1.mp3,Pop\n"
    found = read_tracks(write_csv(root, text), allow_outside=True)
    assert set(found.table["path"].to_pylist()) == {there, "1.mp3"}


def test_ids_and_splits_do_not_depend_on_how_the_disk_composes(tmp_path):
    text = "\n".join(["path,genre", *(f"{E_ACUTE}{i}.mp3,{('Rock', 'Pop')[i % 2]}" for i in range(20))])
    tables = []
    for letter in (E_ACUTE, E_AND_ACUTE):
        folder = tmp_path / str(len(letter))
        folder.mkdir()
        for i in range(20):
            (folder / f"{letter}{i}.mp3").write_bytes(b"x")
        found = read_tracks(write_csv(folder, text))
        assert min(found.audio_root.sizes(found.table["path"].to_pylist())) == 1
        tables.append(found.table.select(["track_id", "genre", "split"]))
        known = dict(zip(found.table["path"].to_pylist(), ["test"] * 20, strict=True))
        again = read_tracks(folder / "clips.csv", known_splits=partial(dict, known)).table
        assert set(again["split"].to_pylist()) == {"test"}
    assert tables[0].equals(tables[1])


# Drawing splits


@pytest.mark.parametrize(("clips", "want"), [(100, (80, 10, 10)), (20, (16, 2, 2)), (1000, (800, 100, 100))])
def test_single_clips_are_dealt_exactly(clips, want):
    drawn = draw_splits([f"{i}" for i in range(clips)], ["Rock"] * clips, seed=0)
    assert tuple(drawn.count(split) for split in SPLITS) == want


@pytest.mark.parametrize("clips", range(3, 30))
def test_a_genre_of_three_or_more_groups_is_in_all_splits_and_mostly_in_training(clips):
    drawn = Counter(draw_splits([f"{i}" for i in range(clips)], ["Rock"] * clips, seed=clips))
    assert min(drawn[split] for split in SPLITS) >= 1
    assert abs(drawn["validation"] - drawn["test"]) <= 1
    assert clips < 5 or drawn["training"] >= 0.6 * clips


def test_a_genre_of_fewer_than_three_groups_is_for_training():
    assert draw_splits(["a", "b"], ["Rock", "Rock"], seed=0) == ["training", "training"]


def test_the_draw_does_not_depend_on_the_order_of_the_clips():
    groups = [f"{i % 23}" for i in range(200)]
    genres = [f"g{i % 5}" for i in range(200)]
    pairs = list(zip(groups, genres, draw_splits(groups, genres, seed=4), strict=True))
    random.Random(0).shuffle(pairs)
    again = draw_splits([pair[0] for pair in pairs], [pair[1] for pair in pairs], seed=4)
    assert again == [pair[2] for pair in pairs]


@pytest.mark.parametrize("seed", range(5))
def test_uneven_groups_stay_whole_and_each_genre_comes_close_to_80_10_10(seed):
    rng = random.Random(seed)
    groups = [f"artist {int(rng.paretovariate(0.5)) % 200}" for _ in range(3000)]
    genres = [f"g{int(group[7:]) % 3}" for group in groups]  # a genre an artist
    drawn = draw_splits(groups, genres, seed)
    splits_of, counts = defaultdict(set), defaultdict(Counter)
    for group, genre, split in zip(groups, genres, drawn, strict=True):
        splits_of[group].add(split)
        counts[genre][split] += 1
    assert all(len(splits) == 1 for splits in splits_of.values())
    for count in counts.values():
        assert 0.05 < count["test"] / count.total() < 0.2
        assert 0.05 < count["validation"] / count.total() < 0.2


def test_an_artist_of_two_genres_is_in_one_split_and_both_genres_are_in_all():
    groups = [f"{i // 2}" for i in range(60)]
    genres = ["Rock", "Pop"] * 30
    drawn = draw_splits(groups, genres, seed=0)
    assert all(drawn[i] == drawn[i + 1] for i in range(0, 60, 2))
    assert Counter(drawn[::2]) == Counter(drawn[1::2]) == {"training": 24, "validation": 3, "test": 3}


def test_a_genre_reckons_with_the_artists_that_another_genre_has_dealt():
    shared, own = [f"{i}" for i in range(10)], ["x", "y"]
    drawn = draw_splits([*shared, *shared, *own], ["Pop"] * 10 + ["Rock"] * 12, seed=0)
    assert Counter(drawn[:10]) == {"training": 8, "validation": 1, "test": 1}
    assert Counter(drawn[10:]) == {"training": 10, "validation": 1, "test": 1}


# Drawing clips


def collection_of(counts):
    """Splits, genres and ids of so many clips by split and genre."""
    cells = [cell for cell, count in counts.items() for _ in range(count)]
    return [split for split, _ in cells], [genre for _, genre in cells], list(range(100, 100 + len(cells)))


FMA_LIKE = {
    (split, f"g{i}"): count for split, count in (("training", 80), ("validation", 10), ("test", 10)) for i in range(8)
}


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 8, 10, 24, 40, 100, 799, 800, 5000])
def test_a_limit_keeps_splits_and_genres_in_proportion_and_each_if_it_can(limit):
    splits, genres, ids = collection_of(FMA_LIKE)
    drawn = draw_clips(splits, genres, ids, limit)
    assert len(drawn) == len(set(drawn)) == min(limit, 800)
    assert drawn == sorted(drawn)
    by_split = Counter(splits[i] for i in drawn)
    cells = Counter((splits[i], genres[i]) for i in drawn)
    assert len(by_split) == min(limit, 3)
    for split in by_split:
        here = [cells[split, f"g{i}"] for i in range(8)]
        assert max(here) - min(here) <= 1
    if limit >= 40:
        assert by_split["training"] == pytest.approx(0.8 * min(limit, 800), abs=1)
        assert len(cells) == (16 if limit == 40 else 24)  # of 4 clips for validation


def test_five_clips_are_of_all_splits_and_validation_is_of_a_genre_that_is_trained():
    splits, genres, ids = collection_of(FMA_LIKE)
    drawn = [(splits[i], genres[i]) for i in draw_clips(splits, genres, ids, 5)]
    assert Counter(split for split, _ in drawn) == {"training": 3, "validation": 1, "test": 1}
    trained = {genre for split, genre in drawn if split == "training"}
    assert len(trained) == 3
    assert {genre for _, genre in drawn} == trained


def test_a_rare_genre_is_drawn_too_and_none_more_often_than_it_is_there():
    splits, genres, ids = collection_of({("training", "Rock"): 96, ("training", "Jazz"): 2, ("test", "Rock"): 2})
    drawn = Counter((splits[i], genres[i]) for i in draw_clips(splits, genres, ids, 10))
    assert drawn == {("training", "Rock"): 8, ("training", "Jazz"): 1, ("test", "Rock"): 1}
    drawn = Counter((splits[i], genres[i]) for i in draw_clips(splits, genres, ids, 100))
    assert drawn[("training", "Jazz")] == 2


def test_which_clips_are_drawn_depends_neither_on_their_order_nor_on_the_limit():
    splits, genres, ids = collection_of(FMA_LIKE)
    drawn = {ids[i] for i in draw_clips(splits, genres, ids, 50)}
    order = random.Random(0).sample(range(800), 800)
    shuffled = [[values[i] for i in order] for values in (splits, genres, ids)]
    assert {shuffled[2][i] for i in draw_clips(*shuffled, 50)} == drawn
    assert drawn < {ids[i] for i in draw_clips(splits, genres, ids, 200)}


# Gaps


def test_splits_that_lack_genres_are_named():
    def said(*cells, genres=("Folk", "Pop", "Rock")):
        names = ("split", "genre")
        rows = [dict(zip(names, cell, strict=True)) for cell in cells]
        return gaps(pa.Table.from_pylist(rows, schema=pa.schema([(name, pa.string()) for name in names])), genres)

    whole = [(split, genre) for split in SPLITS for genre in ("Folk", "Pop", "Rock")]
    assert said(*whole) == []
    assert said(*(cell for cell in whole if cell != ("validation", "Pop"))) == ["validation has no clips of Pop"]
    assert said(*whole[1:]) == ["training has no clips of Folk, which no model can learn then"]
    assert said(*whole[:3]) == ["validation has no clips", "test has no clips"]
    many = [f"g{i}" for i in range(9)]
    lines = said(*[("training", genre) for genre in many], ("test", "g0"), ("validation", "g8"), genres=many)
    assert lines[1] == "test has no clips of g1, g2, g3, g4, g5 and 3 more genres"


# Leaks


def test_an_artist_of_two_splits_leaks_by_id_and_is_listed_once():
    table = rows_table(("training", "7", "AWOL"), ("training", "7", "AWOL"), ("test", "7", "AWOL"))
    assert artist_leaks(table) == [
        {"by": "id", "artist_id": "7", "artist_name": "AWOL", "splits": {"training": 2, "test": 1}}
    ]


def test_one_name_under_two_ids_leaks_by_name():
    table = rows_table(("training", "7", "AWOL"), ("validation", "8", " awol\n"), ("test", "9", "Other"))
    (leak,) = artist_leaks(table)
    assert (leak["by"], leak["artist_id"]) == ("name", "7, 8")
    assert leak["splits"] == {"training": 1, "validation": 1}


def test_a_name_that_reaches_further_than_its_leaking_id_is_listed_too():
    table = rows_table(("training", "7", "AWOL"), ("test", "7", "AWOL"), ("validation", "8", "AWOL"))
    assert [(leak["by"], list(leak["splits"])) for leak in artist_leaks(table)] == [
        ("id", ["training", "test"]),
        ("name", ["training", "validation", "test"]),
    ]


def test_unknown_artists_and_artists_of_one_split_do_not_leak():
    table = rows_table(
        ("training", None, None), ("test", None, None), ("test", "", " "), ("training", "", ""),
        ("training", "1", "A"), ("training", "1", "A"), ("test", "2", "B"),
    )  # fmt: skip
    assert artist_leaks(table) == []


def test_leaks_do_not_depend_on_the_order_of_the_rows_and_go_into_json():
    rows = [(split, f"{i}", f"Name {i % 4}") for i in range(8) for split in SPLITS[: 1 + i % 3]]
    rows += [("test", None, "Zed"), ("training", "x", "zed")]
    want = artist_leaks(rows_table(*rows))
    assert json.loads(json.dumps(want)) == want
    assert [leak["by"] for leak in want] == sorted(leak["by"] for leak in want)
    for seed in range(5):
        random.Random(seed).shuffle(rows)
        assert artist_leaks(rows_table(*rows)) == want


def test_the_leak_message_is_one_line_that_names_five_and_counts_the_rest():
    rows = [(split, f"{i}", f"Band\n{i}") for i in range(8) for split in ("training", "test")]
    message = leak_message(artist_leaks(rows_table(*rows)))
    assert message.startswith("8 artists are in more than one split: Band 0 (training 1, test 1); Band 1 (")
    assert message.endswith("; and 3 more")
    assert "\n" not in message
    assert "Band 5" not in message


def test_the_leak_message_falls_back_on_the_id_and_says_when_only_the_name_is_the_same():
    nameless = artist_leaks(rows_table(("training", "7", None), ("test", "7", None)))
    assert leak_message(nameless) == "1 artist is in more than one split: artist id 7 (training 1, test 1)"
    by_name = artist_leaks(rows_table(("training", "7", "X"), ("test", "8", "X")))
    assert leak_message(by_name).endswith("X (training 1, test 1, by name)")
