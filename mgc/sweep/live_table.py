"""A sweep for people: its trials as a table, best first, on standard error.

On a terminal the table is redrawn in place; in a log file or under a job a line is written every few seconds, and the
table once, at the end.
"""

from __future__ import annotations

import atexit
import functools
import math
import sys
import textwrap
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec

from rich.console import Console
from rich.live import Live
from rich.text import Text

from mgc.core.progress import Pace, clock, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Self

P = ParamSpec("P")

State = Literal["running", "paused", "kept", "pruned", "failed", "stopped"]

ENDED = ("kept", "pruned", "failed")
"""States that are final; a stopped trial can be taken up again."""
STYLES = {"running": "bold cyan", "pruned": "dim", "failed": "red", "stopped": "dim yellow"}
FRAMES_PER_SECOND = 2
LOG_COLUMNS, LOG_ROWS = 120, 10
"""The final table in a log file."""
STATE_COLUMNS, ACCURACY_COLUMNS = 7, 5
FEWEST_COLUMNS = 8
"""A configuration that would have fewer is left out; names have at least as many."""
REASON_CHARACTERS = 300


@dataclass(frozen=True)
class _Trial:
    """A row. It is replaced, never changed: the thread that redraws sees it as it was or as it is."""

    name: str
    differences: Mapping[str, Any]
    state: State = "running"
    epoch: int = 0
    best: float | None = None
    """Validation accuracy, the best so far."""
    train: float | None = None
    """Training accuracy, the last."""
    reason: str = ""

    @property
    def rank(self) -> tuple[bool, float]:
        """Sorts best first, then those without an accuracy, then the failed."""
        return self.state == "failed", math.inf if self.best is None else -self.best


