"""Joining or starting Ray: the only module that calls ``ray.init`` or asks whether this is a Ray job.

Workers' output stays in Ray's logs; their errors are raised here as exceptions.

``RAY_ADDRESS`` (set by ``ray job submit``, or by hand: ``RAY_ADDRESS=auto``) joins a cluster; without it Ray starts on
this machine, on loopback, and ends with the process.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from mgc.core.errors import InputError
from mgc.core.storage import URI, Folder

_connected_here = False


def connect() -> int:
    """Join or start Ray, unless this process already has.

    Returns
    -------
    int
        CPUs of the cluster, at least 1.
    """
    import ray  # here, because asking whether this is a job must not cost the second that importing Ray takes

    global _connected_here
    if not ray.is_initialized():
        _connected_here = True
        if os.environ.get("RAY_ADDRESS"):
            ray.init(logging_level=logging.ERROR, log_to_driver=False)
        else:
            ray.init(address="local", include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def disconnect() -> None:
    """Leave or stop Ray, if ``connect`` joined or started it."""
    global _connected_here
    if _connected_here:
        import ray

        ray.shutdown()
        _connected_here = False


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
