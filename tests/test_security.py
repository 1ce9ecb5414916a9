"""What is read from outside runs no code and leaves no folder, and what is secret is not passed on."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from helpers import feature_sets
from helpers.feature_sets import make_features
from helpers.fuzz import finished_set
from helpers.object_store import BUCKET, Store
from helpers.runs import trained
from helpers.wav_sets import tracks as wav_tracks

from mgc.core.errors import InputError, MgcError
from mgc.core.storage import Folder, without_password
from mgc.evaluation.evaluate import evaluate
from mgc.evaluation.predictions import Predictions
from mgc.evaluation.run_page import make
from mgc.features.card import dataset_card
from mgc.features.feature_set import FeatureSet
from mgc.features.layout import MANIFEST, PLAN
from mgc.features.plan import Plan
from mgc.library.predict import predict
from mgc.model import checkpoint
from mgc.sweep.sweep_folder import SweepFolder
from mgc.training import fit_state

SOURCES = sorted(Path(__file__).parents[1].glob("mgc/**/*.py"))
SCRIPT = "<script>alert(1)</script>"


# No pickle is loaded


class Planted:
    """Unpickled, it makes a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_no_module_has_a_way_to_load_one():
    loads = re.compile(r"\b(pickle|cloudpickle|joblib|dill|torch|yaml)\.(un)?(loads?|Unpickler)\(|allow_pickle=True")
    flavours = re.compile(r"mlflow\.\w+\.load_model|load_state_dict_from_url|torch\.export\.load|torch\.jit\.load")
    found = {path.name for path in SOURCES if loads.search(path.read_text()) or flavours.search(path.read_text())}
    assert found == {"child_process.py"}  # of its own child, through their pipe


def _set(folder, name):
    for file, data in finished_set().items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(data)
    return folder / (name or sorted(file.relative_to(folder) for file in folder.glob("shards/*"))[0])


READ = {
    "checkpoint/model.safetensors": checkpoint.read,
    "checkpoint/model.json": checkpoint.read_card,
    "state.safetensors": lambda folder: fit_state.history(Folder.at(folder)),
    "sweep.json": lambda folder: SweepFolder.read(Folder.at(folder)),
    PLAN: lambda folder: Plan.read(Folder.at(folder)),
    MANIFEST: FeatureSet.open,
    "": lambda folder: FeatureSet.open(folder).to_pandas(),
}


@pytest.mark.parametrize("name", READ)
def test_one_that_is_planted_in_a_file_does_nothing(name, tmp_path, features):
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(Planted(mark)))
    assert mark.exists()  # it works
    mark.unlink()
    folder = tmp_path / "there"
    folder.mkdir()
    if name.startswith("checkpoint"):
        folder = trained(features).checkpoint(tmp_path / "fetched")
        target = folder / name.partition("/")[2]
    else:
        target = _set(folder, name)
    assert target.exists() or name in ("state.safetensors", "sweep.json")
    target.write_bytes(pickle.dumps(Planted(mark)))
    with pytest.raises(InputError):
        READ[name](folder)
    assert not mark.exists()


def test_one_that_is_planted_in_a_runs_artifacts_does_nothing(tmp_path, features):
    run, mark = trained(features), tmp_path / "mark"
    evaluate(run.id, features, split="validation")
    planted = pickle.dumps(Planted(mark))
    for kept in ("predictions_validation.parquet", "model/data/model.pth", "python_model.pkl"):
        file = tmp_path / kept
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(planted)
        run.file(file)
    with pytest.raises(InputError, match=r"predictions_validation\.parquet is damaged"):
        Predictions.kept(run, "validation")
    with pytest.raises(MgcError):
        predict(run.id, [str(tmp_path / "python_model.pkl")])
    assert not mark.exists()


# Texts are texts


