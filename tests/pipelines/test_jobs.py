"""The jobs, as plain scripts and through ``ray job submit`` to a real Ray head on this machine."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.feature_sets import make_features
from helpers.processes import free_ports, processes_of
from library.conftest import make_model

from mgc.features.feature_set import FeatureSet
from mgc.library.labels import Labels

REPO = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
CLIPS = 6


def script(name, *arguments, **options):
    """Run a job as a plain script, elsewhere than in the repository."""
    command = [sys.executable, str(REPO / "pipelines" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, **options)


def last_line(text):
    return json.loads(text.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def collection(mini, tmp_path_factory):
    """A CSV file of real clips: two genres, all splits, an artist a clip."""
    folder = tmp_path_factory.mktemp("collection")
    clips = sorted((mini / "fma_small").glob("*/*.mp3"))[:: 120 // CLIPS][:CLIPS]
    splits = ["training", "training", "training", "training", "validation", "test"]
    lines = [f"{clip.name},{'ab'[i % 2]},{splits[i]},artist {i}" for i, clip in enumerate(clips)]
    for clip in clips:
        (folder / clip.name).symlink_to(clip)
    file = folder / "clips.csv"
    file.write_text("\n".join(["path,genre,split,artist", *lines]))
    return file


@pytest.fixture(scope="module")
def leaking(collection):
    file = collection.with_name("leaking.csv")
    file.write_text(collection.read_text().replace("artist 5", "artist 0"))
    return file


# As plain scripts


@pytest.mark.parametrize("name", ["preprocess.py", "sweep.py"])
def test_help_of_a_job_is_that_of_its_command(name):
    done = script(name, "--help")
    assert done.returncode == 0
    assert {"preprocess.py": "--max-quarantined", "sweep.py": "--concurrent"}[name] in done.stdout


@pytest.mark.parametrize("name", ["preprocess.py", "train.py", "sweep.py", "end_to_end.py", "label.py"])
def test_wrong_flags_end_a_job_with_code_2(name):
    done = script(name, "--no-such-flag")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_leaking_collection_ends_the_preprocessing_job_before_anything_is_written(leaking, tmp_path):
    done = script("preprocess.py", "--root", leaking, "--out", tmp_path / "set", "--json", cwd=tmp_path)
    assert done.returncode == 2
    assert "artist 0" in last_line(done.stdout)["error"]
    assert "artist 0" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_is_not_there_ends_the_preprocessing_job_with_one_line(tmp_path):
    done = script("preprocess.py", "--root", "/no/such/root", "--out", tmp_path / "set", "--json", cwd=tmp_path)
    assert done.returncode == 2
    assert "/no/such/root" in last_line(done.stdout)["error"]
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["features", "config"])
def test_an_input_that_is_not_there_ends_the_sweep_job_with_one_line(what, tmp_path):
    given = {"features": tmp_path / "set"} | {what: tmp_path / "absent"}
    flags = [word for name, value in given.items() for word in (f"--{name}", value)]
    done = script("sweep.py", *flags, "--json", cwd=tmp_path)
    assert done.returncode == 2
    assert f"--{what} {tmp_path / 'absent'}" in last_line(done.stdout)["error"]
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_preprocessing_job_as_a_script_audits_and_makes_the_set(collection, tmp_path):
    done = script("preprocess.py", "--root", collection, "--out", tmp_path / "set", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert last_line(done.stdout)["written"] == CLIPS
    assert "artists: none is in more than one split" in done.stderr
    assert FeatureSet.open(tmp_path / "set").manifest.genres == ("a", "b")


# Through ray job submit


@pytest.fixture(scope="module")
def head():
    """A Ray head with token authentication: its address, its folder, and the environment to reach it."""
    folder = Path(tempfile.mkdtemp(prefix="mgc-", dir="/tmp"))  # short: Ray makes sockets below it
    gcs, dashboard, agent, client = free_ports(4)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
    environment |= {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "MGC_TEST_HEAD": str(folder),  # marks every process below
    }
    ports = ["--port", gcs, "--dashboard-port", dashboard, "--dashboard-agent-listen-port", agent]
    options = ["--node-ip-address", "127.0.0.1", "--dashboard-host", "127.0.0.1", "--ray-client-server-port", client]
    sizes = ["--num-cpus", 2, "--object-store-memory", 200_000_000]
    command = [BIN / "ray", "start", "--head", "--block", "--disable-usage-stats", "--temp-dir", folder]
    address = f"http://127.0.0.1:{dashboard}"
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(
            [str(word) for word in [*command, *ports, *options, *sizes]],
            env=environment, stdout=log, stderr=log, start_new_session=True, cwd=folder,
        )  # fmt: skip
    try:
        wait_for(f"{address}/api/version", environment["RAY_AUTH_TOKEN"], process, folder / "head.log")
        yield address, folder, environment
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # no «ray stop», which ends other people's sessions
        process.wait()
        for pid in processes_of(folder):  # workers and jobs have process groups of their own
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(url, token, process, log):
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except (OSError, urllib.error.URLError):
            time.sleep(0.3)
    raise AssertionError(f"no Ray head after 60 s: {log.read_text()}")


def submit(head, *entry):
    """The README's command, from the repository."""
    address, _, environment = head
    command = ["ray", "job", "submit", "--address", address, "--working-dir", ".", "--", "python", *map(str, entry)]
    return subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=150, check=False)


