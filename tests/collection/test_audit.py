"""The audit: counts, missing files, identical files, leaking artists."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from mgc import cli
from mgc.collection import audit as audit_module
from mgc.collection.audit import audit
from mgc.core.errors import InputError

MINI = Path(__file__).parents[3] / "shared" / "data" / "soundtrack8-mini"
MORE_THAN_MIDDLE = 200_000


@pytest.fixture
def data(tmp_path):
    """Write a CSV of ``path: (content or None, genre, split, artist)`` and the files; return the CSV."""

    def write(clips):
        lines = ["path,genre,split,artist"]
        for path, (content, *cells) in clips.items():
            lines.append(",".join([path, *cells]))
            if content is not None:
                (tmp_path / path).write_bytes(content)
        file = tmp_path / "clips.csv"
        file.write_text("\n".join(lines))
        return file

    return write


def test_the_mini_set_is_whole_and_does_not_leak():
    if not MINI.is_dir():
        pytest.skip(f"{MINI} is absent: a checkout without the shared data")
    report = audit(MINI)
    assert report.ok is True
    assert report.clips == 120
    assert report.by_split == {"training": 88, "validation": 16, "test": 16}
    assert set(report.by_genre.values()) == {15}
    assert report.missing == report.artist_leaks == report.duplicate_clips == []
    assert report.left_out["other_subset"] == 60


def test_counts_by_split_and_genre_each_add_up_to_the_clips(data):
    report = audit(
        data(
            {
                "1.mp3": (b"1", "Rock", "train", "A"),
                "2.mp3": (b"2", "Rock", "test", "B"),
                "3.mp3": (b"3", "Pop", "train", "C"),
            }
        )
    )
    assert report.clips == 3
    assert report.by_split == {"training": 2, "validation": 0, "test": 1}
    assert report.by_genre == {"Pop": 1, "Rock": 2}
    assert report.by_genre_and_split["Rock"] == {"training": 1, "validation": 0, "test": 1}
    names = "clips by_split by_genre by_genre_and_split missing artist_leaks duplicate_clips left_out notes "
    names += "gaps by_license nothing_there ok"
    assert list(json.loads(json.dumps(report.to_dict()))) == names.split()
    assert report.to_dict()["ok"] is True


def test_licences_are_counted_where_the_collection_names_any(tmp_path, data):
    assert "licences" not in str(
        audit(data({"1.mp3": (b"1", "Rock", "train", "A"), "2.mp3": (b"2", "Pop", "test", "B")}))
    )
    file = tmp_path / "licensed.csv"
    file.write_text("path,genre,license\n1.mp3,Rock,\n2.mp3,Pop,CC0-1.0\n3.mp3,Pop,CC0-1.0\n")
    report = audit(file)
    assert report.by_license == {"CC0-1.0": 2, "unknown": 1}
    assert "licences:\n  2 CC0-1.0\n  1 unknown\n" in str(report)


def test_missing_lists_exactly_the_paths_without_a_file(data):
    clips = {f"{i}.mp3": (b"x" * i if i % 3 else None, ("Rock", "Pop")[i % 2], "train", "") for i in range(1, 30)}
    report = audit(data(clips))
    assert set(report.missing) == {path for path, clip in clips.items() if clip[0] is None}
    text = str(report)
    assert "missing files: 9 of 29 clips" in text
    assert sum(path in text.split() for path in report.missing) == 5
    assert "… and 4 more" in text
    assert report.ok is True


def test_identical_files_are_grouped_and_those_across_splits_named_first_of_all(data):
    twin, pair = b"twin" * MORE_THAN_MIDDLE, b"pair" * MORE_THAN_MIDDLE
    report = audit(
        data(
            {
                "c.mp3": (twin, "Rock", "test", "A"),
                "a.mp3": (twin, "Pop", "train", "B"),
                "b.mp3": (twin, "Pop", "train", "C"),
                "d.mp3": (pair, "Pop", "train", "C"),
                "e.mp3": (pair, "Pop", "train", "D"),
            }
        )
    )
    assert report.duplicate_clips == [
        {"paths": ["a.mp3", "b.mp3", "c.mp3"], "splits": ["training", "test"]},
        {"paths": ["d.mp3", "e.mp3"], "splits": ["training"]},
    ]
    text = str(report)
    assert "WARNING: 1 of these groups span" in text
    assert "a.mp3 = b.mp3 = c.mp3  (training, test)" in text
    assert "groups span" not in str(replace(report, duplicate_clips=report.duplicate_clips[1:]))


def test_files_that_differ_only_outside_the_middle_are_no_duplicates(data):
    body = bytes(MORE_THAN_MIDDLE)
    report = audit(
        data(
            {
                "1.mp3": (b"a" + body, "Rock", "train", ""),
                "2.mp3": (b"b" + body, "Rock", "train", ""),
                "3.mp3": (body + b"c", "Pop", "train", ""),
            }
        )
    )
    assert report.duplicate_clips == []


def test_empty_files_are_neither_duplicates_nor_missing(data):
    report = audit(data({"1.mp3": (b"", "Rock", "train", ""), "2.mp3": (b"", "Pop", "test", "")}))
    assert report.duplicate_clips == report.missing == []


def test_a_folder_in_a_clips_place_is_not_read(data, tmp_path):
    (tmp_path / "1.mp3").mkdir()
    (tmp_path / "2.mp3").mkdir()
    report = audit(data({"1.mp3": (None, "Rock", "train", ""), "2.mp3": (None, "Pop", "train", "")}))
    assert report.duplicate_clips == report.missing == []


def test_whole_files_are_read_only_where_size_and_middle_agree(data, monkeypatch):
    read = []
    sha1 = audit_module._sha1
    monkeypatch.setattr(
        audit_module,
        "_sha1",
        lambda folder, path, *part: (read.append((path, bool(part))), sha1(folder, path, *part))[1],
    )
    audit(
        data(
            {
                "alone.mp3": (b"a" * 10, "Pop", "train", ""),
                "size1.mp3": (b"b" * 20, "Rock", "train", ""),
                "size2.mp3": (b"c" * 20, "Rock", "train", ""),
                "same1.mp3": (b"d" * 30, "Rock", "train", ""),
                "same2.mp3": (b"d" * 30, "Rock", "train", ""),
            }
        )
    )
    assert {name for name, part in read if part} == {"size1.mp3", "size2.mp3", "same1.mp3", "same2.mp3"}
    assert {name for name, part in read if not part} == {"same1.mp3", "same2.mp3"}


def test_an_artist_in_two_splits_fails_the_audit_and_is_named(data):
    report = audit(data({"1.mp3": (b"1", "Rock", "train", "AWOL"), "2.mp3": (b"2", "Pop", "test", "Awol")}))
    assert report.ok is report.to_dict()["ok"] is False
    assert [leak["artist_name"] for leak in report.artist_leaks] == ["AWOL"]
    assert "LEAK: 1 artist is in more than one split: AWOL (training 1, test 1)" in str(report)


def test_the_summary_has_a_line_a_genre_with_its_counts(data):
    report = audit(data({"1.mp3": (b"1", "Hip-Hop", "train", "A"), "2.mp3": (b"22", "Pop", "val", "B")}))
    lines = [line.split() for line in str(report).splitlines()]
    assert lines[:4] == [
        ["genre", "training", "validation", "test", "all"],
        ["Hip-Hop", "1", "0", "0", "1"],
        ["Pop", "0", "1", "0", "1"],
        ["all", "1", "1", "0", "2"],
    ]
    assert [" ".join(line) for line in lines[4:7]] == [f"WARNING: {gap}" for gap in report.gaps]
    assert report.gaps[1:] == ("validation has no clips of Hip-Hop", "test has no clips")
    assert "artists: none is in more than one split" in str(report)


@pytest.mark.parametrize(
    ("written", "there", "said"),
    [
        (
            "{root}/fma_small/000/1.mp3",
            "fma_small/fma_small/000/1.mp3",
            r"there is .*/fma_small/fma_small/000/1\.mp3: move",
        ),
        ("Rock/1.MP3", "rock/1.mp3", r"tried .*/Rock/1\.MP3; there is .*/rock/1\.mp3: move"),
        ("rock\\1.mp3", "rock/1.mp3", r"tried .*/rock\\1\.mp3; the table separates folders by \\: write /"),
        (
            "C:\\music\\1.mp3",
            "1.mp3",
            r"tried .*/C:\\music\\1\.mp3; drives are another .* relative to the CSV file's folder",
        ),
        ("c:/music/1.mp3", "1.mp3", "drives are another computer"),
        ("/home/someone/else/1.mp3", None, r"tried /home/someone/else/1\.mp3; absolute paths may be another"),
        ("rock/1.mp3", None, "no file of such a name is below .*: are the clips unpacked there"),
    ],
)
def test_where_nothing_is_there_the_likely_cause_is_said_and_the_exit_code_is_2(tmp_path, capsys, written, there, said):
    if there:
        (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / there).write_bytes(b"x")
    file = tmp_path / "clips.csv"
    file.write_text(f"path,genre\n{written.format(root=tmp_path)},Rock\n2.wav,Pop\n")
    for name in ("audit", "preprocess"):
        out = ["--out", str(tmp_path / "set")] if name == "preprocess" else []
        code = cli.run([name, "--root", str(file), "--allow-outside", *out])
        printed, error = capsys.readouterr()
        assert code == 2
        assert re.search(f"none of the 2 files is there; .*{said}", error), error
        assert len(error.splitlines()) == 1
        assert bool(printed) == (name == "audit")
    assert not (tmp_path / "set").exists()
    report = audit(file, allow_outside=True)
    assert (report.ok, report.to_dict()["ok"], len(report.missing)) == (False, False, 2)


def test_folders_that_are_read_as_splits_are_named(tmp_path):
    for path in ("train/Pop/1.mp3", "train/Rock/1.mp3", "val/Pop/2.mp3", "val/Rock/2.mp3"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_bytes(path.encode())
    report = audit(tmp_path)
    assert report.by_split == {"training": 2, "validation": 2, "test": 0}
    assert str(report).splitlines()[0] == f"{tmp_path}: train, val are read as splits, the folders in them as genres"
    assert report.to_dict()["notes"] == report.notes


def test_what_cannot_be_read_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        audit(tmp_path / "nowhere")
