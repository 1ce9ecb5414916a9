"""Lines for people: results on standard output; progress (done of total, rate, time left) on standard error.

On a terminal the line of progress is redrawn in place; elsewhere (a log file, a job) one is written every few seconds.
Output never fails the work: what a stream does not take, because its reader has gone (``mgc audit … | head``), its disk
is full or its terminal closed, is dropped. Of results on a full disk one line on standard error says so.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator

LOG_EVERY_SECONDS = 5.0


def say(text: str) -> None:
    """Write one line for a person to standard error; standard output is for results."""
    _write(text, sys.stderr)


def show(text: str) -> None:
    """Write a result to standard output."""
    _write(text, sys.stdout)


def _write(text: str, stream: TextIO | None, end: str = "\n") -> None:
    if stream is None:  # closed when Python began; print would take standard output instead
        return
    try:
        print(text, end=end, file=stream, flush=True)
    except (OSError, ValueError) as error:
        _lost(stream, error)


def flush() -> None:
    """Write what standard output still holds: at Python's exit, one that cannot be written would be an error."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except (OSError, ValueError) as error:
        _lost(sys.stdout, error)


def _lost(stream: TextIO, error: Exception) -> None:
    drop_output(stream)
    if stream is sys.stdout and not isinstance(error, BrokenPipeError):
        say(f"standard output cannot be written ({getattr(error, 'strerror', None) or error})")


def drop_output(stream: TextIO) -> None:
    """Send a stream that cannot be written to nowhere, or Python would write to it at its exit, and complain."""
    with suppress(OSError, ValueError):  # it is no file, or closed
        _to_nowhere(stream.fileno())


def open_streams() -> None:
    """Open the standard streams that were closed when Python began, or the next file opened would take their place.

    And let them write a genre that their encoding does not have.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            with suppress(OSError):  # another file is there already
                os.fstat(number)
                continue
            _to_nowhere(number)
            stream = open(number, "w" if number else "r", closefd=False)  # noqa: SIM115 (until the process ends)
            setattr(sys, name, stream)
        if number:
            getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")


def _to_nowhere(number: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)


class Pace:
    """How long something has been going on, and when to write the next line where lines cannot be redrawn."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._shown = -LOG_EVERY_SECONDS

    @property
    def elapsed(self) -> float:
        """Seconds since the object was made."""
        return time.monotonic() - self._start

    def due(self, *, now: bool = False) -> bool:
        """Whether to write a line: the first time, and every ``LOG_EVERY_SECONDS``.

        Parameters
        ----------
        now
            Write one in any case, as at the end.
        """
        elapsed = self.elapsed
        if not (now or elapsed - self._shown >= LOG_EVERY_SECONDS):
            return False
        self._shown = elapsed
        return True


class Progress:
    """Counts finished units of work and shows their rate and the time left.

    Parameters
    ----------
    title
        What is being done: ``"preprocess"``.
    total
        How many units there are.
    unit
        The unit in the plural: ``"clips"``.
    """

    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = 0
        self._before = 0
        self._pace = Pace()
        self._live = bool(sys.stderr and sys.stderr.isatty())

    def resume(self, count: int) -> None:
        """Count units that an earlier process finished: they count for the total, not for the rate."""
        self.done += count
        self._before += count

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count more units as done, and show it when a line is due.

        Parameters
        ----------
        count
            How many.
        note
            Shown behind the figures: a loss, an accuracy.
        """
        self.done += count
        last = self.done >= self.total
        if not self._pace.due(now=self._live or last):
            return
        line = f"{self.title}: {self._figures(self._pace.elapsed)}" + (f"  {note}" if note else "")
        if self._live:
            _write(f"\r\x1b[2K{line}", sys.stderr, end="\n" if last else "")
        else:
            say(line)

    def _figures(self, elapsed: float) -> str:
        rate = (self.done - self._before) / elapsed if elapsed > 0 else 0.0
        left = f", {clock((self.total - self.done) / rate)} left" if rate > 0 and self.done < self.total else ""
        return f"{self.done}/{self.total} {self.unit}, {rate:.2f}/s, {clock(elapsed)} elapsed{left}"


def clock(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


@contextmanager
def stage(title: str) -> Iterator[None]:
    """Write that ``title`` begins and, after the ``with`` block, how long it took."""
    say(f"{title} …")
    start = time.monotonic()
    yield
    say(f"{title}: done in {clock(time.monotonic() - start)}")