@pytest.mark.slow
def test_a_submitted_job_streams_its_logs_and_leaves_the_set_at_the_absolute_out(head, collection, tmp_path):
    done = submit(head, "pipelines/preprocess.py", "--root", collection, "--out", tmp_path / "set", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"preprocess: {CLIPS}/{CLIPS} clips" in done.stdout
    assert f'"written": {CLIPS}' in done.stdout
    assert sum(FeatureSet.open(tmp_path / "set").manifest.clips["training"].values()) == 4
    assert (tmp_path / "mlflow_runs" / "mlflow.db").exists()  # beside the set, not in the job's copy


@pytest.mark.slow
def test_the_upload_of_a_job_is_small_and_holds_the_package(head):
    done = submit(head, "-c", "import mgc; print(mgc.__file__)")
    assert done.returncode == 0, done.stdout + done.stderr
    _, folder, _ = head
    assert re.search(rf"^{folder}/.*/mgc/__init__.py$", done.stdout, re.MULTILINE)
    copies = [
        path for path in folder.glob("session_2*/runtime_resources/working_dir_files/_ray_pkg_*") if path.is_dir()
    ]
    assert copies
    for copy in copies:
        assert (copy / "mgc" / "cli.py").exists()
        assert not (copy / ".git").exists()
        assert sum(file.stat().st_size for file in copy.rglob("*") if file.is_file()) < 10_000_000


@pytest.mark.slow
def test_a_submitted_job_with_a_root_that_is_not_there_fails_and_says_so(head, tmp_path):
    done = submit(head, "pipelines/preprocess.py", "--root", "/no/such/root", "--out", tmp_path / "set")
    assert done.returncode != 0
    assert "mgc: /no/such/root: no such file or folder" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_submitted_job_refuses_a_relative_out_and_says_why(head, collection):
    done = submit(head, "pipelines/preprocess.py", "--root", collection, "--out", "features")
    assert done.returncode != 0
    assert "--out features: must be absolute in a Ray job" in done.stdout
    assert not (REPO / "features").exists()


@pytest.mark.parametrize("job", ["train.py", "sweep.py", "end_to_end.py"])
def test_every_job_refuses_relative_places_before_anything_is_written(job, tmp_path):
    root = ["--root", tmp_path] if job == "end_to_end.py" else []
    features = make_features(tmp_path / "set").folder.path
    environment = os.environ | {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}  # by which a job knows that it is one
    for flags, said in (
        (["--features", "set"], "--features set: must be absolute in a Ray job"),
        (["--features", features, "--storage", "state"], "--storage state: must be absolute in a Ray job"),
    ):
        done = script(job, *root, *flags, cwd=tmp_path, env=environment)
        assert done.returncode == 2
        assert said in done.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.slow
def test_the_labelling_job_labels_a_library_and_refuses_a_relative_out(head, collection, tmp_path):
    command = ["pipelines/label.py", collection.parent, "--model", make_model(tmp_path / "model"), "--json", "--out"]
    done = submit(head, *command, tmp_path / "labels")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "label: 6/6 files" in done.stdout
    assert len(Labels.open(tmp_path / "labels").table()) == CLIPS
    done = submit(head, *command, "labels")
    assert done.returncode != 0
    assert "--out labels: must be absolute in a Ray job" in done.stdout


SMALL = ["--preset", "plain_cnn", "--channels", "4", "8", "--epochs", "2", "--json"]


@pytest.mark.slow
def test_the_training_job_keeps_its_state_and_its_run_beside_the_features(head, tmp_path):
    features = make_features(tmp_path / "set").folder.path
    command = ["pipelines/train.py", "--features", features, *SMALL, "--workers", "2", "--storage", tmp_path / "state"]
    done = submit(head, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train: 44 clips, 12 for validation, from scratch, on 2 CPU workers" in done.stdout
    assert "train: 2/2 epochs" in done.stdout
    (checkpoint,) = (tmp_path / "state" / "checkpoints").iterdir()
    assert sorted(path.name for path in checkpoint.iterdir()) == [
        "README.md",
        "calibration.json",
        "model.json",
        "model.safetensors",
    ]
    assert (tmp_path / "mlflow_runs" / "mlflow.db").exists()


@pytest.mark.slow
def test_one_job_goes_from_clips_to_a_champion_and_again_to_the_same(head, collection, tmp_path):
    command = ["pipelines/end_to_end.py", "--root", collection, "--features", tmp_path / "set", *SMALL, "--name", "all"]
    command += ["--trials", "1", "--top", "1", "--seeds", "2", "--without"]
    results = []
    for _ in range(2):
        done = submit(head, *command)
        assert done.returncode == 0, done.stdout + done.stderr
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
        results.append(json.loads(line))
    first, again = results
    assert first["champion"]["champion"] == first["winner_run_id"]
    assert again["test"] == first["test"]  # the test split was looked at once
    assert again["champion"]["champion"] == first["winner_run_id"]
    assert "artists: none is in more than one split" in done.stdout