def test_a_page_escapes_genres_and_paths(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_sets, "GENRES", (SCRIPT, "Folk", "Jazz", "<img src=x onerror=alert(2)>"))
    own = make_features(tmp_path / "set", seed=5)
    for file in (tmp_path / "set" / "shards").iterdir():
        table = pq.read_table(file)
        paths = pa.array([f"<svg onload=alert({clip})>.mp3" for clip in table["track_id"].to_pylist()])
        pq.write_table(table.set_column(table.column_names.index("path"), "path", paths), file)
    run = trained(own)
    evaluate(run.id, own)
    make(run, out=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert "&lt;svg onload" in page
    assert not re.search(r"<script>alert|<img src=x|<svg onload", page)
    _, header, card = dataset_card(own.manifest).split("---\n", 2)
    assert SCRIPT in yaml.safe_load(header)["dataset_info"]["features"][3]["dtype"]["class_label"]["names"].values()
    assert "&lt;script&gt;" in card
    assert "<script>" not in card


def test_a_genre_makes_no_column_and_no_line_of_a_card(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_sets, "GENRES", ("a|b", "c\n# d", "R&B", "e"))
    lines = dataset_card(make_features(tmp_path / "set").manifest).splitlines()
    assert {r"| a\|b | 11 | 3 | 4 |", "| c # d | 11 | 3 | 3 |", "| R&amp;B | 11 | 3 | 3 |"} <= {*lines}


# Secrets


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://me:word@host:5000", "http://host:5000"),
        ("postgresql://me:w/o@rd@host/db", "postgresql://host/db"),
        ("sqlite:////tmp/mlflow.db", "sqlite:////tmp/mlflow.db"),
        ("MLflow store http://me:word@host: no (http://host)", "MLflow store http://host: no (http://host)"),
    ],
)
def test_a_store_is_named_without_its_password(uri, shown):
    assert without_password(uri) == shown


@pytest.mark.parametrize("uri", ["http://me:PLANTED@127.0.0.1:9", "postgresql://me:PLANTED@127.0.0.1:9/db"])
def test_a_tracking_uri_is_named_without_its_password(uri, features):
    environment = os.environ | {"MLFLOW_TRACKING_URI": uri, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    for command in (["train", "--features", str(features.folder)], ["ui"]):
        done = mgc(*command, env=environment)
        assert done.returncode in (1, 2)
        assert "127.0.0.1:9" in done.stderr
        assert "PLANTED" not in done.stdout + done.stderr


def mgc(*arguments, **options):
    command = [sys.executable, "-m", "mgc.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, **options)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_keys_of_uris_and_of_the_environment_are_nowhere_afterwards(tmp_path):
    """All that commands print, and all files that they leave but Ray's own: MLflow's, the set's, the storage's."""
    store = Store()
    table = wav_tracks(tmp_path / "clips", {"training": 3, "validation": 1, "test": 1}, seconds=1.2)
    lines = [f"{row['path']},{row['genre']},{row['split']}" for row in table.to_pylist()]
    (tmp_path / "clips" / "clips.csv").write_text("\n".join(["path,genre,split", *lines]))
    store.upload(tmp_path / "clips", "clips")

    def uri(path):
        return store.uri(path).replace("KEY:SECRET", "PLANTEDKEY:PLANTED%2FSECRET")

    said = ""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="r") as ray:  # a short path: sockets are in it
        work = tmp_path / "work"
        work.mkdir()
        environment = os.environ | {"RAY_TMPDIR": ray, "AWS_SESSION_TOKEN": "PLANTEDTOKEN"}
        search = ["--name", "s", "--trials", "1", "--top", "0", "--without"]
        small = ["--channels", "4", "4", "--epochs", "1"]
        features, storage = ("--features", uri("set")), ("--storage", uri("storage"))
        for code, *command in (
            [0, "preprocess", "--root", uri("clips/clips.csv"), "--out", uri("set"), "--min-seconds", "1"],
            [0, "train", *features, *storage, "--verbose", "--preset", "plain_cnn", *small],
            [1, "predict", "--model", "{run}", uri("clips/test/Folk-0.wav"), uri("clips/absent.wav")],
            [0, "tune", *features, *storage, *search, "--preset", "plain_cnn", *small],
            [2, "train", "--features", uri("absent")],
        ):
            run = re.findall(r"\b[0-9a-f]{32}\b", said)
            done = mgc(*(run[-1] if word == "{run}" else word for word in command), cwd=work, env=environment)
            said += done.stdout + done.stderr
            assert done.returncode == code, done.stderr
    assert "PLANTED" not in said
    assert not [file for file in work.rglob("*") if file.is_file() and b"PLANTED" in file.read_bytes()]
    for prefix in ("set", "storage"):
        there = store.contents(prefix)
        assert there
        assert not [name for name, data in there.items() if b"PLANTED" in data]
    assert said.count("s3://" + BUCKET) > 3
    store.server.stop()
