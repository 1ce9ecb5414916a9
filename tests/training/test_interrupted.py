"""Trainings as commands of their own, which are interrupted, begun twice, or cannot begin: each run tells the truth."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.long_fit import LONG, PLAIN
from sqlalchemy import event
from sqlalchemy.engine import Engine

from mgc.core import signals
from mgc.core.errors import InputError, RunError
from mgc.core.storage import Folder
from mgc.tracking import store
from mgc.tracking.runs import EXPERIMENT, Run
from mgc.training.fit_state import STATE
from mgc.training.train import train


@pytest.fixture
def uri(tmp_path, monkeypatch):
    """A store that is in no working directory."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store/mlflow.db")
    monkeypatch.chdir(tmp_path)
    return store.open_store(Folder.at(tmp_path))


LONG = replace(LONG, epochs=6)


def begin(features, folder, *command):
    """``mgc train``, or another command, in a working directory, as a process of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LONG.to_dict()))
    line = [sys.executable, "-m", "mgc.cli", *(command or ["train"])]
    line += ["--features", str(features.folder), "--config", "config.json"]
    return subprocess.Popen(line, cwd=folder, stderr=subprocess.PIPE, text=True)


def until(found, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


def runs(uri):
    return [Run(uri, run.info.run_id) for run in store.search(uri, EXPERIMENT, {})]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_all_that_interrupts_a_program_is_a_ctrl_c(number):
    code = """
import os, signal, sys
from mgc.core import signals
for number in (signal.SIGINT, signal.SIGHUP):  # which a shell's "&" and nohup have ignored
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
signals.catch()
try:
    os.kill(os.getpid(), int(sys.argv[1]))
except KeyboardInterrupt:
    print(signals.received())
sys.exit(signals.exit_code())
"""
    done = subprocess.run([sys.executable, "-c", code, str(int(number))], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == (f"{number.name}\n", "", 128 + number)


def test_an_interrupt_in_a_transaction_of_the_store_waits_for_its_end(uri):
    run = Run.start(uri, EXPERIMENT, name=None, step="train", config={})

    def interrupt(*_):  # about where SQLAlchemy left its cursor open, and SQLite's lock with it
        signal.raise_signal(signal.SIGINT)

    event.listen(Engine, "after_cursor_execute", interrupt, once=True)
    with pytest.raises(KeyboardInterrupt), run.ending():
        run.metrics({"train/loss": 1.0}, epoch=1)
    assert (run.record().status, run.record().tags["mgc.error"]) == ("KILLED", "interrupted by SIGINT")
    assert run.record().metrics == {"train/loss": 1.0}


def test_what_is_held_waits_for_the_first_interrupt_and_not_for_the_second(capsys):
    def work(interrupts):
        with signals.held():
            for number in range(interrupts):
                signal.raise_signal(signal.SIGINT)
                print(number)

    for interrupts in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            work(interrupts)
    assert capsys.readouterr().out == "0\n0\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_of_what_is_executed_from_a_string_ends_a_command_as_any_other(tmp_path):
    (tmp_path / "program.py").write_text("""
from mgc import cli
def parse(_):
    exec("import os, signal; os.kill(os.getpid(), signal.SIGTERM); [0 for _ in range(1000)]")
