"""Free ports, and the processes of a Ray session."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def processes_of(folder):
    """Process ids whose command line or environment names a Ray session folder that only this test has."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                known = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            except OSError:
                continue
            if str(folder).encode() in known:
                found.append(int(process.name))
    return found
