"""The command ``mgc ui``: MLflow's own UI on the project's store."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import NoReturn

from mgc.core import ports
from mgc.core.errors import InputError
from mgc.core.progress import say
from mgc.core.storage import Folder, without_password
from mgc.tracking.store import existing_store


def serve(port: int, *, as_json: bool = False) -> NoReturn:
    """Replace this process by MLflow's server, on the loopback interface, of the store in use here.

    Parameters
    ----------
    port
        Of the server.
    as_json
        Print the store's ``uri`` and the server's ``url`` as one line of JSON first.

    Raises
    ------
    InputError
        There is no store here yet, or it is itself a server, which has a UI already; or the port cannot be used.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    if given.startswith("http"):
        raise InputError(
            f"MLFLOW_TRACKING_URI={without_password(given)}: is a server with its own UI; open it in a browser"
        )
    ports.check(port)
    uri = existing_store(Folder.at(Path.cwd()))
    shown = without_password(uri)
    say(f"MLflow UI of {shown}: http://127.0.0.1:{port}")
    if as_json:  # now, because the server takes this process's place
        print(json.dumps({"uri": shown, "url": f"http://127.0.0.1:{port}"}), flush=True)
    server = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1"]
    # one worker for one person: it answers in half the time that MLflow's default of four takes (15 s against 34 s)
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # of language models' evaluation; 1.4 GB
    os.execv(sys.executable, [*server, "--port", str(port), "--workers", "1"])
