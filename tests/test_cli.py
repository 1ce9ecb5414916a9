"""The contract: names, flags, exit codes, the last line of standard output; and how quick and light help is."""

import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path

import pytest
from helpers import feature_sets
from helpers.feature_sets import make_features

from mgc import cli
from mgc.config import PRESETS, ModelConfig, SweepConfig, TrainConfig
from mgc.core.storage import Folder
from mgc.tracking import store
from mgc.tracking.runs import EXPERIMENT

HEAVY = ("torch", "ray", "mlflow", "librosa", "pandas", "matplotlib", "sklearn", "pyarrow", "numpy")


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "code", ["import mgc", "from mgc import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass"]
)
def test_help_loads_nothing_heavy(code):
    loaded = python(f"{code}\nimport sys; print('LOADED', *[name for name in {HEAVY} if name in sys.modules])")
    assert loaded.splitlines()[-1] == "LOADED"


def test_every_command_and_flag_is_the_contracts():
    """A new flag is added here on purpose, an old one is never lost by accident."""
    flags = {
        name: {each.name: each.default for each in fields(kind) if each.name not in {"json", "debug", "config"}}
        for name, kind in cli.COMMANDS.items()
    }
    for name, kind in cli.COMMANDS.items():
        assert issubclass(kind, cli.Command), name
    assert {name: set(defaults) for name, defaults in flags.items()} == {
        "toy": {"out", "clips_per_genre", "seed"},
        "download": {"name", "root", "base_url"},
        "audit": {"root", "subset", "allow_outside"},
        "index": {"root", "out", "subset", "version", "allow_outside"},
        "preprocess": {
            "root", "out", "features", "subset", "allow_outside", "workers", "limit", "min_seconds", "max_quarantined",
            "clips_per_shard", "keep_damaged", "clip_timeout", "overwrite", "wait", "verbose", "license",
            "without_license",
        },
        "verify": {"features", "sources"},
        "inspect": {"features", "out"},
        "train": {
            "features", "preset", "config_file", "allow_leaks", "seeds", "gpus", "workers", "feed", "run_name",
            "graphs", "deterministic", "min_workers", "storage", "wait", "verbose",
        },
        "tune": {
            "features", "preset", "config_file", "allow_leaks", "sweep_config", "space", "name", "resume", "storage",
            "wait", "verbose",
        },
        "evaluate": {"run", "features", "split", "precision"},
        "compare": {"run_a", "run_b", "split"},
            "blend": {"runs", "split"},
        "mislabels": {"run", "features", "root", "out", "most"},
        "promote": {"run"},
        "report": {"run", "out"},
        "baseline": {"features", "root", "kind", "encoder", "classifier", "split", "folds", "workers"},
        "predict": {"model", "clips", "precision"},
        "label": {
            "root", "model", "out", "precision", "workers", "clip_timeout", "retry", "overwrite", "wait", "verbose",
        },
        "playlists": {"labels", "out", "unsure"},
        "serve": {"model", "host", "port", "precision", "limits"},
        "ui": {"port"},
        "demo": {"out"},
        "reproduce": {"file", "only", "data", "work"},
    }  # fmt: skip
    fields_of_the_configuration = "channels norm input-norm dropout head head-dropout lr schedule weight-decay"
    fields_of_the_configuration += " label-smoothing batch-size epochs seed window spatial-dropout mixup-alpha"
    fields_of_the_configuration += " time-masks time-mask-frames band-masks band-mask-bands equalize warmup-epochs"
    fields_of_the_configuration += " clip-norm ema-epochs precision keep patience split folds fold"
    for command in ("train", "tune"):
        help_text = python(f"from mgc import cli\ntry: cli.main(['{command}', '--help'])\nexcept SystemExit: pass")
        for name in fields_of_the_configuration.split():
            assert f"--{name} " in help_text or f"--{name}," in help_text, (command, name)
    assert flags["toy"]["clips_per_genre"] == 12
    assert flags["preprocess"]["min_seconds"] == 5.0
    assert flags["preprocess"]["max_quarantined"] == 0.05
    assert {each.name: each.default for each in fields(SweepConfig)} == {
        "trials": 20,
        "search": "tpe",
        "asha": True,
        "concurrent": None,
        "cpus_per_trial": None,
        "gpus_per_trial": None,
        "workers_per_trial": 1,
        "time_budget": 0.0,
        "top": 3,
        "seeds": 3,
        "without": ("model.norm", "model.dropout"),
    }
    for each in fields(SweepConfig):
        flag = f"--{each.name.replace('_', '-')}"  # the help of tune is the last that was read
        assert re.search(rf"{flag}[ ,]", help_text), flag
    assert flags["evaluate"]["split"] == "test"
    assert flags["ui"]["port"] == 5000
    assert {name: preset.epochs for name, preset in PRESETS.items()} == {
        "plain_cnn": 20,
        "regularized": 20,
        "short_chunk": 40,
        "musicnn": 40,
    }


