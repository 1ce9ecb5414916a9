"""A Ray cluster on loopback that grows and shrinks: raylets started and killed one after the other."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from helpers.processes import free_ports, processes_of


class Raylets:
    """Nodes of one cluster, each with an address of its own on loopback; the first is the head."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="mgc-", dir="/tmp"))  # short: Ray makes sockets below it
        (self.port,) = free_ports(1)
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_ADDRESS": f"127.0.0.1:{self.port}",
            "RAY_health_check_initial_delay_ms": "500",  # a dead node is noticed in seconds
            "RAY_health_check_period_ms": "500",
            "MGC_TEST_RAYLETS": str(self.folder),  # marks every process below
        }
        self.nodes = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pid in processes_of(self.folder):  # no «ray stop», which ends other people's sessions
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for node in self.nodes:
            node.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, cpus):
        """Start a node, wait until it is up, and return its process."""
        number = len(self.nodes) + 1
        words = ["--address", f"127.0.0.1:{self.port}"]
        if number == 1:
            words = ["--head", "--port", self.port, "--include-dashboard", "false", "--temp-dir", self.folder]
        words += ["--node-ip-address", f"127.0.0.{number}", "--num-cpus", cpus, "--object-store-memory", 100_000_000]
        command = [Path(sys.executable).with_name("ray"), "start", "--block", "--disable-usage-stats", *words]
        environment = {**self.environment, "MGC_TEST_NODE": f"{self.folder}/{number}/"}
        del environment["RAY_ADDRESS"]
        log = self.folder / f"node{number}.log"
        with log.open("w") as file:
            node = subprocess.Popen(
                list(map(str, command)),
                env=environment, stdout=file, stderr=file, start_new_session=True, cwd=self.folder,
            )  # fmt: skip
        self.nodes.append(node)
        end = time.monotonic() + 90
        while "Ray runtime started" not in log.read_text():
            assert node.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        return node

    def kill(self, node):
        """Kill a node and all its processes, as when a machine is gone."""
        for pid in processes_of(f"{self.folder}/{self.nodes.index(node) + 1}/"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.wait()
