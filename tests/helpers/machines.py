"""Machines that share nothing but a bucket: raylets and commands, each with a disk of its own (a mount namespace)."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from helpers.object_store import Store
from helpers.processes import free_ports, processes_of

BIN = Path(sys.executable).parent
OWN_DISK = 'mount -t tmpfs none "$0" && cd "$0" && exec "$@"'
"""An empty disk in place of the folder ``$0``, which no other machine sees, and a command on it."""


class Machines:
    """A Ray head without CPUs, worker nodes, an S3 server and an MLflow server; all on loopback.

    Every node, and every command, finds an empty disk of its own at the same path, ``disk``.
    """

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="mgc-", dir="/tmp"))  # short: Ray makes sockets below it
        self.disk = self.folder / "disk"
        self.disk.mkdir()
        self.store = Store()
        self.port, mlflow = free_ports(2)
        self.mlflow = f"http://127.0.0.1:{mlflow}"
        plain = {key: value for key, value in self.store.environment.items() if not key.startswith(("RAY_", "MLFLOW_"))}
        self.environment = plain | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "PYTHONUNBUFFERED": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_health_check_initial_delay_ms": "1000",  # a dead node is noticed in seconds
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "10",
            "MLFLOW_TRACKING_URI": self.mlflow,
            "MGC_STORAGE": "s3://music/state",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # of language models' evaluation; five processes
            "MGC_TEST_HEAD": str(self.folder),  # marks every process
        }
        self.nodes, self.workers = 0, []
        server = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        server += ["--artifacts-destination", self.folder / "artifacts", "--host", "127.0.0.1", "--port", mlflow]
        self._start([*server, "--workers", "1"], "mlflow")
        words = ["--head", "--port", self.port, "--include-dashboard", "false", "--temp-dir", self.folder]
        self.head = self._node([*words, "--num-cpus", 0], "127.0.0.1")
        wait_until(lambda: answers(f"{self.mlflow}/health"))
        self.environment["RAY_ADDRESS"] = f"127.0.0.1:{self.port}"

    def worker(self, cpus=1):
        """Let a node join, and return its process."""
        self.nodes += 1
        address = f"127.0.0.{1 + self.nodes}"
        return self._node(["--address", f"127.0.0.1:{self.port}", "--num-cpus", cpus], address)

    def have_workers(self, count):
        """Let nodes join until there are so many, of one CPU each."""
        self.workers = [node for node in self.workers if node.poll() is None]
        while len(self.workers) < count:
            self.workers.append(self.worker())

    def have_only(self, count):
        """Have so many nodes of one CPU each, and kill the others."""
        self.have_workers(count)
        for node in self.workers[count:]:
            self.kill(node)

    def start(self, *words, code=None, **environment):
        """Start a command, or a program that takes the same words, on a machine of its own."""
        program = ["-c", code] if code else ["-m", "mgc.cli"]
        return self._start([sys.executable, *program, *words], "command", **environment)

    def run(self, *words, timeout=240, **environment):
        """Run a command on a machine of its own; return its exit code, standard output and standard error."""
        process = self.start(*words, **environment)
        process.wait(timeout)
        return process.returncode, self.said(process, "out"), self.said(process, "err")

    def said(self, process, stream="err"):
        """What a command has written so far."""
        return Path(f"{process.log}.{stream}").read_text()

    def kill(self, process):
        """Kill a node or a command, with all its processes, with SIGKILL."""
        for pid in family(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

    def end(self):
        """Kill all that is left, by process id (no «ray stop»: others have Rays, too)."""
        for pid in processes_of(self.folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.store.server.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _node(self, words, address):
        sizes = ["--object-store-memory", 100_000_000, "--node-ip-address", address]
        command = [BIN / "ray", "start", "--block", "--disable-usage-stats", *words, *sizes]
        process = self._start(command, f"node-{address}")
        wait_until(lambda: process.poll() is not None or "Ray runtime started" in self.said(process, "out"))
        assert process.poll() is None, self.said(process)
        return process

    def _start(self, words, name, **environment):
        log = self.folder / f"{name}-{time.monotonic_ns()}"
        line = ["unshare", "--mount", "sh", "-c", OWN_DISK, self.disk, *words]
        with open(f"{log}.out", "w") as out, open(f"{log}.err", "w") as err:
            process = subprocess.Popen(
                [str(word) for word in line],
                env=self.environment | environment, stdout=out, stderr=err, start_new_session=True,
            )  # fmt: skip
        process.log = log
        return process


def machines_or_skip():
    """Machines, or skip the test where mount namespaces are not allowed."""
    with tempfile.TemporaryDirectory() as folder:
        line = ["unshare", "--mount", "sh", "-c", OWN_DISK, folder, "true"]
        if not shutil.which("unshare") or subprocess.run(line, capture_output=True, check=False).returncode:
            pytest.skip("mount namespaces (unshare --mount, mount -t tmpfs) are not allowed here")
    return Machines()


def family(pid):
    """A process and all that descend from it."""
    children = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with suppress(OSError):
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(process.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


def wait_until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)