@pytest.mark.parametrize(
    "line",
    [
        "toy OUT --clips-per-genre 12 --seed 0",
        "audit --root ROOT --subset small",
        "download fma_small --root ROOT --base-url http://127.0.0.1/",
        "index --root ROOT --out index.json --subset small --version 1.0",
        "download musicnn",
        "download ast",
        "preprocess --root R --out F --features ast",
        "train --features F --preset musicnn --encoder ast",
        "baseline --features F --encoder ast",
        "verify F",
        "verify F --sources R",
        "inspect F --out sheet.png",
        "preprocess --root s3://b/R --out s3://b/F --keep-damaged --clip-timeout 9 --clips-per-shard 8 --overwrite",
        "preprocess --root R --out F --subset small --workers 1 --limit 9 --min-seconds 5.0 --max-quarantined 0.05",
        "train --features F --preset plain_cnn --epochs 20 --gpus 0 --workers 1 --seed 0 --run-name N",
        "tune --features F --trials 20 --concurrent 2 --epochs 20 --resume N",
        "tune --features F --search random --trials 8 --name N --space S.yaml --allow-leaks --preset short_chunk",
        "tune --features F --search grid --no-asha --top 0 --without --time-budget 60",
        "evaluate --run ID --features F --split test --precision 0.95",
        "mislabels --run ID --features F --root R --out page.html --most 20",
        "promote ID",
        "crown ID",
        "predict --model M a.mp3 b.mp3",
        "label Music --model M --out L --precision .8",
        "playlists L --out P --unsure",
        "serve --model M --host 0.0.0.0 --port 8000 --precision 0.8 --max-mb 50 --max-seconds 600 --decode-timeout 9",
        "serve --model M --upload-timeout 30 --at-once 4",
        "ui --port 5000",
        "demo --out DIR",
        "reproduce docs/claims.yaml --only toy-floor --data fma=FMA soundtrack8=S8 --work W",
    ],
)
def test_the_contracts_lines_are_understood(line):
    assert cli.parse([*line.split(), "--json"]).json


def test_flags_change_the_file_and_the_file_changes_the_preset(tmp_path):
    file = tmp_path / "c.json"
    file.write_text('{"epochs": 3, "model": {"dropout": 0.4}}')
    line = ["train", "--features", "F", "--preset", "plain_cnn", "--config", str(file), "--dropout", "0.3"]
    config = cli.parse(line).config
    assert (config.epochs, config.model.dropout, config.model.head) == (3, 0.3, "flatten")
    assert cli.parse(["train", "--features", "F"]).config == PRESETS["short_chunk"]


@pytest.mark.parametrize("flag", [["--preset", "baseline"], ["--preset=baseline"], ["--preset", "plain_cnn"]])
def test_the_old_name_of_the_plain_cnn_is_understood(flag):
    assert cli.parse(["train", "--features", "F", *flag]).config == TrainConfig() == PRESETS["plain_cnn"]
    assert cli.parse(["train", "--features", "baseline", *flag]).features == "baseline"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_commands_fields_are_its_steps_parameters(name):
    """The step is named by a string, so this is what a type checker would say."""
    kind = cli.COMMANDS[name]
    module, _, function = kind.step.partition(":")
    parameters = inspect.signature(getattr(import_module(f"mgc.{module}"), function)).parameters
    own = {each.name for each in fields(kind)} - {"json", "debug", "verbose", "preset", "config_file"}
    assert own | ({"as_json"} if issubclass(kind, cli.Server) else set()) <= parameters.keys()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", SweepConfig()),
        ("--trials 8 --search tpe --no-asha --concurrent 4", SweepConfig(8, "tpe", asha=False, concurrent=4)),
        ("--search grid --gpus-per-trial 0.25", SweepConfig(search="grid", gpus_per_trial=0.25)),
        ("--search random --workers-per-trial 2", SweepConfig(search="random", workers_per_trial=2)),
        ("--time-budget 60 --top 0 --seeds 0", SweepConfig(time_budget=60.0, top=0, seeds=0)),
        ("--without", SweepConfig(without=())),
        ("--without optim.weight_decay model.norm", SweepConfig(without=("optim.weight_decay", "model.norm"))),
    ],
)
def test_the_flags_of_tune_are_a_sweeps_settings(line, expected):
    command = cli.parse(["tune", "--features", "F", *line.split(), "--seed", "5"])
    assert command.sweep_config == expected
    assert command.config == replace(PRESETS["short_chunk"], seed=5)


