"""FMA's tracks.csv: the real rows, the mini set, full scale, and every way it can be wrong."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import pytest

from mgc.collection import fma
from mgc.core.errors import InputError
from mgc.core.storage import Folder

SHARED = Path(__file__).parents[3] / "shared" / "data"
REAL_HEAD = SHARED / "fma_real" / "tracks_head.csv"

COLUMNS = [
    ("", "", "track_id"),
    ("album", "title", ""),
    ("artist", "bio", ""),
    ("artist", "id", ""),
    ("artist", "name", ""),
    ("set", "split", ""),
    ("set", "subset", ""),
    ("track", "duration", ""),
    ("track", "genre_top", ""),
    ("track", "license", ""),
    ("track", "title", ""),
]
BIO = 'several\nlines, a comma, and "quotes"'
GOOD = ["2", "Album", BIO, "7", "AWOL", "training", "small", "168", "Rock", "Attribution", "Food"]


def write_fma(root, rows, columns=COLUMNS):
    """A tracks.csv of ``rows``: dicts of changes to GOOD by the column's dotted name."""
    names = [third or f"{top}.{second}" for top, second, third in COLUMNS]
    kept = [COLUMNS.index(column) for column in columns]
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerows(zip(*columns, strict=True))
    for row in rows:
        cells = dict(zip(names, GOOD, strict=True)) | row
        writer.writerow([list(cells.values())[i] for i in kept])
    file = root / "fma_metadata" / "tracks.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(out.getvalue(), encoding="utf-8")
    return root


@pytest.fixture
def real_root(tmp_path):
    if not REAL_HEAD.is_file():
        pytest.skip(f"{REAL_HEAD} is absent: a checkout without the shared data")
    (tmp_path / "fma_metadata").mkdir()
    shutil.copy(REAL_HEAD, tmp_path / "fma_metadata" / "tracks.csv")
    return tmp_path


def test_the_small_rows_of_the_real_head_are_what_the_csv_module_reads(real_root):
    with REAL_HEAD.open(newline="", encoding="utf-8") as handle:
        top, second, _, *rows = list(csv.reader(handle))
    names = [f"{a}.{b}" for a, b in zip(top, second, strict=True)]
    want = [dict(zip(names, row, strict=True)) | {"id": row[0]} for row in rows]
    want = [row for row in want if row["set.subset"] == "small" and row["track.genre_top"]]
    table, left_out = fma.read_fma(Folder.at(real_root), "small")
    assert len(rows) == 9
    assert table["track_id"].to_pylist() == [int(row["id"]) for row in want]
    assert table["genre"].to_pylist() == [row["track.genre_top"] for row in want]
    assert table["split"].to_pylist() == [row["set.split"] for row in want]
    assert table["artist_id"].to_pylist() == [row["artist.id"] for row in want]
    assert table["artist_name"].to_pylist() == [row["artist.name"] for row in want]
    assert table["title"].to_pylist() == [row["track.title"] for row in want]
    assert table["duration"].to_pylist() == [float(row["track.duration"]) for row in want]
    assert table["license"].to_pylist() == [row["track.license"] for row in want]
    assert table["path"].to_pylist()[0] == "fma_small/000/000002.mp3"
    assert sum(left_out.values()) + table.num_rows == 9


def test_the_real_rows_without_a_genre_are_left_out_and_counted(real_root):
    table, left_out = fma.read_fma(Folder.at(real_root), "large")
    with REAL_HEAD.open(newline="", encoding="utf-8") as handle:
        without = sum(not row[40] for row in list(csv.reader(handle))[3:])
    assert without > 0
    assert left_out == {"other_subset": 0, "no_genre": without}
    assert table.num_rows == 9 - without


