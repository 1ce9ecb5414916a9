"""The index of a collection, by the rules of mirdata's own validator."""

import errno
import hashlib
import json
import shutil

import pytest

from mgc.collection.index import index
from mgc.core.errors import InputError, RunError
from mgc.core.storage import Folder


def write(root, **texts):
    for path, text in texts.items():
        file = root / path.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


@pytest.fixture
def fma(tmp_path):
    """An FMA folder of three tracks, of which one has no file."""
    root = tmp_path / "fma"
    header = ",set,set,track,artist,artist\n,split,subset,genre_top,id,name\ntrack_id,,,,,\n"
    rows = "2,training,small,Rock,1,A\n5,test,small,Folk,2,B\n10,test,small,Folk,3,C\n20,test,large,Folk,3,C\n"
    (root / "fma_metadata").mkdir(parents=True)
    (root / "fma_small" / "000").mkdir(parents=True)
    (root / "fma_metadata" / "tracks.csv").write_text(header + rows)
    (root / "fma_metadata" / "genres.csv").write_text("genre_id,title\n1,Folk\n")
    (root / "fma_small" / "000" / "000002.mp3").write_bytes(b"two" * 100_000)
    (root / "fma_small" / "000" / "000010.mp3").write_bytes(b"ten")
    return root


def validated(content, root):
    """Missing and changed files, as ``validate_index`` of mirdata 1.0.0 finds them: a null path is passed over."""
    files = [entry for track in content["tracks"].values() for entry in track.values()]
    files += content["metadata"].values()
    named = [(root / path, md5) for path, md5 in files if path is not None]
    missing = [path for path, _ in named if not path.is_file()]
    return missing, [p for p, md5 in named if p.is_file() and hashlib.md5(p.read_bytes()).hexdigest() != md5]


def test_an_index_names_every_file_with_its_md5(fma, tmp_path):
    report = index(fma, tmp_path / "index.json")
    content = json.loads((tmp_path / "index.json").read_text())
    assert content == {
        "version": "1.0",
        "tracks": {
            "2": {"audio": ["fma_small/000/000002.mp3", hashlib.md5(b"two" * 100_000).hexdigest()]},
            "5": {"audio": [None, None]},
            "10": {"audio": ["fma_small/000/000010.mp3", hashlib.md5(b"ten").hexdigest()]},
        },
        "metadata": {
            name: [f"fma_metadata/{name}.csv", hashlib.md5((fma / f"fma_metadata/{name}.csv").read_bytes()).hexdigest()]
            for name in ("tracks", "genres")
        },
    }
    assert validated(content, fma) == ([], [])
    assert (report.tracks, report.missing) == (3, ("fma_small/000/000005.mp3",))
    assert report.bytes == 300_003 + sum(file.stat().st_size for file in (fma / "fma_metadata").iterdir())
    assert "missing: 1 files" in str(report)


def test_the_same_files_give_the_same_bytes_and_another_byte_is_found(fma, tmp_path):
    shutil.copytree(fma, tmp_path / "copy")
    for root, out in ((fma, "one.json"), (tmp_path / "copy", "two.json")):
        index(root, tmp_path / out, version="2026")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    content = json.loads((tmp_path / "one.json").read_text())
    assert content["version"] == "2026"
    (fma / "fma_small/000/000010.mp3").write_bytes(b"Ten")
    (fma / "fma_small/000/000002.mp3").unlink()
    assert validated(content, fma) == ([fma / "fma_small/000/000002.mp3"], [fma / "fma_small/000/000010.mp3"])


def test_a_collection_of_folders_has_an_index_too(tmp_path):
    write(tmp_path / "music", Rock__a="a", Folk__b="b")
    for path in (tmp_path / "music").glob("*/*"):
        path.rename(path.with_suffix(".mp3"))
    index(tmp_path / "music", tmp_path / "index.json")
    content = json.loads((tmp_path / "index.json").read_text())
    assert sorted(each["audio"][0] for each in content["tracks"].values()) == ["Folk/b.mp3", "Rock/a.mp3"]
    assert content["metadata"] == {}


def test_what_cannot_be_indexed_is_an_input_error_and_nothing_is_written(fma, tmp_path):
    out = tmp_path / "index.json"
    with pytest.raises(InputError, match="no such subset"):
        index(fma, out, subset="tiny")
    with pytest.raises(InputError, match=r"`out=.*nowhere/index.json`: .*nowhere is no folder"):
        index(fma, tmp_path / "nowhere" / "index.json")
    shutil.rmtree(fma / "fma_small")
    with pytest.raises(InputError, match="none of the 3 files is there"):
        index(fma, out)
    assert not out.exists()


def test_a_disk_that_fails_is_no_missing_file(fma, tmp_path, monkeypatch):
    opened = Folder.open

    def fail(folder, path):
        if path.endswith("000010.mp3"):
            raise OSError(errno.EIO, "Input/output error")
        return opened(folder, path)

    monkeypatch.setattr(Folder, "open", fail)
    with pytest.raises(RunError, match=r"000010\.mp3: cannot be read \(Input/output error\)"):
        index(fma, tmp_path / "index.json")
    assert not (tmp_path / "index.json").exists()
