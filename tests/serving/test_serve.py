"""The command: where it listens, what it says, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import contextmanager

import pytest
from helpers.processes import free_ports
from helpers.serving import Client, small_model, wav, written

from mgc import cli
from mgc.core.errors import InputError
from mgc.serving.serve import serve
from mgc.serving.token import given_token


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return written(tmp_path_factory.mktemp("model"))


@contextmanager
def command(model, *flags, **environment):
    """The command as a process, once it has announced itself: the process and what it announced."""
    (port,) = free_ports(1)
    line = [sys.executable, "-m", "mgc.cli", "serve", "--model", str(model), "--port", str(port), "--json", *flags]
    environment = {name: text for name, text in os.environ.items() if name != "MGC_TOKEN"} | environment
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        yield process, json.loads(process.stdout.readline()), Client(port)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_announces_its_address_answers_and_ends_as_other_commands_do(model, tmp_path, number, code):
    with command(model) as (process, announced, client):
        assert announced == {"url": f"http://127.0.0.1:{client.port}", "model": small_model().fingerprint[:16]}
        status, said = client.predict(wav(tmp_path / "x.wav", 2.0).read_bytes())
        assert (status, said["seconds"]) == (200, 2.0)
        assert client.predict(b"no music")[0] == 415
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == ""
    assert announced["url"] in err
    assert err.splitlines()[-1] == f"interrupted ({number.name})"
    assert "Traceback" not in err


@pytest.mark.parametrize("host", ["127.0.0.2", "localhost"])
def test_another_name_of_loopback_is_answered_without_a_token(model, host):
    with command(model, "--host", host) as (_, announced, client):
        assert announced["url"] == f"http://{host}:{client.port}"
        with urllib.request.urlopen(f"{announced['url']}/healthz", timeout=60) as response:
            assert json.load(response)["status"] == "ok"


def test_beyond_loopback_it_makes_a_token_and_says_it_once(model):
    with command(model, "--host", "0.0.0.0") as (process, announced, client):
        assert client.ask("GET", "/healthz")[0] == 401
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    (token,) = re.findall(r"token.*: (\S+)$", err, re.MULTILINE)
    assert len(token) >= 32
    assert token not in json.dumps(announced)


def test_the_environments_token_is_taken_and_not_said(model):
    with command(model, "--host", "0.0.0.0", MGC_TOKEN="of my own") as (process, _, client):
        assert client.ask("GET", "/healthz")[0] == 401
        assert client.ask("GET", "/healthz", Authorization="Bearer of my own")[0] == 200
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert "of my own" not in err


def test_a_busy_port_is_refused_before_the_model_is_looked_for(capsys):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        assert cli.run(["serve", "--model", "nowhere", "--port", str(port)]) == 2
    assert re.search(rf"--port {port}: address already in use; \d+ is free", capsys.readouterr().err)


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host", "no-such-host.invalid", "a" * 300, ""])
def test_a_host_that_is_not_this_machine_is_refused(host):
    with pytest.raises(InputError, match=f"`host={host}`: "):
        serve("nowhere", host=host)


def test_a_model_that_is_not_there_is_named(tmp_path):
    (port,) = free_ports(1)
    with pytest.raises(InputError, match=str(tmp_path)):
        serve(tmp_path, port=port)


@pytest.mark.parametrize("flag", ["--max-mb", "--at-once"])
def test_a_limit_is_named_by_its_flag(flag, capsys):
    assert cli.run(["serve", "--model", "nowhere", flag, "0"]) == 2
    assert f"{flag} 0: must be above 0" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "token"), [("word\n", "word"), ("  ", None), ("", None), ("a-b_c.d~9", "a-b_c.d~9")])
def test_a_token_of_a_file_is_taken_without_its_line_end(monkeypatch, given, token):
    monkeypatch.setenv("MGC_TOKEN", given)
    assert given_token() == token


@pytest.mark.parametrize("given", ["wörd", "a\tb"])
def test_a_token_that_no_header_carries_is_refused(monkeypatch, given):
    monkeypatch.setenv("MGC_TOKEN", given)
    with pytest.raises(InputError, match="MGC_TOKEN: must be of ASCII"):
        given_token()
