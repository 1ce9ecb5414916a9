"""What a cluster has, waiting for more of it, and asking its nodes what they see; Ray is up.

Nodes come and go, so nothing here is counted once: who needs CPUs or GPUs states a ``Demand``.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from mgc.core.atomic_files import temporary_name
from mgc.core.errors import InputError, RunError, WaitError
from mgc.core.progress import clock, say
from mgc.core.ray_session import grows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from mgc.core.storage import Folder

SAY_EVERY_SECONDS = 30.0
ANSWER_SECONDS = 10.0
"""How long Ray may take to find the room that there is: a busy machine answers late."""
ASK_SECONDS = 120.0
"""How long a node may take to answer; it may have to start a process for it."""


def nodes() -> list[dict[str, Any]]:
    """The nodes that are alive, as ``ray.nodes`` describes them."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def total(resource: str) -> float:
    """How much of a resource (``"CPU"``, ``"GPU"``) the cluster has at this moment."""
    return float(sum(node["Resources"].get(resource, 0) for node in nodes()))


def working_nodes() -> list[dict[str, Any]]:
    """The nodes that have CPUs or GPUs."""
    return [node for node in nodes() if node["Resources"].keys() & {"CPU", "GPU"}]


def smallest_object_store() -> float:
    """Bytes of the smallest object store of a node that can do work."""
    stores = (float(node["Resources"].get("object_store_memory", 0)) for node in working_nodes())
    return min(stores, default=0.0)


@dataclass(frozen=True)
class Demand:
    """Processes that a step asks Ray for, each on one node."""

    what: str
    """In the plural: ``"workers"``."""
    count: int
    """How many of them must run at a time."""
    each: dict[str, float]
    """Resources of each, by Ray's names."""
    minutes: float
    """How long to wait for them."""

    def __post_init__(self) -> None:
        if not self.minutes >= 0:
            raise InputError(f"`wait={self.minutes:g}`: must be at least 0 minutes")

    def __str__(self) -> str:
        each = ", ".join(f"{amount:g} {name}" for name, amount in self.each.items() if name in ("CPU", "GPU"))
        return f"{self.count} {self.what if self.count > 1 else self.what.removesuffix('s')} × {each}"

    def wait(self) -> None:
        """Wait until the cluster has room for all of them at once; an autoscaler is asked for it.

        Raises
        ------
        WaitError
            The time is over.
        InputError
            The machine, which does not grow, has not the resources.
        """
        import ray
        from ray.util.placement_group import placement_group, remove_placement_group

        if not grows() and self.count > self._room():
            raise InputError(f"{self} are wanted; this machine has {_has(self.each)}; ask for less")
        began, said = time.monotonic(), -SAY_EVERY_SECONDS + 5
        place = placement_group([dict(self.each)] * self.count)  # the one question that autoscalers understand
        try:
            while not place.wait(timeout_seconds=1):
                elapsed = time.monotonic() - began
                if elapsed >= max(60 * self.minutes, ANSWER_SECONDS if self.count <= self._room() else 0):
                    raise self._over()
                if elapsed - said >= SAY_EVERY_SECONDS:
                    self._say(elapsed)
                    said = elapsed
        finally:
            with suppress(ray.exceptions.RayError):
                remove_placement_group(place)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """During the block, say when nodes were lost so that the cluster is too small, and end the wait for new ones.

        After the block Ctrl-C does what it did before: Ray Train and Ray Tune leave handlers of their own.

        Raises
        ------
        WaitError
            The cluster was too small for ``minutes``; only if the block runs in the main thread.
        """
        done, over = threading.Event(), threading.Event()
        interrupt = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGINT)

        def end_wait(number: int, frame: FrameType | None) -> None:
            if over.is_set():
                raise KeyboardInterrupt

        if interrupt and before is signal.SIG_IGN:  # a shell's "command &" in a script
            signal.signal(signal.SIGINT, end_wait)

        def watch() -> None:
            short, said = None, 0.0
            while not done.wait(2):
                now = time.monotonic()
                with suppress(Exception):  # the connection may have gone: who uses it will say so
                    short = None if self.count <= self._room() else short or now
                if short and now - max(short, said) >= SAY_EVERY_SECONDS:
                    self._say(now - short)
                    said = now
                if short and interrupt and now - short >= 60 * self.minutes:
                    over.set()
                    main = threading.main_thread().ident or 0
                    signal.pthread_kill(main, signal.SIGINT)  # out of whatever it waits for
                    while not done.wait(15):  # Ray Train gives up its workers at the third
                        signal.pthread_kill(main, signal.SIGINT)
                    return

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        except KeyboardInterrupt:
            if over.is_set():
                raise self._over() from None
            raise
        finally:
            done.set()
            watcher.join()
            if interrupt:
                signal.signal(signal.SIGINT, before)

    def _room(self) -> int:
        """How many of the processes the cluster's nodes could hold if they had nothing else to do."""
        return sum(_held(node["Resources"], self.each) for node in nodes())

    def _say(self, elapsed: float) -> None:
        left = clock(max(0.0, 60 * self.minutes - elapsed))
        say(f"{self} wait; the cluster has {_has(self.each)} (for {left} more, see --wait)")

    def _over(self) -> WaitError:
        return WaitError(
            f"`wait={self.minutes:g}`: {self} did not come in this time; the cluster has {_has(self.each)}; "
            "add nodes, ask for less, or wait longer"
        )


