"""The command ``mgc ui``: MLflow's own UI on the project's store."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from mgc.core.errors import InputError
from mgc.core.progress import say


def serve(uri: str, port: int) -> NoReturn:
    """Replace this process by MLflow's server on the loopback interface.

    Parameters
    ----------
    uri
        Of the store.
    port
        Of the server.

    Raises
    ------
    InputError
        The store is itself a server, which has a UI already.
    """
    if uri.startswith("http"):
        raise InputError(f"MLFLOW_TRACKING_URI={uri}: is a server with its own UI; open it in a browser")
    say(f"MLflow UI of {uri}: http://127.0.0.1:{port}")
    server = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1"]
    os.execv(sys.executable, [*server, "--port", str(port)])
