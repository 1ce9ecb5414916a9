"""The trials of a sweep as a table, best first, on standard error.

On a terminal the table is redrawn in place; in a log file or under a job a line is written every few seconds, and the
table once, at the end.
"""

from __future__ import annotations

import atexit
import math
import sys
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mgc.core.progress import Pace, clock, say

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

State = Literal["running", "kept", "pruned", "failed", "stopped"]
ENDED = ("kept", "pruned", "failed")
"""States that are final; a stopped trial can be resumed."""
STYLES = {"running": "bold cyan", "pruned": "dim", "failed": "red", "stopped": "dim yellow"}
LOG_COLUMNS, LOG_ROWS = 120, 10
"""Size of the table in a log file."""


@dataclass(frozen=True)
class _Row:
    """A trial; replaced, never changed, because rich reads it from a thread of its own."""

    name: str
    differences: Mapping[str, Any]
    state: State = "running"
    epoch: int = 0
    best: float | None = None
    train: float | None = None
    reason: str = ""

    @property
    def rank(self) -> tuple[bool, float]:
        """Best first, then those without an accuracy, then the failed."""
        return self.state == "failed", math.inf if self.best is None else -self.best


class LiveTable:
    """The trials of one stage of a sweep; for callbacks: no method raises, because no table is worth a sweep.

    Parameters
    ----------
    title
        The stage: ``"search"``.
    total
        How many trials there are.
    epochs
        The most that one trial gets.
    """

    def __init__(self, title: str, total: int, epochs: int) -> None:
        self.title, self.total, self.epochs = title, total, epochs
        self.trouble = ""
        """Why the table is not complete; empty if it is."""
        self._rows: dict[str, _Row] = {}
        self._ended_here = self._epochs_here = 0
        self._pace = Pace()
        self._shown, self._width = False, 0
        self._live: Live | None = None
        self._frame = Group()

    def start(self) -> None:
        """Show the table from now on, until ``stop`` or the end of the process."""
        if self._shown:
            return
        self._shown, self._pace = True, Pace()
        atexit.register(self.stop)  # a hidden cursor would outlive us
        with self._harmless():
            console = Console(stderr=True)
            if console.is_interactive and sys.stderr.isatty():
                on_terminal = sys.stdout.isatty()  # elsewhere standard output belongs to results
                draw = lambda: self._draw(console)  # noqa: E731
                self._live = Live(
                    console=console, get_renderable=draw, refresh_per_second=2, redirect_stdout=on_terminal
                )
                self._live.start(refresh=True)

    def stop(self) -> None:
        """Leave the last table on the screen or in the log; trials that still run are stopped."""
        if not self._shown:
            return
        self._rows |= {n: replace(row, state="stopped") for n, row in self._rows.items() if row.state == "running"}
        with self._harmless():
            if self._live:
                self._live.stop()
            else:
                say(self.text(LOG_COLUMNS, LOG_ROWS))
        self._live, self._shown = None, False
        atexit.unregister(self.stop)

    def update(
        self,
        name: str,
        *,
        differences: Mapping[str, Any] | None = None,
        state: State | None = None,
        epoch: int = 0,
        val_accuracy: float | None = None,
        train_accuracy: float | None = None,
        reason: str = "",
        earlier: bool = False,
    ) -> None:
        """Show what is new of a trial. A failure is also written above the table, at once.

        Parameters
        ----------
        name
            Of the trial.
        differences
            Its configuration: values by dotted field name.
        state
            Whether it runs, or how it ended.
        epoch
            The last that ended, from 1; one that is reported again (a resumed fit does) is no progress.
        val_accuracy
            After this epoch; the table has the best.
        train_accuracy
            During this epoch.
        reason
            Why it failed.
        earlier
            Whether an earlier process did all this: then it does not count for the rate.
        """
        with self._harmless():
            row = self._rows.get(name, _Row(name, {}))
            known = [value for value in (row.best, val_accuracy) if value is not None and math.isfinite(value)]
            changed = replace(row, best=max(known, default=None), epoch=max(row.epoch, epoch))
            if epoch and epoch >= row.epoch:
                changed = replace(changed, train=train_accuracy)
            if differences is not None:
                changed = replace(changed, differences=dict(differences))
            if state:
                changed = replace(changed, state=state, reason=_one_line(reason)[:300])
            self._rows[name] = changed
            if not earlier:
                self._epochs_here += changed.epoch - row.epoch
                self._ended_here += changed.state in ENDED and row.state not in ENDED
                if state == "failed":
                    say(f"{self.title}: {name} failed" + (f": {changed.reason}" if reason else ""))
                if self._shown and not self._live and self._pace.due():
                    say(", ".join(self._head()))

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        """Go on after an error, which is reported once."""
        try:
            yield
        except Exception as error:
            if not self.trouble:
                self.trouble = repr(error)
                with suppress(Exception):
                    say(f"{self.title}: the table of trials is not complete: {self.trouble}")

    def text(self, width: int, rows: int) -> str:
        """The table as plain lines.

        Parameters
        ----------
        width
            In columns.
        rows
            Most trials that are listed.
        """
        console = Console(width=width, color_system=None, force_terminal=False)
        with console.capture() as written:
            console.print(self._render(rows))
        return "\n".join(line.rstrip() for line in written.get().splitlines())

    def _draw(self, console: Console) -> Group:
        """The next frame, or the last one if there is no way to draw it. Called by rich, from a thread of its own."""
        with suppress(Exception):
            width, height = console.size
            if width < self._width:  # a narrower terminal has wrapped the last frame: go to a new page
                console.file.write("\n" * height + "\x1b[H")
            self._width, self._frame = width, self._render(height - 5)  # two lines of head, header, «more», cursor
        return self._frame

    def _render(self, most: int) -> Group:
        """The table of so many trials: the best, and behind them those that run, which may take up to half of it."""
        ranked, most = sorted(self._rows.values(), key=lambda row: row.rank), max(0, most)
        running = [row for row in ranked[most:] if row.state == "running"][: most // 2]
        shown = ranked[: most - len(running)] + running
        hidden = Counter(row.state for row in ranked) - Counter(row.state for row in shown)
        table = Table(box=None, pad_edge=False, header_style="underline")
        for name in ("trial", "state", "epoch", "val", "train"):
            table.add_column(name, justify="left" if name in ("trial", "state") else "right", no_wrap=True)
        table.add_column("configuration")
        short = _short_names(key for row in ranked for key in row.differences)
        for row in shown:
            what = " ".join(f"{short[key]}={_value(value)}" for key, value in row.differences.items())
            cells = [row.name, row.state, f"{row.epoch}/{self.epochs}", _accuracy(row.best), _accuracy(row.train)]
            cells.append(f"{row.reason}: {what}" if row.reason else what)
            table.add_row(*(_line(cell) for cell in cells), style=STYLES.get(row.state, ""))
        more = f"… and {hidden.total()} more: " + ", ".join(f"{count} {state}" for state, count in hidden.most_common())
        lines = [_line(line, "bold") for line in self._head()]
        return Group(*lines, *[table] * bool(shown), *[_line(more, "dim")] * bool(hidden))

    def _head(self) -> tuple[str, str]:
        """Counts; rate, times and the best."""
        rows, elapsed, left = list(self._rows.values()), self._pace.elapsed, self._left()
        counts = Counter[str](row.state for row in rows)
        done = sum(counts[state] for state in ENDED)
        states = [f"{counts[state]} {state}" for state in ("running", *ENDED, "stopped") if counts[state]]
        best = min((row for row in rows if row.best is not None), key=lambda row: row.rank, default=None)
        figures = [f"{60 * self._ended_here / elapsed:.2f} trials/min"] if self._ended_here and elapsed else []
        figures += [f"{clock(elapsed)} elapsed"] + ([f"{clock(left)} left"] if left else [])
        figures += [f"best {_accuracy(best.best)} ({best.name})"] if best else []
        return f"{self.title}: {', '.join([f'{done}/{self.total} trials', *states])}", ", ".join(figures)

    def _left(self) -> float | None:
        """Seconds to the end, by the epochs per second of this process; None before its first epoch.

        A trial that has not begun costs as many epochs as those that have, on average, where a running one counts as if
        it got all. So pruning shortens it only once it has happened: the figure is too high at first, and falls.
        """
        if not self._epochs_here:
            return None
        rows = list(self._rows.values())
        costs = [row.epoch if row.state in ENDED else max(self.epochs, row.epoch) for row in rows]
        running = sum(costs) - sum(row.epoch for row in rows)
        waiting = max(0, self.total - len(rows)) * sum(costs) / len(costs)
        return (running + waiting) * self._pace.elapsed / self._epochs_here


def _accuracy(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _short_names(names: Iterable[str]) -> dict[str, str]:
    """Dotted names by their last part, where that is unambiguous."""
    lasts = {name: name.rpartition(".")[2] for name in names}
    counts = Counter(lasts.values())
    return {name: last if counts[last] == 1 else name for name, last in lasts.items()}


def _one_line(text: str) -> str:
    """Text that leaves the terminal as it is, whatever it is."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


def _line(text: str, style: str = "") -> Text:
    return Text(_one_line(text), style, no_wrap=True, overflow="ellipsis")