def mgc(*arguments: object, capsys) -> tuple[int, str, str]:
    code = cli.run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_bad_input_is_one_line_that_names_it_exit_2_and_nothing_written(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fma" / "fma_small").mkdir(parents=True)
    (tmp_path / "columns.csv").write_text("file,label\na.mp3,Rock\n")
    (tmp_path / "none.csv").write_text("path,genre\n")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "out"
    for line, named in [
        (["audit", "--root", tmp_path / "nowhere"], "nowhere"),
        (["preprocess", "--root", tmp_path / "nowhere", "--out", out], "nowhere"),
        (["preprocess", "--root", tmp_path / "fma", "--out", out], "fma"),
        (["preprocess", "--root", tmp_path / "columns.csv", "--out", out], "path"),
        (["preprocess", "--root", tmp_path / "none.csv", "--out", out], "none.csv"),
        (["preprocess", "--root", tmp_path / "none.csv", "--out", out, "--workers", 0], "--workers 0"),
        (["train", "--features", tmp_path / "nowhere"], "nowhere"),
        (["train", "--features", tmp_path / "unfinished"], "unfinished"),
        (["train", "--features", tmp_path / "unfinished", "--config", "no.json"], "no.json"),
        (["train", "--features", tmp_path / "unfinished", "--dropout", "2"], "--dropout 2.0"),
        (["tune", "--features", tmp_path / "unfinished", "--trials", 0], "--trials 0: must be at least 1"),
        (["tune", "--features", tmp_path / "unfinished", "--trials", -2], "--trials -2"),
        (["tune", "--features", tmp_path / "unfinished", "--concurrent", 0], "--concurrent 0"),
        (["tune", "--features", tmp_path / "unfinished", "--gpus-per-trial", 2], "--gpus-per-trial 2.0"),
        (["tune", "--features", tmp_path / "unfinished", "--workers-per-trial", 0], "--workers-per-trial 0"),
        (["tune", "--features", tmp_path / "unfinished", "--time-budget", -1], "--time-budget -1.0"),
        (["tune", "--features", tmp_path / "unfinished", "--seeds", 1], "--seeds 1: must be at least 2"),
        (["tune", "--features", tmp_path / "unfinished"], "unfinished"),
        (["evaluate", "--run", "abc", "--features", tmp_path / "unfinished"], "unfinished"),
        (["predict", "--model", "abc", tmp_path / "file"], "mlflow_runs"),
        (["predict", "--model", "abc"], "name at least one audio file"),
    ]:
        code, printed, said = mgc(*line, capsys=capsys)
        assert code == 2, line
        assert printed == "", line
        assert len(said.splitlines()) == 1, said
        assert said.startswith("mgc: "), said
        assert named in said, said
    assert sorted(tmp_path.rglob("*")) == before


def test_an_output_that_cannot_be_written_is_named(capsys, mini, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, said = mgc("preprocess", "--root", mini, "--out", tmp_path / "file" / "features", capsys=capsys)
    assert (code, len(said.splitlines())) == (2, 1)
    assert "cannot be written" in said


def test_more_gpus_than_there_are_and_an_unknown_run_are_named(capsys, features):
    code, _, said = mgc("train", "--features", features.folder.path, "--gpus", 99, capsys=capsys)
    assert (code, len(said.splitlines())) == (2, 1)
    assert "--gpus 99" in said


def test_a_demo_never_empties_a_folder_of_somebody_elses(capsys, tmp_path):
    (tmp_path / "project" / "data" / "fma_metadata").mkdir(parents=True)
    (tmp_path / "project" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("")
    for out in ("project", "file"):
        code, _, said = mgc("demo", "--out", tmp_path / out, capsys=capsys)
        assert (code, len(said.splitlines())) == (2, 1)
        assert out in said
    assert (tmp_path / "project" / "thesis.txt").read_text() == "years of work"
    assert (tmp_path / "project" / "data" / "fma_metadata").is_dir()


@pytest.mark.parametrize(
    ("uri", "expected"), [("foo://x", 2), ("http://127.0.0.1:1", 1), ("sqlite:////proc/no/mlflow.db", 1)]
)
def test_a_store_that_cannot_be_opened_is_named_before_anything_is_written(
    capsys, mini, tmp_path, monkeypatch, uri, expected
):
    """A wrong address is bad input; a server or a disk that does not answer is a failed run."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    code, _, said = mgc("preprocess", "--root", mini, "--out", tmp_path / "features", capsys=capsys)
    assert (code, len(said.splitlines())) == (expected, 1)
    assert uri in said
    assert not (tmp_path / "features").exists()


def test_asking_for_a_run_makes_no_store(capsys, features, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    code, _, said = mgc("evaluate", "--run", "x", "--features", features.folder.path, capsys=capsys)
    assert code == 2
    assert "none.db" in said
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("line", ["--help", "audit --root set.csv", "audit --root set.csv --json"])
def test_a_reader_that_goes_ends_nothing(line, unbuffered, tmp_path):
    """``mgc … | head`` ends quietly, with the code that it would have had."""
    (tmp_path / "set.csv").write_text("path,genre,split,artist\na.mp3,Rock,train,A\nb.mp3,Folk,test,B\n")
    (tmp_path / "a.mp3").write_bytes(b"a")
    command = [sys.executable, "-m", "mgc.cli", *line.split()]
    reader, writer = os.pipe()
    os.close(reader)  # before anything is written
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}  # empty is as if it were not set
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


WAYS = {
    "standard output on a full disk": '"$@" > /dev/full',
    "standard error on a full disk": '"$@" 2> /dev/full',
    "standard output closed": '"$@" >&-',
    "standard error closed": '"$@" 2>&-',
    "all closed": '"$@" <&- >&- 2>&-',
    "an encoding that lacks the genre": 'PYTHONIOENCODING=ascii "$@"',
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("line", "expected"),
    [("audit --root set.csv", 0), ("audit --root set.csv --json", 0), ("audit --root Żuk --debug", 2)],
)
def test_output_never_fails_the_work(way, line, expected, tmp_path):
    (tmp_path / "set.csv").write_text("path,genre,split,artist\na.mp3,Żuk,train,A\nb.mp3,Folk,test,B\n")
    for name in ("a.mp3", "b.mp3"):
        (tmp_path / name).write_text(name)
    command = ["sh", "-c", WAYS[way], "sh", sys.executable, "-m", "mgc.cli", *line.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == expected, done.stderr
    assert "Exception ignored" not in done.stderr
    if expected == 0:
        assert "Traceback" not in done.stderr
        if way == "standard output on a full disk":
            assert done.stderr.splitlines()[-1] == "standard output cannot be written (No space left on device)"
        if "standard error" in way:
            assert "uk" in done.stdout
    if way == "an encoding that lacks the genre":
        assert "\\u017b" in done.stdout + done.stderr


@pytest.mark.parametrize("way", ["standard output on a full disk", "all closed", "an encoding that lacks the genre"])
def test_output_never_loses_a_training(way, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_sets, "GENRES", ("Żuk", "b", "c", "d"))
    make_features(tmp_path / "set")
    line = "train --features set --preset plain_cnn --channels 2 2 --epochs 1"
    command = ["sh", "-c", WAYS[way], "sh", sys.executable, "-m", "mgc.cli", *line.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    monkeypatch.chdir(tmp_path)
    (run,) = store.search(store.existing_store(Folder.at("set")), EXPERIMENT, {})
    assert run.info.status == "FINISHED"


def test_a_file_is_never_opened_in_the_place_of_a_closed_stream(tmp_path):
    """Or what a library writes to standard error would be written into it: into the database, say."""
    code = """
import os, sys
from mgc.core.progress import Progress, open_streams, say, show
open_streams()
file = open(sys.argv[1], "w")
assert file.fileno() > 2
os.write(2, b"a library's")
say("ours"), show("ours"), Progress("train", 1, "epochs").advance()
file.write("its own")
"""
    command = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code, str(tmp_path / "file")]
    assert subprocess.run(command, check=False).returncode == 0
    assert (tmp_path / "file").read_text() == "its own"


def test_with_json_an_error_is_json_too(capsys, tmp_path):
    code, printed, said = mgc("audit", "--root", tmp_path / "nowhere", "--json", capsys=capsys)
    assert code == 2
    assert json.loads(printed)["error"] in said


def test_a_wrong_flag_is_wrong_usage(capsys):
    for line in (
        ["train", "--features", "F", "--no-such-flag"],
        ["train", "--preset", "best"],
        ["tune", "--search", "bayes"],
        ["no-such-command"],
    ):
        with pytest.raises(SystemExit) as caught:
            cli.run(line)
        assert caught.value.code == 2
    capsys.readouterr()


def test_an_audit_that_finds_a_leak_prints_its_report_and_exits_2(capsys, tmp_path):
    (tmp_path / "set.csv").write_text("path,genre,split,artist\na.mp3,Rock,train,AWOL\nb.mp3,Folk,test,AWOL\n")
    code, printed, said = mgc("audit", "--root", tmp_path / "set.csv", "--json", capsys=capsys)
    assert code == 2
    report = json.loads(printed.splitlines()[-1])
    keys = {"clips", "by_split", "by_genre", "missing", "artist_leaks", "duplicate_clips", "ok"}
    assert keys <= set(report)
    assert not report["ok"]
    assert "AWOL" in said


def test_an_unexpected_error_is_one_line_and_exit_1(capsys, monkeypatch):
    def explode(self):
        raise ZeroDivisionError("no\nreason")

    monkeypatch.setattr(cli.Audit, "call", explode)
    code, _, said = mgc("audit", "--root", "x", capsys=capsys)
    assert code == 1
    assert said == "mgc: unexpected ZeroDivisionError: no reason (--debug shows where)\n"
    code, _, said = mgc("audit", "--root", "x", "--debug", capsys=capsys)
    assert "in explode" in said


@pytest.mark.parametrize("module", ["train", "tune", "preprocess"])
def test_a_module_run_as_a_program_is_its_subcommand(module, tmp_path):
    flag = "--root" if module == "preprocess" else "--features"
    extra = ["--out", str(tmp_path / "out")] if module == "preprocess" else []
    line = [sys.executable, "-m", f"mgc.{module}", flag, str(tmp_path / "nowhere"), *extra]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("mgc: ")
    assert "nowhere" in done.stderr


def test_real_music_through_the_whole_path(capsys, mini, ray_session, tmp_path, monkeypatch):
    """audit, preprocess, train, evaluate, predict and the UI's API, on thirty real clips, as a user types them."""
    features = tmp_path / "features"

    def answer(*arguments):
        code, printed, said = mgc(*arguments, "--json", capsys=capsys)
        assert code == 0, said
        return json.loads(printed.splitlines()[-1])

    assert answer("audit", "--root", mini)["by_split"] == {"training": 88, "validation": 16, "test": 16}
    made = answer("preprocess", "--root", mini, "--out", features, "--limit", 30)
    assert made["written"] == 30
    again = answer("preprocess", "--root", mini, "--out", features, "--limit", 30)
    assert (again["written"], again["skipped"]) == (0, 30)
    run = answer("train", "--features", features, "--preset", "plain_cnn", "--epochs", 1, "--batch-size", 8)
    scores = answer("evaluate", "--run", run["run_id"], "--features", features, "--split", "validation")
    assert scores["accuracy"] == pytest.approx(run["val_accuracy"])
    clip = next(Path(mini).rglob("*.mp3"))
    by_run = answer("predict", "--model", run["run_id"], clip)
    by_folder = answer("predict", "--model", run["checkpoint"], clip)
    assert by_run == by_folder
    (answered,) = by_run["clips"]
    assert answered["genre"] == max(answered["probabilities"], key=answered["probabilities"].get)


def test_the_ui_shows_the_stores_runs(features, ray_session, tmp_path):
    """`mgc ui` is MLflow's own server: its REST API knows a run that `mgc train` made."""
    from mgc.training.train import train

    run = train(features.folder.path, TrainConfig(epochs=1, model=ModelConfig(channels=(4,))))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "mgc.cli", "ui", "--port", str(port)], start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}/api/2.0/mlflow/runs/get?run_id={run.run_id}"
        deadline = time.monotonic() + 90
        while True:
            try:
                with urllib.request.urlopen(url, timeout=5) as response:
                    found = json.load(response)["run"]
                break
            except OSError:
                assert time.monotonic() < deadline, "the UI did not come up"
                assert server.poll() is None, "the UI ended"
                time.sleep(0.5)
        assert found["info"]["status"] == "FINISHED"
        assert {"key": "model.channels", "value": "[4]"} in found["data"]["params"]
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
