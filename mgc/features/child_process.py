"""Call a function on each item in a child process, so that a crash costs one item and not the caller.

A damaged MP3 can crash a decoder, hang it, or exhaust the memory; no ``except`` catches that. ``each`` forks one child,
which sends its results through a pipe, and forks another only when that one dies or hangs. (A fork costs 10 ms; a fresh
interpreter needs a second to load numpy and scipy.) It protects from accidents, not from attackers.

Python 3.12 warns of forking a process with threads (Ray's, gRPC's), because a lock that one of them holds stays locked
in the child. A function that only computes (numpy, scipy, soundfile) takes none of these locks. The warning needs no
filter: by default Python hides DeprecationWarnings raised in libraries.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import gc
import os
import pickle
import resource
import select
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

T = TypeVar("T")
R = TypeVar("R")

HEADER_BYTES = 8
"""Bytes of a message's header: the length of the pickle that follows, little-endian."""
PIPE_BYTES = 1 << 20
"""Size of the pipe, the largest that Linux allows without privileges: 64 rows of 330 kB, 10 ms apart, take 30 ms more
than without a pipe; with the default of 64 kB, 160 ms."""
LONGEST_SECONDS = 2_000_000.0
"""The longest time-out that the kernel's calls take, some three weeks; a longer one is as long."""
_forking = threading.RLock()
"""Held from pipe to fork: a child forked by another thread in between would inherit our pipe and hold it open, so that
a crash of our child would look like a hang."""


@dataclass(frozen=True)
class Lost:
    """Result of an item whose child process crashed or hung."""

    how: Literal["crashed", "timed_out"]
    detail: str
    """For a person: ``killed by SIGSEGV``, ``exit code 3``, ``out of memory``, ``no answer in 60 s``."""


@dataclass(frozen=True)
class _Raised:
    """An exception of the child, as a message to the parent."""

    error: BaseException
    traceback: str


def each(
    function: Callable[[T], R], items: Iterable[T], *, seconds: float, memory: int | None = None
) -> Generator[R | Lost, None, None]:
    """Yield ``function(item)`` for every item, in order, or ``Lost`` for one that brings its process down.

    An item that crashes its child is tried once more in a new child, and is lost if it crashes that too: an earlier
    item may have corrupted the heap, or another process killed the child. Running out of memory counts as a crash.

    Parameters
    ----------
    function
        Inherited by the fork, not pickled. Its caches and late imports start anew in each child.
    items
        Inherited by the fork, not pickled.
    seconds
        Time-out of one result; the caller's time between two results does not count.
    memory
        Bytes of address space that a child may add to those at the fork (Linux; elsewhere there is no limit).

    Yields
    ------
    R or Lost
        The result of each item; it is pickled.

    Raises
    ------
    Exception
        The exception of the function, or of pickling its result, with the child's traceback as a note; later items
        are not processed.

    Examples
    --------
    >>> list(each(lambda number: 1 / number, [1, 2], seconds=60))
    [1.0, 0.5]
    """
    left = list(items)
    child: _Child | None = None
    tried = False
    try:
        while left:
            if child is None:
                child = _Child(function, left, seconds, memory)
            answer = child.answer()
            if isinstance(answer, _Raised):
                answer.error.add_note(f"In the child process:\n{answer.traceback}")
                raise answer.error
            if isinstance(answer, Lost):
                child.end()
                child = None
                if answer.how == "crashed" and not tried:
                    tried = True
                    continue
            tried = False
            del left[0]
            yield answer
    finally:
        if child is not None:
            child.end()


