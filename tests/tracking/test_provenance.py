"""Who ran a run, and with which code and libraries."""

from mgc.tracking.provenance import COMMIT_TAG, VERSION_TAG, provenance


def test_where_there_is_no_git_a_run_has_versions_and_no_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    tags = provenance()
    assert COMMIT_TAG not in tags
    assert tags[f"{VERSION_TAG}ray"]
