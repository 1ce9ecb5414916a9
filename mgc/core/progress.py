"""Lines for people: results on standard output; progress (done of total, rate, time left) on standard error.

On a terminal the line of progress is redrawn in place; elsewhere (a log file, a job) one is written every few seconds.
A reader that has gone, as in ``mgc audit … | head``, is no error: what would follow is dropped.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
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


def _write(text: str, stream: TextIO, end: str = "\n") -> None:
    try:
        print(text, end=end, file=stream, flush=True)
    except BrokenPipeError:
        drop_output(stream)


def flush() -> None:
    """Write what standard output still holds: at Python's exit, a reader that has gone would be an error."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output(sys.stdout)


def drop_output(stream: TextIO) -> None:
    """Send a stream whose reader has gone to nowhere, or Python would write to it at its exit, and complain."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
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
        self._live = sys.stderr.isatty()

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
