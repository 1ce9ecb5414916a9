"""Load on `mgc serve`: clients that post files at the same time; whether one is lost, how long they take, and memory.

    python benchmarks/serve.py MODEL CLIP [CLIP …] [--requests 200] [--clients 16]

It starts the server itself, with as many files at once as there are clients, and asks for each clip alone first; an
answer under load counts as lost if it is no prediction, or another genre than the clip alone got.
"""

from __future__ import annotations

import argparse
import http.client
import json
import signal
import socket
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16)
    options = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mgc.cli", "serve", "--model", options.model, "--port", str(port), "--json"]
    server = subprocess.Popen([*command, "--at-once", str(options.clients)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        print(server.stdout.readline().strip())
        bodies = [clip.read_bytes() for clip in options.clips]
        alone = [ask(port, body)[1] for body in bodies]
        before = memory(server.pid)
        start = time.perf_counter()
        with ThreadPoolExecutor(options.clients) as pool:
            wanted = list(islice(cycle(zip(bodies, alone, strict=True)), options.requests))
            answers = list(pool.map(lambda each: ask(port, each[0]), wanted))
        elapsed = time.perf_counter() - start
        after = memory(server.pid)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()
    lost = sum(genre is None or genre != expected for (_, genre), (_, expected) in zip(answers, wanted, strict=True))
    seconds = sorted(each for each, _ in answers)
    cut = statistics.quantiles(seconds, n=100, method="inclusive")
    print(f"{options.requests} requests of {options.clients} clients, {len(bodies)} clips: {lost} lost")
    print(f"p50 {cut[49]:.2f} s, p99 {cut[98]:.2f} s, {options.requests / elapsed:.2f} requests/s")
    print(f"memory of the server (RSS): {before:.0f} MB before, {after:.0f} MB after")


def ask(port: int, body: bytes) -> tuple[float, str | None]:
    """Seconds of a request, and the genre that it got; None if it got none."""
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request("POST", "/v1/predict", body)
        response = connection.getresponse()
        answer = json.load(response)
    except (OSError, ValueError, http.client.HTTPException):
        answer = {}
    finally:
        connection.close()
    return time.perf_counter() - start, answer.get("genre")


def memory(pid: int) -> float:
    """Resident memory of a process in MB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1000


if __name__ == "__main__":
    main()
