"""The command ``mgc serve``: a model behind HTTP, for a person on this machine."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, NoReturn

import uvicorn

from mgc.core import ports
from mgc.core.errors import RunError
from mgc.core.progress import say, show
from mgc.evaluation.calibration import PRECISION
from mgc.library.genre_model import load
from mgc.serving.app import SHOWN, application
from mgc.serving.limits import Limits
from mgc.serving.token import token_for

if TYPE_CHECKING:
    from mgc.library.genre_model import ModelLike

STOP_SECONDS = 5
"""How long files in work may take after Ctrl-C."""


def serve(
    model: ModelLike,
    *,
    host: str = ports.LOOPBACK,
    port: int = 8000,
    precision: float = PRECISION,
    limits: Limits | None = None,
    as_json: bool = False,
) -> NoReturn:
    """Serve a model until Ctrl-C: a page and an API.

    Parameters
    ----------
    model : str, Path, or object with ``checkpoint`` or ``run_id``
        As ``predict`` takes it.
    host
        Name or address to listen on. Beyond this machine requests must show a token: that of ``MGC_TOKEN``, or one
        that is made and said.
    port
        To listen on.
    precision
        Share of right answers, on the model's validation clips, that ``unsure`` leaves.
    limits
        What is refused.
    as_json
        Print the server's ``url`` and the ``model``'s fingerprint as one line of JSON when it is up.

    Raises
    ------
    InputError
        There is no such model, or the host or the port cannot be used.
    RunError
        The model could not be taken to its device.
    KeyboardInterrupt
        Ctrl-C, or another signal that ends a command.
    """
    with ports.listen(port, host) as listener:
        loaded = load(model)
        app = application(loaded, limits or Limits(), token_for(host), precision=precision)
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        say(f"mgc serves the model {loaded.fingerprint[:SHOWN]}: {address}")
        if as_json:
            show(json.dumps({"url": address, "model": loaded.fingerprint[:SHOWN]}))
        # uvloop and httptools, which are not everywhere, save nothing where a request is seconds of decoding
        config = uvicorn.Config(
            app, loop="asyncio", http="h11", ws="none", lifespan="on", log_config=None, access_log=False,
            proxy_headers=False, server_header=False, timeout_graceful_shutdown=STOP_SECONDS,
        )  # fmt: skip
        server = uvicorn.Server(config)
        asyncio.run(server.serve(sockets=[listener]))
        if not server.started:
            raise RunError("serve: the model could not be started; its error is above")
    raise KeyboardInterrupt  # uvicorn has raised the signal again before, unless nobody handles it