class _Child:
    """The parent's end of a child process that processes items one after the other."""

    def __init__(self, function: Callable[[T], R], items: list[T], seconds: float, memory: int | None) -> None:
        self.seconds = seconds
        self.parent, self.pid = os.getpid(), 0
        _libc()  # loaded before the fork, because the loader has locks
        with _forking:
            reader, writer = os.pipe()
            if sys.platform == "linux":
                with suppress(OSError):  # a user has a quota of pipe pages
                    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            self.pipe = open(reader, "rb", buffering=0)  # noqa: SIM115 (end closes it)
            try:
                self.pid = os.fork()
                if self.pid == 0:
                    self.pipe.close()
                    _child_loop(function, items, writer, seconds, functools.partial(_confine, self.parent, memory))
            except BaseException:  # an interrupt before the pid is stored leaves a child that ends at its next result
                self.end()
                raise
            finally:
                if os.getpid() != self.parent:
                    os._exit(0)  # in any case: no atexit, no flushing, no return into the caller's frames
                os.close(writer)
        self.ready = select.poll()  # select.select takes no descriptor beyond 1023
        self.ready.register(self.pipe, select.POLLIN)

    def answer(self) -> Any:
        """Wait for the next result; ``Lost`` or ``_Raised`` is the last one."""
        deadline = time.monotonic() + self.seconds
        try:
            size = int.from_bytes(self._read(HEADER_BYTES, deadline), "little")
            message = self._read(size, deadline)
        except EOFError:
            return self._lost(self.end())
        except TimeoutError:
            return self._lost(-signal.SIGALRM)
        try:
            return pickle.loads(message)  # noqa: S301 (our own child's)
        except Exception as error:
            raise TypeError(f"a result cannot be unpickled: {type(error).__name__}: {error}") from error

    def end(self) -> int:
        """Kill and reap the child; return its exit code (a process that is dying already ignores SIGKILL)."""
        self.pipe.close()
        status = 0
        if self.pid and os.getpid() == self.parent:  # not ours to kill in the child of another generator
            with suppress(ProcessLookupError, ChildProcessError):  # the program ignores SIGCHLD: the kernel reaps
                os.kill(self.pid, signal.SIGKILL)
                _, status = os.waitpid(self.pid, 0)
            self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def _read(self, size: int, deadline: float) -> bytearray:
        data = bytearray(size)
        missing = memoryview(data)
        while missing:
            if not self.ready.poll(min(max(0.0, deadline - time.monotonic()), LONGEST_SECONDS) * 1000):
                raise TimeoutError
            count = self.pipe.readinto(missing)
            if not count:
                raise EOFError
            missing = missing[count:]
        return data

    def _lost(self, code: int) -> Lost:
        if code == -signal.SIGALRM:
            return Lost("timed_out", f"no answer in {self.seconds:g} s")
        names = {-number: number.name for number in signal.Signals}
        return Lost("crashed", f"exit code {code}" if code >= 0 else f"killed by {names.get(code, f'signal {-code}')}")


def _child_loop(
    function: Callable[[T], R], items: list[T], writer: int, seconds: float, confine: Callable[[], None]
) -> None:
    """Child loop: apply ``function``, send the result; stop after the first failure."""
    message, ok = _message(confine)
    if not ok:
        _send(message, writer)
        return
    for item in items:
        # The parent's clock finds a hang; this alarm ends a child whose parent is gone, and does not need the GIL.
        signal.setitimer(signal.ITIMER_REAL, min(seconds, LONGEST_SECONDS))
        message, ok = _message(functools.partial(function, item))
        signal.setitimer(signal.ITIMER_REAL, 0)  # sending may wait for a slow parent
        _send(message, writer)
        if not ok:
            return


def _message(call: Callable[[], object]) -> tuple[bytes, bool]:
    """Call and return the message for the parent, and whether the child can go on."""
    try:
        return pickle.dumps(call(), protocol=5), True
    except MemoryError:
        return pickle.dumps(Lost("crashed", "out of memory")), False
    except BaseException as error:
        trace = "".join(traceback.format_exception(error))
        try:
            message = pickle.dumps(_Raised(error, trace))
            pickle.loads(message)  # noqa: S301 (some exceptions can be pickled and not unpickled)
        except Exception:
            message = pickle.dumps(_Raised(RuntimeError(f"{type(error).__name__}: {error}"), trace))
        return message, False


def _send(message: bytes, writer: int) -> None:
    for part in (len(message).to_bytes(HEADER_BYTES, "little"), message):
        left = memoryview(part)
        while left:
            left = left[os.write(writer, left) :]


def _confine(parent: int, memory: int | None) -> None:
    """Let the child die with its parent, drop inherited signal handlers, and limit its memory."""
    if sys.platform == "linux":  # elsewhere an orphan ends on EPIPE or by its alarm
        # PR_SET_PDEATHSIG: strictly when the parent's *thread* ends, so all results must be taken in one thread.
        _libc().prctl(1, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(0)  # it died before that call
    gc.freeze()  # or a collection would copy the parent's pages and finalise its garbage a second time
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) is not signal.SIG_IGN:  # Python's handlers, faulthandler's, Ray's C++
            signal.signal(number, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory is not None and (statm := Path("/proc/self/statm")).exists():
        size = int(statm.read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = size + memory if hard == resource.RLIM_INFINITY else min(size + memory, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None)
