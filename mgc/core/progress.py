"""Progress for people: done of total, rate and time left, on standard error.

On a terminal one line is redrawn in place; in a log file or under a job a line is written every few seconds.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

LOG_EVERY_SECONDS = 5.0


def say(text: str) -> None:
    """Write one line for a person to standard error; standard output belongs to results."""
    print(text, file=sys.stderr, flush=True)


class Pace:
    """How long something has been going on, and when a line about it is due where lines cannot be redrawn."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._shown = -LOG_EVERY_SECONDS

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._start

    def due(self, *, now: bool = False) -> bool:
        """Whether to write a line: the first time, every ``LOG_EVERY_SECONDS``, and if it must be ``now``."""
        elapsed = self.elapsed
        if not (now or elapsed - self._shown >= LOG_EVERY_SECONDS):
            return False
        self._shown = elapsed
        return True


class Progress:
    """Counts finished units of work and shows rate and time left.

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
        """Count units as done that were done before this process: no rate is due to them."""
        self.done += count
        self._before += count

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count ``count`` more units as done; ``note`` (a loss, an accuracy) is shown behind the figures."""
        self.done += count
        last = self.done >= self.total
        if not self._pace.due(now=self._live or last):
            return
        line = f"{self.title}: {self._figures(self._pace.elapsed)}" + (f"  {note}" if note else "")
        if self._live:
            print(f"\r\x1b[2K{line}", end="\n" if last else "", file=sys.stderr, flush=True)
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
    """Say that ``title`` begins, and how long it took."""
    say(f"{title} …")
    start = time.monotonic()
    yield
    say(f"{title}: done in {clock(time.monotonic() - start)}")
