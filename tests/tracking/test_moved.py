"""A store works wherever its folder is moved or copied and whatever its name is, and never writes elsewhere."""

import os
import shutil
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import mlflow
import pytest

from mgc.core.errors import InputError, RunError
from mgc.core.storage import Folder
from mgc.tracking import store
from mgc.tracking.database import address, database
from mgc.tracking.runs import Run

NAMES = ["plain", "with space", "é", "a%41", "a%20b", "what?", "number#1", "50% é?#&="]
HOME = "mlflow_runs"

MAKE = """
from pathlib import Path
from mgc.core.storage import Folder
from mgc.tracking import store
from mgc.tracking.runs import Run
run = Run.start(store.open_store(Folder.at(Path.cwd())), "mgc", name="n", step="train", config={})
run.text("a model", "checkpoint/model.json")
home = Path.cwd() / "mlflow_runs" / "checkpoints" / run.id
run.tag({"mgc.storage": str(home), "mgc.features.path": str(Path.cwd() / "features"), "other": str(home)})
print(run.id)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project with a run, made by another process, and the run's id."""
    project = tmp_path_factory.mktemp("project") / "one"
    (project / "features").mkdir(parents=True)
    done = subprocess.run([sys.executable, "-c", MAKE], cwd=project, stdout=subprocess.PIPE, text=True, check=True)
    return project, done.stdout.strip()


def opened(project, monkeypatch):
    """The project's store, as a process that has just started opens it: MLflow remembers where a run's files are."""
    monkeypatch.chdir(project)
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_artifact_repos_cache", OrderedDict())
    return store.existing_store(Folder.at(project))


def everything(folder):
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("name", NAMES)
def test_a_copied_project_reads_and_writes_its_own_files(made, tmp_path, monkeypatch, name):
    project, run_id = made
    before = everything(project)
    copy = tmp_path / name
    shutil.copytree(project, copy)
    run = Run.find(opened(copy, monkeypatch), run_id)
    assert (run.checkpoint(tmp_path / "fetched") / "model.json").read_text() == "a model"
    run.text("a page", "report.html")
    new = Run.start(run.uri, "mgc", name="new", step="train", config={})
    new.text("mine", "own.txt")
    assert (copy / HOME / "artifacts" / run_id / "artifacts" / "report.html").read_text() == "a page"
    assert (copy / HOME / "artifacts" / new.id / "artifacts" / "own.txt").read_text() == "mine"
    tags = run.record().tags
    assert tags["mgc.storage"] == str(copy / HOME / "checkpoints" / run_id)
    assert tags["mgc.features.path"] == str(copy / "features")
    assert tags["other"] == str(project / HOME / "checkpoints" / run_id)
    assert everything(project) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "fetched"])  # no stray files


def test_a_moved_project_does_not_make_its_old_folder_again(made, tmp_path, monkeypatch):
    project, run_id = made
    for place in ("first", "second"):
        shutil.copytree(project if place == "first" else tmp_path / "first", tmp_path / place)
        if place == "second":
            shutil.rmtree(tmp_path / "first")
        uri = opened(tmp_path / place, monkeypatch)
        Run.start(uri, "mgc", name="new", step="train", config={}).text("mine", "own.txt")
        assert Run(uri, run_id).fetch("checkpoint/model.json", tmp_path)
    assert not (tmp_path / "first").exists()


def test_another_way_to_the_same_folder_changes_nothing(made, tmp_path, monkeypatch):
    project, run_id = made
    (tmp_path / "link").symlink_to(project)
    before = Run(opened(project, monkeypatch), run_id).artifact_uri("")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address(tmp_path / "link" / HOME / "mlflow.db"))
    assert Run(store.open_store(Folder.at(project)), run_id).artifact_uri("") == before


def test_artifacts_that_were_put_elsewhere_stay_there(tmp_path, monkeypatch):
    """By somebody who made mgc's experiment himself, or has one of his own."""
    monkeypatch.chdir(tmp_path)
    uri = store.open_store(Folder.at(tmp_path))
    for name, place in (("mgc", "s3://bucket/artifacts"), ("mine", "file:///data/artifacts")):
        store.client(uri).create_experiment(name, artifact_location=place)
    store.open_store(Folder.at(tmp_path))
    places = {each.name: each.artifact_location for each in store.client(uri).search_experiments()}
    assert (places["mgc"], places["mine"]) == ("s3://bucket/artifacts", "file:///data/artifacts")


@pytest.mark.parametrize("name", NAMES)
def test_an_address_leads_back_to_its_file(name):
    file = Path("/somewhere", name, "mlflow.db")
    assert database(address(file)) == file
    assert database("http://127.0.0.1:5000") is None


@pytest.mark.parametrize("kind", ["garbage", "folder"])
def test_a_database_that_is_none_is_one_line_at_once(tmp_path, monkeypatch, kind):
    file = tmp_path / HOME / "mlflow.db"
    file.parent.mkdir()
    file.mkdir() if kind == "folder" else file.write_bytes(os.urandom(4096))
    with pytest.raises(RunError, match=r"mlflow\.db: cannot be opened \(") as caught:
        opened(tmp_path, monkeypatch)
    assert len(str(caught.value).splitlines()) == 1


def test_an_empty_folder_has_no_store(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no MLflow store here yet"):
        opened(tmp_path, monkeypatch)
