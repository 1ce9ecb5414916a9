"""Joining or starting Ray; no other module calls ``ray.init`` or asks whether this is a Ray job.

Workers' output stays in Ray's logs, unless ``show_logs`` was called; their errors are raised here as exceptions.

``RAY_ADDRESS`` (set by ``ray job submit``, or by hand: ``RAY_ADDRESS=auto``) joins a cluster; without it Ray starts on
this machine, on loopback, and ends with the process.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from mgc.core import signals
from mgc.core.errors import InputError
from mgc.core.storage import URI, Folder

_started_here = _verbose = False
LONGEST_SOCKET = 107
"""Bytes of the path of a Unix socket."""


def show_logs() -> None:
    """Let Ray's own logs, and what workers print, through to this process's standard error."""
    global _verbose
    _verbose = True


def mute(logger: str, level: int = logging.ERROR) -> None:
    """Keep a logger of Ray's from writing less than errors, unless ``show_logs`` was called.

    Parameters
    ----------
    logger
        Its name: ``"ray.data"``.
    level
        What it may still write.
    """
    if not _verbose:
        logging.getLogger(logger).setLevel(level)


def check_sockets() -> None:
    """Refuse a folder for temporary files whose path is too long for the sockets that Ray makes in it.

    Raises
    ------
    InputError
        It is, and Ray is to be started on this machine.
    """
    if on_cluster():
        return
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    folder = os.environ.get(name, "/tmp")  # noqa: S108 (as Ray does)
    socket = f"{folder}/ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    excess = len(os.fsencode(socket)) - LONGEST_SOCKET
    if excess > 0:
        raise InputError(
            f"{name}={folder}: is {excess} bytes too long for the sockets that Ray makes in it; set RAY_TMPDIR to a "
            "short folder, such as /tmp"
        )


def connect() -> None:
    """Join or start Ray, unless this process already has.

    Raises
    ------
    InputError
        As ``check_sockets``.
    """
    import ray  # here, because asking whether this is a job must not cost the second that importing Ray takes

    global _started_here
    if not ray.is_initialized():
        check_sockets()
        _started_here = True
        here: dict[str, Any] = {} if on_cluster() else {"address": "local", "include_dashboard": False}
        if here:
            _on_loopback()
        ray.init(**here, logging_level=logging.INFO if _verbose else logging.ERROR, log_to_driver=_verbose)
        signals.catch_again()


def _on_loopback() -> None:
    """Let Ray, which listens on all interfaces on Linux and runs what it is sent, listen on loopback, as on macOS."""
    from ray._private import ray_constants

    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"  # for the processes that Ray starts
    ray_constants.ENABLE_RAY_CLUSTER = False


def disconnect() -> None:
    """Leave or stop Ray, if ``connect`` joined or started it."""
    global _started_here
    if _started_here:
        import ray

        ray.shutdown()
        _started_here = False


def on_cluster() -> bool:
    """Whether ``connect`` joins a cluster, whose nodes may come and go, instead of starting Ray on this machine."""
    return bool(os.environ.get("RAY_ADDRESS"))


def grows() -> bool:
    """Whether there may be more CPUs and GPUs later: not on this machine alone, where ``connect`` has started Ray."""
    return on_cluster() or not _started_here


def in_job() -> bool:
    """Whether this process is the entry point of a ``ray job submit``, whose working directory is a copy."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def output_folder(parameter: str, path: str | Path) -> Folder:
    """The folder that a step writes to, by its absolute path.

    Parameters
    ----------
    parameter
        Name of the step's parameter that ``path`` comes from, for the message: ``"out"``.
    path
        A path or a URI.

    Raises
    ------
    InputError
        The path is relative and this is a Ray job: the output would land in the copy and be lost; or the URI is not
        understood.
    StoreError
        The object store does not answer.
    """
    if in_job() and not (Path(path).is_absolute() or URI.match(str(path))):
        raise InputError(f"`{parameter}={path}`: must be absolute in a Ray job, whose working directory is a copy")
    return Folder.at(path)