def test_each_subset_holds_those_before_it_under_its_own_folder(tmp_path):
    rows = [{"track_id": i, "set.subset": name} for i, name in enumerate(("small", "medium", "large", "large"), 1)]
    write_fma(tmp_path, rows)
    for subset, count in (("small", 1), ("medium", 2), ("large", 4)):
        table, left_out = fma.read_fma(Folder.at(tmp_path), subset)
        assert table["track_id"].to_pylist() == list(range(1, count + 1))
        assert table["path"].to_pylist()[0] == f"fma_{subset}/000/000001.mp3"
        assert left_out == {"other_subset": 4 - count, "no_genre": 0}


@pytest.mark.parametrize("genre", ["", " ", "NaN", "nan"])
def test_an_empty_or_nan_genre_counts_as_none(tmp_path, genre):
    write_fma(tmp_path, [{"track_id": 1, "track.genre_top": genre}, {"track_id": 2}])
    table, left_out = fma.read_fma(Folder.at(tmp_path), "small")
    assert table["track_id"].to_pylist() == [2]
    assert left_out == {"other_subset": 0, "no_genre": 1}


def test_quoted_empty_cells_are_null_and_cells_are_stripped(tmp_path):
    write_fma(
        tmp_path,
        [
            dict.fromkeys(("artist.id", "track.title", "track.duration", "track.license"), "")
            | {"artist.name": " AWOL\n"}
        ],
    )
    file = tmp_path / fma.TRACKS_CSV
    file.write_text(file.read_text().replace(",,", ',"",'))
    (row,) = fma.read_fma(Folder.at(tmp_path), "small")[0].to_pylist()
    assert row["artist_name"] == "AWOL"
    assert [row[name] for name in ("artist_id", "title", "duration", "license")] == [None] * 4


@pytest.mark.parametrize("change", [{"eol": "\r\n"}, {"bom": "\ufeff"}, {"quote": True}])
def test_line_ends_byte_order_mark_and_long_headers_do_not_matter(tmp_path, change):
    write_fma(tmp_path, [{"track_id": 5, "artist.bio": "one line"}])
    file = tmp_path / fma.TRACKS_CSV
    text = file.read_text().replace("\r\n", "\n")
    if change.get("quote"):
        text = text.replace("bio", '"bio\nand more"', 1)
    text = change.get("bom", "") + text.replace("\n", change.get("eol", "\n"))
    file.write_bytes(text.encode())
    table, left_out = fma.read_fma(Folder.at(tmp_path), "small")
    (row,) = table.to_pylist()
    assert (row["track_id"], row["genre"], row["title"], row["duration"]) == (5, "Rock", "Food", 168.0)
    assert left_out == {"other_subset": 0, "no_genre": 0}