def _harmless(method: Callable[Concatenate[Scoreboard, P], None]) -> Callable[Concatenate[Scoreboard, P], None]:
    """A table that cannot be shown (a closed terminal) must not end a sweep: say so once and go on."""

    @functools.wraps(method)
    def call(self: Scoreboard, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            if not self.trouble:
                self.trouble = repr(error)
                with suppress(Exception):
                    say(f"{self.title}: the table of trials is not complete: {self.trouble}")

    return call


class Scoreboard:
    """The trials of one stage of a sweep.

    Its methods may be called from callbacks: none of them raises. While it is shown on a terminal, whatever is written
    to ``sys.stderr`` (and to ``sys.stdout``, if that is a terminal too) appears above the table.

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
        self._trials: dict[str, _Trial] = {}
        self._ended_here = 0
        self._epochs_here = 0
        self._pace = Pace()
        self._shown = False
        self._live: Live | None = None
        self._columns = 0
        self._frame = Text()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @_harmless
    def start(self) -> None:
        """Show the table from now on, until ``stop`` or the end of the process."""
        if self._shown:
            return
        self._shown = True
        self._pace = Pace()
        atexit.register(self.stop)  # a hidden cursor would outlive us
        console = Console(stderr=True)
        if console.is_interactive and sys.stderr.isatty():
            self._live = Live(
                console=console,
                get_renderable=lambda: self._draw(console),
                refresh_per_second=FRAMES_PER_SECOND,
                vertical_overflow="crop",
                redirect_stdout=sys.stdout.isatty(),  # elsewhere it belongs to results
            )
            self._live.start(refresh=True)

    @_harmless
    def stop(self) -> None:
        """Leave the last table on the screen or in the log; trials that still run are stopped."""
        if not self._shown:
            return
        for trial in self._listed():
            if trial.state == "running":
                self._trials[trial.name] = replace(trial, state="stopped")
        if self._live:
            self._live.stop()
        else:
            say(self._render(LOG_COLUMNS, LOG_ROWS).plain)
        self._live, self._shown = None, False
        atexit.unregister(self.stop)

    @_harmless
    def resume(
        self,
        name: str,
        differences: Mapping[str, Any],
        state: State,
        epoch: int,
        val_accuracy: float | None,
        train_accuracy: float | None,
    ) -> None:
        """Note a trial as an earlier process left it: no rate is due to it."""
        best, train = _finite(val_accuracy), _finite(train_accuracy)
        self._trials[name] = _Trial(name, dict(differences), state, epoch, best, train)

    @_harmless
    def began(self, name: str, differences: Mapping[str, Any]) -> None:
        """Note that a trial runs; one that is known keeps what it has reached."""
        known = self._trials.get(name, _Trial(name, {}))
        self._trials[name] = replace(known, differences=dict(differences), state="running", reason="")
        self._log()

    @_harmless
    def epoch(self, name: str, epoch: int, val_accuracy: float | None, train_accuracy: float | None) -> None:
        """Note what a trial reached in an epoch. An epoch told again (a resumed fit does) is no progress."""
        trial = self._trials.get(name, _Trial(name, {}))
        self._epochs_here += max(0, epoch - trial.epoch)
        known = [value for value in (trial.best, _finite(val_accuracy)) if value is not None]
        train = trial.train if epoch < trial.epoch else _finite(train_accuracy)
        epoch = max(epoch, trial.epoch)
        self._trials[name] = replace(trial, epoch=epoch, best=max(known, default=None), train=train)
        self._log()

    @_harmless
    def ended(self, name: str, state: State, reason: str = "") -> None:
        """Note how a trial ended; a failure, with its reason, is also said at once."""
        trial = self._trials.get(name, _Trial(name, {}))
        self._ended_here += (state in ENDED) - (state in ENDED and trial.state in ENDED)
        reason = _one_line(reason)[:REASON_CHARACTERS]
        self._trials[name] = replace(trial, state=state, reason=reason)
        if state == "failed":
            say(f"{self.title}: {name} failed" + (f": {reason}" if reason else ""))
        self._log()

    def render(self, width: int, height: int | None = None) -> Text:
        """The table in ``width`` columns, and in no more than ``height`` lines.

        If not all trials have room, the best have, and behind them those that run, which may take up to half of it.
        """
        if height is None:
            return self._render(width, len(self._trials))
        room = height - len(self._head(width)) - 1
        lines = self._render(width, room if len(self._trials) <= room else max(1, room - 1)).split("\n")
        return Text("\n").join(lines[: max(1, height)])

    def _listed(self) -> list[_Trial]:
        return list(self._trials.values())

    def _log(self) -> None:
        """Without a terminal, write a line if one is due."""
        if self._shown and not self._live and self._pace.due():
            say(f"{self.title}: {', '.join([*self._counts(), *self._figures()])}")

    def _draw(self, console: Console) -> Text:
        """The next frame; the last one if there is no way to draw it. Called by rich, from a thread of its own."""
        with suppress(Exception):
            columns, lines = console.size
            if columns < self._columns:
                # a narrower terminal has wrapped the last frame, and where it begins nobody knows: go to a new page
                console.file.write("\n" * lines + "\x1b[H")
            self._columns = columns
            self._frame = self.render(columns, lines - 1)
        return self._frame

    def _counts(self) -> list[str]:
        counts = Counter[str](trial.state for trial in self._listed())
        done = sum(counts[state] for state in ENDED)
        shown = [state for state in ("running", "paused", *ENDED, "stopped") if counts[state]]
        return [f"{done}/{self.total} trials", *(f"{counts[state]} {state}" for state in shown)]

    def _figures(self) -> list[str]:
        elapsed, left = self._pace.elapsed, self._left()
        best = min(
            (trial for trial in self._listed() if trial.best is not None), key=lambda each: each.rank, default=None
        )
        return [
            *([f"{self._ended_here / elapsed * 60:.2f} trials/min"] if self._ended_here and elapsed > 0 else []),
            f"{clock(elapsed)} elapsed",
            *([f"{clock(left)} left"] if left is not None else []),
            *([f"best {_accuracy(best.best)} ({best.name})"] if best else []),
        ]

    def _left(self) -> float | None:
        """Seconds to the end, from the epochs a second of this process, of all trials together; None while it has none.

        What an unfinished trial lacks of its epochs is ahead; a trial that has not begun costs as many as those that
        have, on average, where one that is not finished counts as if it got all. So pruning shortens it only once it
        has happened: the figure is too high at first, and falls.
        """
        trials, elapsed = self._listed(), self._pace.elapsed
        if not self._epochs_here or elapsed <= 0:
            return None
        costs = [trial.epoch if trial.state in ENDED else max(self.epochs, trial.epoch) for trial in trials]
        ahead = sum(costs) - sum(trial.epoch for trial in trials)
        ahead_later = max(0, self.total - len(trials)) * sum(costs) / len(costs)
        return (ahead + ahead_later) * elapsed / self._epochs_here or None

    def _head(self, width: int) -> list[str]:
        lines = [f"{self.title}: {', '.join(self._counts())}", ", ".join(self._figures())]
        return [part for line in lines for part in textwrap.wrap(line, max(1, width))]

    def _render(self, width: int, rows: int) -> Text:
        """The head, and of the trials as many as there are ``rows`` for."""
        ranked = sorted(self._listed(), key=lambda trial: trial.rank)
        running = [trial for trial in ranked[rows:] if trial.state == "running"][: rows // 2] if rows > 0 else []
        shown = ranked[: max(0, rows - len(running))] + running
        names = {trial.name for trial in shown}
        hidden = Counter[str](trial.state for trial in ranked if trial.name not in names)

        gap = 2 if width >= 60 else 1
        epochs = max(len("epoch"), len(f"{self.epochs}/{self.epochs}"))
        fixed = STATE_COLUMNS + epochs + 2 * ACCURACY_COLUMNS + 4 * gap
        longest = max([FEWEST_COLUMNS, *map(len, names)])
        name = min(longest, max(FEWEST_COLUMNS, width // 4))
        rest = width - name - fixed - gap
        if rest < FEWEST_COLUMNS:
            name, rest = max(FEWEST_COLUMNS, min(longest, width - fixed)), 0
        widths = [name, STATE_COLUMNS, epochs, ACCURACY_COLUMNS, ACCURACY_COLUMNS]

        def line(cells: Iterable[str], last: str, style: str) -> Text:
            """Name and state to the left, figures to the right, and what room there is for the configuration."""
            aligned = [f"{cell:{'<' if i < 2 else '>'}{widths[i]}}" for i, cell in enumerate(cells)]
            text = Text((" " * gap).join([*aligned, *([last] if rest else [])]), style)
            text.truncate(max(1, width), overflow="ellipsis")
            text.rstrip()
            return text

        short = _short_names(key for trial in ranked for key in trial.differences)
        lines = [Text(each, "bold") for each in self._head(width)]
        if shown:
            lines.append(line(["trial", "state", "epoch", "val", "train"], "configuration", "underline"))
        for trial in shown:
            told = (
                trial.name if len(trial.name) <= name else "…" + trial.name[1 - name :]
            )  # ends differ, not beginnings
            figures = [f"{trial.epoch}/{self.epochs}", _accuracy(trial.best), _accuracy(trial.train)]
            what = " ".join(f"{short[key]}={_value(value)}" for key, value in trial.differences.items())
            last = f"{trial.reason}: {what}" if trial.reason else what
            lines.append(line([_one_line(told), trial.state, *figures], _one_line(last), STYLES.get(trial.state, "")))
        if hidden:
            states = ", ".join(f"{count} {state}" for state, count in hidden.most_common())
            more = Text(f"… and {hidden.total()} more: {states}", "dim")
            more.truncate(max(1, width), overflow="ellipsis")
            lines.append(more)
        return Text("\n", no_wrap=True, overflow="crop").join(lines)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _accuracy(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


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
