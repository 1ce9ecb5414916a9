"""The application under Ray Serve, in a Ray of its own, deployed by the config that KubeRay gets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from helpers.manifests import CLUSTER
from helpers.processes import free_ports
from helpers.serving import Client, wav, written

REPO = Path(__file__).parents[2]


@pytest.mark.slow
def test_ray_serve_answers_as_the_command_does(tmp_path):
    (port,) = free_ports(1)
    config = yaml.safe_load(yaml.safe_load((CLUSTER / "kuberay/serve.yaml").read_text())["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    application["args"] |= {"model": str(written(tmp_path / "model")), "max_mb": 1}
    application["deployments"][0] |= {"num_replicas": 1, "ray_actor_options": {"num_cpus": 1}}
    config["http_options"] = {"host": "127.0.0.1", "port": port}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    command = [Path(sys.executable).with_name("serve"), "run", tmp_path / "config.yaml"]
    environment = os.environ | {"MGC_TOKEN": "a token", "PYTHONPATH": str(REPO)}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=tmp_path)
    try:
        client, token = Client(port), {"Authorization": "Bearer a token"}
        deadline = time.monotonic() + 200
        while not ready(client, token):
            assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.5)
        body = wav(tmp_path / "x.wav", 5.0).read_bytes()
        assert client.predict(body)[0] == 401
        status, said = client.predict(body, "?spectrogram=1", **token)
        assert (status, said["seconds"], len(said["windows"]), said["spectrogram"]["height"]) == (200, 5.0, 8, 128)
        assert client.predict(b"no music", **token)[0] == 415
        assert client.predict(bytes(3_000_000), **token)[0] == 413
        assert "What genre is it?" in client.ask("GET", "/")[2]
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def ready(client, token):
    try:
        return client.ask("GET", "/healthz", **token)[0] == 200
    except OSError:
        return False