def _held(there: dict[str, float], each: dict[str, float]) -> int:
    return min(math.floor(there.get(name, 0) / amount + 1e-9) for name, amount in each.items() if amount)


def _has(each: dict[str, float]) -> str:
    """What the cluster has of a demand's CPUs and GPUs, in use or not."""
    return " and ".join(f"{total(name):g} {name}" for name in each if name in ("CPU", "GPU"))


def check_shared(parameter: str, folder: Folder) -> None:
    """Refuse a folder for writing that a node of the cluster does not see, for instance because it is on its own disk.

    A marker is written there, and each other node that has CPUs or GPUs is asked for it.

    Parameters
    ----------
    parameter
        Name of the step's parameter that the folder comes from, for the message.
    folder
        The folder; is made if it is not there.

    Raises
    ------
    InputError
        A node does not see it.
    """
    marker = temporary_name("seen")
    folder.make()
    folder.write(marker, b"?")
    try:
        check_seen(parameter, folder, marker)
    finally:
        folder.remove(marker)


def check_seen(parameter: str, folder: Folder, name: str) -> None:
    """Refuse a folder for reading that a node of the cluster does not see.

    Parameters
    ----------
    parameter
        Name of the step's parameter that the folder comes from, for the message.
    folder
        The folder.
    name
        A file that is there.

    Raises
    ------
    InputError
        A node does not see it.
    """
    for node, answer in ask_nodes(partial(_looked, folder, name)):
        raise InputError(
            f"`{parameter}={folder}`: node {node} does not see it{answer}; give a bucket (s3://bucket/folder) or a "
            "folder that all nodes mount"
        )


def ask_nodes(question: Callable[[], str | None]) -> Iterator[tuple[str, str]]:
    """Ask the other nodes that can do work; Ray is up.

    Parameters
    ----------
    question
        Is called in a process of each node; None is the good answer.

    Yields
    ------
    node, answer
        Address of each node whose answer is not None, and the answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    own = ray.get_runtime_context().get_node_id()
    able = [node for node in working_nodes() if node["NodeID"] != own]
    task = ray.remote(num_cpus=0, max_retries=0)(_called)
    there = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in able]
    answers = [task.options(scheduling_strategy=each).remote(question) for each in there]
    for node, answer in zip(able, answers, strict=True):
        address = str(node["NodeManagerAddress"])
        try:
            text = ray.get(answer, timeout=ASK_SECONDS)
        except ray.exceptions.RayError as error:
            if any(each["NodeID"] == node["NodeID"] for each in nodes()):
                raise RunError(f"node {address}: does not answer ({type(error).__name__})") from None
            continue  # it has gone meanwhile
        if text is not None:
            yield address, text


def _called(question: Callable[[], str | None]) -> str | None:
    return question()


def _looked(folder: Folder, name: str) -> str | None:
    try:
        return None if folder.kind(name) == "file" else ""
    except Exception as error:
        return f" ({error})"