cli.parse = parse
cli.main([])
""")
    line = [sys.executable, "-m", "program"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stderr, done.returncode) == ("interrupted (SIGTERM)\n", 143)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_interrupts_a_training_is_written_to_it_and_it_goes_on_in_another_working_directory(
    features, uri, tmp_path, monkeypatch
):
    number = signal.SIGTERM
    process = begin(features, tmp_path / "a")
    until(lambda: list(tmp_path.glob(f"a/mlflow_runs/checkpoints/*/{STATE}")), process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    assert said.splitlines()[-1] == f"interrupted ({number.name})"
    assert "Traceback" not in said
    (run,) = runs(uri)
    record = run.record()
    assert (record.status, record.tags["mgc.error"]) == ("KILLED", f"interrupted by {number.name}")
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    result = train(features, LONG)
    assert result.run_id == run.id
    assert result.checkpoint.path == tmp_path / "a" / "mlflow_runs" / "checkpoints" / run.id
    assert [point["epoch"] for point in run.history(["epoch/lr"])] == list(range(1, LONG.epochs + 1))
    assert {each.record().status for each in runs(uri)} == {"FINISHED"}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_interrupts_a_sweep_is_written_to_its_run_and_its_trials(features, uri, tmp_path):
    process = begin(features, tmp_path / "a", "tune", "--trials", "3", "--top", "0", "--name", "a sweep")
    until(lambda: list(tmp_path.glob(f"a/mlflow_runs/sweeps/*/trials/*/{STATE}")), process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert (process.returncode, said.splitlines()[-1]) == (143, "interrupted (SIGTERM)")
    assert "--resume 'a sweep'" in said
    records = [run.record() for run in runs(uri)]
    assert {record.tags["mgc.step"] for record in records} == {"tune", "trial"}
    assert {(record.status, record.tags["mgc.error"]) for record in records} == {("KILLED", "interrupted by SIGTERM")}


TWIN = """
import sys
from helpers.long_fit import PLAIN
from mgc.core.errors import InputError
from mgc.features.feature_set import FeatureSet
from mgc.training.train import train
features = FeatureSet.open(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
try:
    print(train(features, PLAIN).run_id)
except InputError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_of_two_that_begin_at_the_same_moment_one_trains_and_the_other_says_so(features, uri, tmp_path):
    line = [sys.executable, "-c", TWIN, str(features.folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    tests = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])}
    both = [subprocess.Popen(line, cwd=tmp_path, env=os.environ | tests, **pipes) for _ in range(2)]
    assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate()[0].strip() for process in both]
    (run,) = runs(uri)
    assert run.record().status == "FINISHED"
    (refused,) = [text for text in said if text != run.id]
    assert refused.startswith("train: this very training is running, ")
    assert not list((tmp_path / "mlflow_runs" / "checkpoints").glob(".lock*"))


def test_a_storage_that_cannot_be_written_leaves_no_run(features, uri, tmp_path):
    (tmp_path / "mlflow_runs").write_text("in the way")
    with pytest.raises(InputError, match=r"mlflow_runs: cannot be written \(.*\); `storage` says where"):
        train(features, PLAIN)
    (tmp_path / "mlflow_runs").unlink()
    (tmp_path / "mlflow_runs").mkdir()
    (tmp_path / "mlflow_runs" / "checkpoints").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        train(features, PLAIN)
    assert runs(uri) == []


def test_a_store_that_cannot_be_written_is_one_line(features, uri, tmp_path, monkeypatch):
    only_read = f"sqlite:///file:{tmp_path}/store/mlflow.db?mode=ro&uri=true"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", only_read)
    with pytest.raises(RunError, match=r"MLflow store .*: cannot be written \(.*readonly database") as caught:
        train(features, PLAIN)
    assert len(str(caught.value).splitlines()) == 1


def test_what_ends_a_run_of_several_ends_those_under_it(uri):
    parent = Run.start(uri, EXPERIMENT, name="parent", step="tune", config={})
    group = Run.start(uri, EXPERIMENT, name="group", step="seeds", config={}, parent=parent.id)
    trial = Run.start(uri, EXPERIMENT, name="trial", step="trial", config={}, parent=group.id)
    done = Run.start(uri, EXPERIMENT, name="done", step="trial", config={}, parent=parent.id)
    done.finish("FINISHED")
    with pytest.raises(KeyboardInterrupt), parent.closing():
        raise KeyboardInterrupt
    assert [run.record().status for run in (parent, group, trial, done)] == ["KILLED"] * 3 + ["FINISHED"]
