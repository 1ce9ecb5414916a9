"""The store is where it is said to be; one that does not answer is no fault of the input."""

import json

import pytest

from mgc.core.errors import InputError, RunError
from mgc.core.storage import Folder
from mgc.tracking import store, ui
from mgc.tracking.runs import Run


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working directory without a store."""
    monkeypatch.chdir(tmp_path)
    return Folder.at(tmp_path)


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1", "sqlite:////proc/no/mlflow.db"])
def test_a_store_that_does_not_answer_is_a_run_error(elsewhere, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(RunError, match=uri) as caught:
        store.open_store(elsewhere)
    assert len(str(caught.value).splitlines()) == 1


def test_a_database_that_is_damaged_is_a_run_error(elsewhere):
    (elsewhere.path / "mlflow_runs").mkdir()
    (elsewhere.path / "mlflow_runs" / "mlflow.db").write_text("no database " * 100)
    with pytest.raises(RunError, match=r"mlflow\.db: cannot be opened \(.*not a database"):
        store.existing_store(elsewhere)


@pytest.mark.parametrize("uri", ["foo://x", "postgresql://user@127.0.0.1:1/x"])
def test_an_address_that_mlflow_cannot_use_is_an_input_error(elsewhere, monkeypatch, uri):
    """Of an unknown kind, or of a database whose driver is not installed."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError, match=uri.replace("user@", "")):
        store.open_store(elsewhere)


def test_a_server_that_is_gone_is_not_taken_for_an_unknown_run(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RunError, match=r"http://127\.0\.0\.1:1: does not answer"):
        Run.find("http://127.0.0.1:1", "abc")


def test_asking_for_a_run_makes_no_store(elsewhere):
    with pytest.raises(InputError, match="no MLflow store here yet"):
        store.existing_store(elsewhere)
    assert not list(elsewhere.path.iterdir())


def test_the_store_is_in_the_working_directory_and_in_a_job_beside_the_features(elsewhere, monkeypatch):
    features = Folder.at("/data/features")
    assert store.home(features) == elsewhere.path / "mlflow_runs"
    monkeypatch.setattr(store, "in_job", lambda: True)
    assert str(store.home(features)) == "/data/mlflow_runs"
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI"):
        store.home(Folder.at("s3://bucket/features?region=us-east-1"))


def test_a_server_has_its_own_ui(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(InputError, match="its own UI"):
        ui.serve(5000)


def test_the_ui_takes_the_place_of_the_process_on_loopback(monkeypatch, capsys):
    given = []
    monkeypatch.setattr(ui.os, "execv", lambda program, arguments: given.append(arguments))
    monkeypatch.setattr(ui, "existing_store", lambda beside: "sqlite:////x/mlflow.db")
    ui.serve(5001, as_json=True)
    line = " ".join(given[0][1:])
    assert (
        line == "-m mlflow server --backend-store-uri sqlite:////x/mlflow.db --host 127.0.0.1 --port 5001 --workers 1"
    )
    printed = capsys.readouterr()
    assert "http://127.0.0.1:5001" in printed.err
    assert json.loads(printed.out) == {"uri": "sqlite:////x/mlflow.db", "url": "http://127.0.0.1:5001"}
