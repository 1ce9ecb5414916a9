"""Claims run for real: what holds, what does not, what is left out, and what is refused before anything runs."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mgc import cli, reproduce
from mgc.core.storage import Folder

CLAIMS = Path(__file__).parents[1] / "docs" / "claims.yaml"


def claim(name="clips", commands=("mgc audit --root {set}",), metric="clips", value=2, **more):
    return {"name": name, "what": "A set has clips.", "commands": [*commands], "metric": metric, "value": value, **more}


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Run claims on a CSV file of two clips; returns exit code, answer, and what was said."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set.csv").write_text("path,genre,split,artist\na.mp3,Rock,train,A\nb.mp3,Folk,test,B\n")
    (tmp_path / "a.mp3").write_bytes(b"a")
    (tmp_path / "b.mp3").write_bytes(b"b")

    def run(*claims, data=("--data", "set=set.csv"), tree=None):
        (tmp_path / "claims.yaml").write_text(
            yaml.safe_dump(tree or {"data": {"set": "two clips"}, "claims": [*claims]})
        )
        code = cli.run(["reproduce", "claims.yaml", *data, "--json"])
        out, said = capsys.readouterr()
        return code, json.loads(out) if out else None, said

    return run


@pytest.mark.slow
@pytest.mark.timeout(900)  # nine commands, a minute on two free cores
def test_the_cheap_claims_of_the_documentation_hold(tmp_path, capsys):
    code = cli.run(["reproduce", str(CLAIMS), "--work", str(tmp_path / "work"), "--json"])
    out, said = capsys.readouterr()
    outcomes = json.loads(out)["claims"]
    toys = {each["name"]: each["verdict"] for each in outcomes if each["name"].startswith("toy-")}
    assert len(toys) == 5
    assert set(toys.values()) == {"holds"}, outcomes
    assert {each["verdict"] for each in outcomes if each["name"] not in toys} == {"skipped"}
    assert code == 0
    assert said.count("mgc toy toy --clips-per-genre 4  (answered before)") == 4


def test_the_claims_of_the_documentation_are_those_of_its_results():
    data, claims = reproduce.read(CLAIMS)
    results = (CLAIMS.parent / "results.md").read_text()
    assert data
    for each in claims:
        for command in each.commands:
            assert cli.parse([*command, "--json"]).json, command
        if each.needs:
            assert f"{each.value:.3f}".removeprefix("0") in results, each.name


def test_a_claim_that_does_not_hold_is_exit_1(run):
    code, answer, said = run(claim("right"), claim("near", value=2.5, tolerance=0.5), claim("wrong", value=3))
    assert code == 1
    assert [each["verdict"] for each in answer["claims"]] == ["holds", "holds", "does not hold"]
    assert answer["claims"][2]["seen"] == 2
    assert answer["counts"] == {"holds": 2, "does not hold": 1}
    assert said.splitlines()[-1] == "mgc: 1 of 3 claims not reproduced: wrong"


def test_a_command_that_fails_fails_its_claims_alone(run):
    nowhere = claim("nowhere", commands=["mgc audit --root no.csv"])
    code, answer, _ = run(nowhere, claim("no-key", metric="ci95.1"), claim("no-number", metric="notes"), claim())
    assert code == 1
    assert [each["verdict"] for each in answer["claims"]] == ["failed", "failed", "failed", "holds"]
    notes = [each["note"] for each in answer["claims"]]
    assert "exit code 2" in notes[0]
    assert "no.csv: no such file" in notes[0]
    assert "«ci95.1»" in notes[1]
    assert "«notes»" in notes[2]


def test_true_is_not_1(run):
    code, answer, _ = run(claim(metric="ok", value=1), claim("ok", metric="ok", value=True))
    assert code == 1
    assert [each["verdict"] for each in answer["claims"]] == ["failed", "holds"]


def test_a_claim_without_its_data_is_skipped_and_says_so(run, tmp_path):
    code, answer, said = run(claim(), data=())
    assert code == 0
    assert answer["counts"] == {"skipped": 1}
    assert answer["claims"][0]["note"] == "give --data set=FOLDER (two clips)"
    assert "--data set=FOLDER" in said
    assert list((tmp_path / "reproduced").iterdir()) == [tmp_path / "reproduced" / reproduce.ANSWERS]


def test_what_has_been_run_in_the_work_folder_is_not_run_again(run, tmp_path, monkeypatch):
    commands = ["mgc index --root {set} --out one.json", "mgc index --root {set} --out {1.tracks}.json"]
    assert run(claim(commands=commands, metric="tracks"))[0] == 0
    (tmp_path / "reproduced" / "2.json").unlink()  # the first one's answer is in the second one's name
    code, _, said = run(claim("again", commands=commands[:1], metric="tracks"))
    assert (code, said.count("answered before")) == (0, 1)
    monkeypatch.setattr("mgc.__version__", "0.0.1")
    code, _, said = run(claim())
    assert code == 2
    assert "--work reproduced: has answers of mgc" in said


def test_a_folders_name_is_one_argument_and_no_shell_reads_it(run, tmp_path):
    name = "a set; touch made $(touch made)"
    (tmp_path / name).mkdir()
    for file in ("set.csv", "a.mp3", "b.mp3"):
        (tmp_path / file).rename(tmp_path / name / file)
    code, answer, _ = run(claim(), data=("--data", f"set={tmp_path / name}/set.csv"))
    assert (code, answer["claims"][0]["seen"]) == (0, 2)
    assert not [*tmp_path.rglob("made")]


@pytest.mark.parametrize(
    ("tree", "named"),
    [
        ([], "claims: must be a list"),
        ({"claims": []}, "claims: must be a list"),
        ({"claims": [claim(commands=["mgc audit"])], "clams": 1}, "clams: not known"),
        ({"data": {"A b": "x"}, "claims": [claim()]}, "data.A b"),
        ({"claims": ["toy"]}, "claims.1: must have"),
        ({"claims": [claim(commands=["mgc audit"]), claim(commands=["mgc audit"])]}, "claims.2.name: is there twice"),
        ({"claims": [claim(commands=["rm -r /"])]}, "claims.1.commands.1: must be a line «mgc COMMAND …»"),
        ({"claims": [claim(commands=["mgc serve --model M"])]}, "claims.1.commands.1"),
        ({"claims": [claim(commands=["mgc audit --root 'a"])]}, "claims.1.commands.1: No closing quotation"),
        ({"claims": [claim(commands=["mgc audit", 3])]}, "claims.1.commands.2"),
        ({"claims": [claim(commands=[])]}, "claims.1.commands: must be a list"),
        ({"claims": [claim()]}, "{set} is no data set"),
        ({"claims": [claim(commands=["mgc audit --root {1.out}"])]}, "{1.out} is no data set and no answer"),
        ({"claims": [claim(commands=["mgc audit {}"])]}, "{} is no data set"),
        ({"claims": [claim(commands=["mgc audit"], value="2")]}, "claims.1.value: must be a number"),
        ({"claims": [claim(commands=["mgc audit"], value=float("nan"))]}, "claims.1.value: must be a number"),
        ({"claims": [claim(commands=["mgc audit"], tolerance=-1)]}, "claims.1.tolerance"),
        ({"claims": [claim(commands=["mgc audit"], metric=3)]}, "claims.1.metric: must be a text"),
        ({"claims": [claim(commands=["mgc audit"], tolerence=1)]}, "claims.1.tolerence: not known"),
        ({"claims": [{"name": "x"}]}, "claims.1.commands: is missing"),
    ],
)
def test_a_bad_file_is_refused_before_anything_runs(run, tmp_path, tree, named):
    code, answer, said = run(tree=tree or [1])
    assert code == 2
    assert len(said.splitlines()) == 1
    assert "claims.yaml: " in said
    assert named in said
    assert set(answer) == {"error"}
    assert not (tmp_path / "reproduced").exists()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--data", "set"], "--data set: must be NAME=FOLDER"),
        (["--data", "other=."], "--data other=.: the file knows set"),
        (["--data", "set=nowhere"], "--data set=nowhere: no such folder"),
        (["--only", "other"], "--only other: no claim"),
        (["--work", "."], "--work .: is not empty"),
    ],
)
def test_flags_that_do_not_fit_the_file_are_refused(run, tmp_path, flags, named):
    code, _, said = run(claim(), data=flags)
    assert code == 2
    assert named in said
    assert not (tmp_path / "reproduced").exists()


def test_an_interrupt_ends_the_command_that_runs(run, tmp_path):
    """Its own way: what it had begun is gone, and the claim can be tried again."""
    (tmp_path / "long.yaml").write_text(
        yaml.safe_dump({"claims": [claim(commands=["mgc toy big --clips-per-genre 200"])]})
    )
    command = [sys.executable, "-m", "mgc.cli", "reproduce", "long.yaml"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("toy: "):
                break
        os.kill(process.pid, signal.SIGTERM)
        said = process.stderr.read()
    assert process.returncode == 143
    assert "interrupted (SIGTERM)" in said
    assert [each.name for each in (tmp_path / "reproduced").iterdir()] == [reproduce.ANSWERS]


def test_what_a_killed_reproduction_left_of_a_synthetic_set_is_made_anew(run, tmp_path):
    left = tmp_path / "reproduced" / "toy"
    left.mkdir(parents=True)
    (left / "half.wav").write_bytes(b"half")
    (tmp_path / "reproduced" / "answers.json").write_text(
        json.dumps({"version": reproduce.mgc.__version__, "answers": {}})
    )
    made = claim(name="made", commands=["mgc toy toy --clips-per-genre 4"], metric="clips", value=32)
    code, answer, said = run(made)
    assert (code, answer["claims"][0]["verdict"]) == (0, "holds"), said
    assert not (left / "half.wav").exists()


def test_two_at_a_time_in_one_folder_are_refused(run, tmp_path):
    assert run(claim())[0] == 0
    with Folder.at(tmp_path / "reproduced").claim("`work`:"):
        code, answer, _ = run(claim())
    assert code == 2
    assert "--work: " in answer["error"]


def test_a_command_that_failed_is_not_run_again_by_the_next_claim(run):
    bad = ["mgc audit --root nothing"]
    code, answer, said = run(claim(commands=bad), claim(name="again", commands=bad))
    assert code == 1
    assert [each["verdict"] for each in answer["claims"]] == ["failed", "failed"]
    assert said.count("reproduce: mgc audit --root nothing") == 1
