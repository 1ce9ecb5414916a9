"""Call a function on one item after the other in a child process, so that a crash costs an item and not the caller.

A hostile MP3 can crash a decoder, hang it, or eat the memory; no ``except`` catches that. ``each`` forks one child,
which sends its results back through a pipe, and forks another only when that one dies or hangs. (A fork costs 10 ms;
a fresh interpreter loads numpy and scipy for a second.) It is for accidents, not against attackers.

Python 3.12 warns of forking a process with threads (Ray's, gRPC's), because a lock that one holds stays locked in the
child. A function that only computes (numpy, scipy, soundfile) takes none of their locks. The warning needs no filter:
Python shows a library's DeprecationWarning to nobody.
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
"""Length of the pickle that follows, little-endian."""
PIPE_BYTES = 1 << 20
"""The most that Linux gives anybody: 64 rows of 330 kB, 10 ms apart, cost 30 ms; through its usual 64 kB, 160 ms."""
_forking = threading.RLock()
"""From pipe to fork: a child of another thread would hold our pipe open, and our child's crash would seem a hang."""


@dataclass(frozen=True)
class Lost:
    """An item whose process did not come back."""

    how: Literal["crashed", "timed_out"]
    detail: str
    """For a person: ``killed by SIGSEGV``, ``exit code 3``, ``out of memory``, ``no answer in 60 s``."""


@dataclass(frozen=True)
class _Raised:
    """An exception on its way to the parent."""

    error: BaseException
    traceback: str


def each(
    function: Callable[[T], R], items: Iterable[T], *, seconds: float, memory: int | None = None
) -> Generator[R | Lost, None, None]:
    """Yield ``function(item)`` for every item, in order, or ``Lost`` for one that brings its process down.

    An item that crashes its child is tried once more in a new one, and lost if it crashes that too: a former item may
    have corrupted the heap, or somebody else have killed the child. Running out of memory is a crash.

    Parameters
    ----------
    function
        Is inherited, like the items, and never pickled. What it caches or imports late is done anew in each child.
    seconds
        The most that one answer may take; what the caller does between two answers does not count.
    memory
        Bytes of address space that a child may add to what it has at the fork (Linux; elsewhere there is no limit).

    Raises
    ------
    Exception
        What the function raised, or pickle about its result, with the child's traceback as a note. It ends the work.
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
    """A process that answers for items one after the other, as its parent sees it."""

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
                    _serve(function, items, writer, seconds, functools.partial(_confine, self.parent, memory))
            except BaseException:  # an interrupt that hides the pid leaves a child that ends at its next answer
                self.end()
                raise
            finally:
                if os.getpid() != self.parent:
                    os._exit(0)  # whatever happened: no atexit, no flushing, no return into the caller's frames
                os.close(writer)
        self.ready = select.poll()  # select.select takes no descriptor beyond 1023
        self.ready.register(self.pipe, select.POLLIN)

    def answer(self) -> Any:
        """Wait for the next result; after ``Lost`` or ``_Raised`` there is none."""
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
        """Kill and reap the child; return how it ended if it had before (a dying process ignores SIGKILL)."""
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
            if not self.ready.poll(max(0.0, deadline - time.monotonic()) * 1000):
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


def _serve(
    function: Callable[[T], R], items: list[T], writer: int, seconds: float, confine: Callable[[], None]
) -> None:
    """Live the child's life: answer for each item, until one cannot be answered for."""
    message, well = _answer(confine)
    if not well:
        _send(message, writer)
        return
    for item in items:
        # The parent's clock finds what hangs; this one ends a child whose parent is gone, without need of the GIL.
        signal.setitimer(signal.ITIMER_REAL, seconds)
        message, well = _answer(functools.partial(function, item))
        signal.setitimer(signal.ITIMER_REAL, 0)  # a slow parent may keep us waiting now
        _send(message, writer)
        if not well:
            return


def _answer(call: Callable[[], object]) -> tuple[bytes, bool]:
    """Return what to send to the parent, and whether the process is well enough to go on."""
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
    """Tie the child's life to its parent's, and free it of what it inherited."""
    if sys.platform == "linux":  # elsewhere an orphan ends on EPIPE or by its alarm
        # PR_SET_PDEATHSIG. Strictly when the parent's *thread* ends: take all answers in one thread.
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