def test_the_full_106574_rows_give_the_counts_they_were_made_with(tmp_path):
    def row(i):
        subset = "small" if i < 8_000 else "medium" if i < 25_000 else "large"
        split = "test" if i % 10 == 0 else "validation" if i % 10 == 1 else "training"
        bio = f"line {i}\n" * (i % 40) + 'a "quote", and more'
        genre = "" if i >= 25_000 and i % 2 else f"Genre {i % 8}"
        return {
            "track_id": 2 * i + 2,
            "artist.bio": bio,
            "set.subset": subset,
            "set.split": split,
            "track.genre_top": genre,
        }

    write_fma(tmp_path, [row(i) for i in range(106_574)])
    small, left_out = fma.read_fma(Folder.at(tmp_path), "small")
    assert small.num_rows == 8_000
    assert left_out == {"other_subset": 98_574, "no_genre": 0}
    assert small["split"].to_pylist().count("training") == 6_400
    large, left_out = fma.read_fma(Folder.at(tmp_path), "large")
    assert large.num_rows == 25_000 + 81_574 // 2
    assert left_out == {"other_subset": 0, "no_genre": 81_574 // 2}
    assert large["track_id"].to_pylist()[-1] == 2 * 106_572 + 2
    assert large["path"].to_pylist()[-1] == "fma_large/213/213146.mp3"


def test_missing_columns_are_named_and_the_others_are_not(tmp_path):
    gone = {("set", "subset"), ("track", "genre_top")}
    write_fma(tmp_path, [{}], [column for column in COLUMNS if column[:2] not in gone])
    with pytest.raises(InputError, match=r"missing: track\.genre_top, set\.subset;") as caught:
        fma.read_fma(Folder.at(tmp_path), "small")
    assert "tracks.csv" in str(caught.value)


def test_titles_durations_and_licences_may_be_absent(tmp_path):
    gone = {("track", "title"), ("track", "duration"), ("track", "license")}
    write_fma(tmp_path, [{}], [column for column in COLUMNS if column[:2] not in gone])
    (row,) = fma.read_fma(Folder.at(tmp_path), "small")[0].to_pylist()
    assert (row["title"], row["duration"], row["license"], row["genre"]) == (None, None, None, "Rock")


def test_no_such_root_and_no_tracks_csv_are_told_apart(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        fma.read_fma(Folder.at(tmp_path / "nowhere"), "small")
    with pytest.raises(InputError, match=r"no fma_metadata/tracks\.csv"):
        fma.read_fma(Folder.at(tmp_path), "small")


def test_an_empty_subset_says_which_subsets_the_file_has(tmp_path):
    write_fma(tmp_path, [{"track_id": i, "set.subset": "large"} for i in (1, 2)])
    with pytest.raises(InputError, match=r"no row of subset small; the file has large \(2 rows\)"):
        fma.read_fma(Folder.at(tmp_path), "small")


def test_an_unknown_subset_is_named_beside_the_known_ones(tmp_path):
    with pytest.raises(InputError, match=r"subset=tiny.*small, medium, large"):
        fma.read_fma(Folder.at(tmp_path), "tiny")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"track_id": "two"}, "track_id holds something that is no number.*'two'"),
        ({"track_id": ""}, "1 rows of subset small have no track_id"),
        ({"track.duration": "long"}, "duration holds something that is no number.*'long'"),
        ({"set.split": "dev"}, "track 2 has split='dev'; expected one of training, validation, test"),
        ({"set.split": ""}, "track 2 has split=None"),
        ({"track.genre_top": ""}, "none of the 1 rows of subset small has a genre"),
    ],
)
def test_a_cell_that_cannot_be_used_is_named(tmp_path, row, message):
    write_fma(tmp_path, [row])
    with pytest.raises(InputError, match=message):
        fma.read_fma(Folder.at(tmp_path), "small")


@pytest.mark.parametrize("tail", [b"1,2,3\r\n", b'1,"2\n3",4\r\n', b'"never closed', b"\xff\xfe," + b"," * 8 + b"\r\n"])
def test_a_broken_file_is_one_clear_line(tmp_path, tail):
    write_fma(tmp_path, [{}])
    file = tmp_path / fma.TRACKS_CSV
    file.write_bytes(file.read_bytes() + tail)
    with pytest.raises(InputError, match=r"tracks\.csv: not readable as CSV") as caught:
        fma.read_fma(Folder.at(tmp_path), "small")
    assert "\n" not in str(caught.value)


def test_an_empty_or_binary_file_is_no_traceback(tmp_path):
    file = tmp_path / fma.TRACKS_CSV
    file.parent.mkdir()
    for content in (b"", b"\xff\xfb\x90\x00" * 100, b"\x1f\x8b\x08\x00binary"):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"tracks\.csv"):
            fma.read_fma(Folder.at(tmp_path), "small")
    write_fma(tmp_path, [])
    with pytest.raises(InputError, match=r"tracks\.csv"):
        fma.read_fma(Folder.at(tmp_path), "small")


def test_ids_are_padded_to_six_digits_under_their_first_three():
    assert fma.clip_path(2, "small") == "fma_small/000/000002.mp3"
    assert fma.clip_path(155066, "medium") == "fma_medium/155/155066.mp3"
