"""Writing a file whole or not at all."""

from __future__ import annotations

import os

import pytest

from mgc.core.atomic_files import is_temporary, replacing, temporary_name, write_text


def test_a_temporary_name_is_known_again_and_never_given_twice():
    for name in ("manifest.json", "x", ".hidden", "training-00000-of-00003.parquet", "ü .txt"):
        given = {temporary_name(name) for _ in range(100)}
        assert len(given) == 100
        assert all(map(is_temporary, given))
        assert all(each.startswith(".") for each in given)  # hidden: no walk sees it
        assert not is_temporary(name)


def test_a_block_that_ends_well_replaces_the_file(tmp_path):
    write_text("old", tmp_path / "x")
    with replacing(tmp_path / "x") as temporary:
        assert is_temporary(temporary.name)
        temporary.write_text("new")
        assert (tmp_path / "x").read_text() == "old"
    assert (tmp_path / "x").read_text() == "new"
    assert os.listdir(tmp_path) == ["x"]


def fail_after_half(file):
    file.write_text("half")
    raise ZeroDivisionError


def test_a_block_that_fails_leaves_the_file_as_it_was_and_nothing_else(tmp_path):
    write_text("old", tmp_path / "x")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "x") as temporary:
        fail_after_half(temporary)
    assert (tmp_path / "x").read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "x"):
        pass  # nothing was written
    assert (tmp_path / "x").read_text() == "old"
