"""How a machine's or a cluster's CPUs and GPUs are divided among the trials of a sweep."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mgc.core.errors import InputError

if TYPE_CHECKING:
    from mgc.config import SweepConfig


def share(config: SweepConfig, cpus: int, gpus: float, *, cluster: bool = False) -> tuple[int | None, dict[str, float]]:
    """How many trials run at a time, and the resources of each.

    By default a trial has a GPU, or, where there is none now, a CPU. A machine is divided among the trials. Of a
    cluster, which may grow, each trial asks for what the configuration says.

    Parameters
    ----------
    config
        ``concurrent``, ``cpus_per_trial``, ``gpus_per_trial`` and ``workers_per_trial`` decide.
    cpus
        CPUs of the machine or the cluster.
    gpus
        GPUs of the machine or the cluster.
    cluster
        There may be more CPUs and GPUs later.

    Returns
    -------
    tuple of int or None and dict
        Trials at a time (None: as many as the cluster has room for at any time); ``cpu`` and ``gpu`` of one trial, or,
        with ``workers_per_trial``, of each of its workers.

    Raises
    ------
    InputError
        There are not the GPUs or CPUs that even one trial is to have.
    """
    workers = config.workers_per_trial
    if cluster:
        gpu = float(bool(gpus)) if config.gpus_per_trial is None else min(1.0, config.gpus_per_trial)
        # trials with workers of their own ask for nothing themselves: one at a time, if there is not room for more now
        room = max(1, int(gpus if gpu else cpus) // workers) if workers > 1 else None
        return config.concurrent or room, {"cpu": float(config.cpus_per_trial or 1), "gpu": gpu}
    if config.gpus_per_trial and not gpus:
        raise InputError(f"`gpus_per_trial={config.gpus_per_trial:g}`: there is no GPU; leave it out")
    if workers > 1:
        units = int(gpus or cpus)
        if units < workers:
            kind = "GPUs" if gpus else "CPUs"
            raise InputError(f"`workers_per_trial={workers}`: there are {units} {kind}; take fewer")
        return config.concurrent or units // workers, {"cpu": 1.0, "gpu": float(bool(gpus))}
    asked = config.cpus_per_trial
    if asked and asked > cpus:
        raise InputError(f"`cpus_per_trial={asked}`: there are {cpus} CPUs; take fewer")
    if not gpus:
        concurrent = config.concurrent or cpus // (asked or 1)
        return concurrent, {"cpu": float(asked or part(cpus, concurrent)), "gpu": 0.0}
    on_one = math.ceil((config.concurrent or gpus) / gpus)  # Ray gives no trial parts of two
    each = config.gpus_per_trial or part(1, on_one)
    concurrent = config.concurrent or max(1, int(gpus)) * int(1 / each)
    return concurrent, {"cpu": float(asked or part(cpus, concurrent)), "gpu": each}


def part(units: float, of: int) -> float:
    """Divide resources evenly: whole units where there are enough, else a fraction in Ray's precision (1/10,000).

    Parameters
    ----------
    units
        CPUs or GPUs.
    of
        Number of equal parts.
    """
    return float(units // of) if units >= of else math.floor(10_000 * units / of) / 10_000
