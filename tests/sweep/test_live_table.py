"""The table of a sweep: what it says, what it leaves out, and how it leaves a terminal."""

from __future__ import annotations

import fcntl
import io
import math
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest
from rich.console import Console

from mgc.sweep.live_table import Scoreboard

WIDE = 200


@pytest.fixture
def now(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("mgc.core.progress.time.monotonic", lambda: clock[0])
    return clock


def lines(board, width=WIDE, height=None):
    return board.render(width, height).plain.split("\n")


def names(board, width=WIDE, height=None):
    return [line.split()[0] for line in lines(board, width, height) if re.search(r" \d+/\d+ +[\d–]", line)]


def many(count, running=0):
    board = Scoreboard("search", total=count, epochs=12)
    for i in range(count):
        board.began(f"t{i:03d}", {"model.dropout": i / 1000})
        board.epoch(f"t{i:03d}", 3, i / 1000, 0.5)
        if i >= running:
            board.ended(f"t{i:03d}", "pruned")
    return board


class TestWhatItSays:
    def test_a_trial_is_a_row_of_state_epoch_accuracies_and_configuration(self):
        board = Scoreboard("search", total=4, epochs=12)
        board.began("a", {"model.norm": True, "model.dropout": 0.2345, "lr": 0.00213, "cut": None})
        board.epoch("a", 1, 0.5, 0.6)
        board.epoch("a", 2, 0.4, 0.75)
        assert lines(board)[-1].split() == (
            ["a", "running", "2/12", "0.500", "0.750", "norm=True", "dropout=0.234", "lr=0.00213", "cut=None"]
        )

    def test_best_first_then_those_without_an_accuracy_then_the_failed(self):
        board = Scoreboard("search", total=9, epochs=12)
        for name, accuracy in {"failed": 0.9, "low": 0.1, "none": None, "nan": math.nan, "high": 0.8}.items():
            board.began(name, {})
            board.epoch(name, 1, accuracy, accuracy)
        board.ended("failed", "failed")
        assert names(board) == ["high", "low", "none", "nan", "failed"]
        assert "best 0.800 (high)" in lines(board)[1]

    def test_last_parts_of_names_only_where_they_are_unambiguous(self):
        board = Scoreboard("search", total=2, epochs=12)
        board.began("a", {"model.dropout": 0.5, "model.norm": True})
        board.began("b", {"augment.dropout": 0.5})
        assert lines(board)[-2].endswith("model.dropout=0.5 norm=True")
        assert lines(board)[-1].endswith("augment.dropout=0.5")

    def test_counts_by_state_and_a_stopped_trial_is_not_done(self):
        board = Scoreboard("again: top 3 × 3 seeds", total=9, epochs=12)
        for i, state in enumerate(["kept", "kept", "pruned", "failed", "stopped"]):
            board.began(str(i), {})
            board.ended(str(i), state)
        board.began("runs", {})
        counts = "4/9 trials, 1 running, 2 kept, 1 pruned, 1 failed, 1 stopped"
        assert lines(board)[0] == f"again: top 3 × 3 seeds: {counts}"

    def test_without_trials_there_is_a_head(self, now):
        assert lines(Scoreboard("search", total=24, epochs=12)) == ["search: 0/24 trials", "0:00 elapsed"]

    def test_a_reason_is_one_line_and_cannot_touch_the_terminal(self, capsys):
        board = Scoreboard("search", total=1, epochs=12)
        board.began("a", {"lr": 1.0})
        board.ended("a", "failed", "no memory\n\x1b[2Jleft")
        assert capsys.readouterr().err == "search: a failed: no memory [2Jleft\n"
        assert lines(board)[-1].endswith("no memory [2Jleft: lr=1")


class TestTime:
    def test_rate_and_time_left_are_those_of_this_process(self, now):
        board = Scoreboard("search", total=8, epochs=10)
        for name in "abcd":
            board.resume(name, {}, "kept", 10, 0.5, 0.5)
        board.resume("e", {}, "stopped", 4, 0.5, 0.5)
        board.began("e", {})
        now[0] = 60.0
        for epoch in range(1, 11):  # the first four are told again
            board.epoch("e", epoch, 0.5, 0.5)
        board.ended("e", "kept")
        board.ended("e", "kept")
        # 6 epochs in a minute; 3 trials of 10 are ahead
        assert lines(board)[1] == "1.00 trials/min, 1:00 elapsed, 5:00 left, best 0.500 (a)"

    def test_trials_to_come_cost_what_trials_cost_and_running_ones_are_not_taken_for_short(self, now):
        board = Scoreboard("search", total=4, epochs=10)
        board.began("pruned", {})
        board.epoch("pruned", 2, 0.1, 0.1)
        board.ended("pruned", "pruned")
        board.began("runs", {})
        board.epoch("runs", 4, 0.2, 0.2)
        now[0] = 6.0
        assert "0:18 left" in lines(board)[1]  # 6 of its own and two trials of (2 + 10) / 2 to come, a second each

    def test_a_name_twice_is_one_trial_and_keeps_what_it_reached(self):
        board = Scoreboard("search", total=2, epochs=10)
        board.resume("a", {"lr": 1.0}, "stopped", 4, 0.5, 0.6)
        board.began("a", {"lr": 1.0})
        board.epoch("a", 1, 0.2, 0.1)
        assert lines(board)[-1].split() == ["a", "running", "4/10", "0.500", "0.600", "lr=1"]
        board.epoch("a", 5, 0.2, 0.7)
        assert lines(board)[-1].split()[2:5] == ["5/10", "0.500", "0.700"]


class TestRoom:
    @pytest.mark.parametrize("width", [1, 10, 25, 40, 59, 60, 80, 100])
    @pytest.mark.parametrize("height", [1, 3, 5, 12, 30])
    def test_never_wider_nor_higher_than_the_terminal(self, width, height):
        board = many(200, running=2)
        board.began("a name that nobody would give a trial, but somebody did", {"a": "long " * 99})
        drawn = lines(board, width, height)
        assert len(drawn) <= height
        assert max(map(len, drawn)) <= width

    def test_forty_columns_show_all_but_the_configuration(self):
        board = many(3)
        assert lines(board, 40)[-1] == "t000     pruned   3/12 0.000 0.500"
        assert lines(board, 50)[-1].endswith("0.500 dropout=0")

    def test_a_configuration_is_cut_to_the_width(self):
        board = Scoreboard("search", total=1, epochs=12)
        board.began("a", {"first": True, "second": True, "third": True})
        assert lines(board, 60)[-1] == "a         running   0/12      –      –  first=True second=T…"

    def test_a_name_is_cut_in_front_because_ends_differ(self):
        board = Scoreboard("search", total=1, epochs=12)
        board.began("run_trial_3f2a1c_00017", {"lr": 0.1})
        assert names(board, 60) == ["…l_3f2a1c_00017"]

    def test_the_best_have_room_and_the_rest_is_counted(self):
        board = many(20)
        assert names(board, height=8) == ["t019", "t018", "t017", "t016"]
        assert lines(board, height=8)[-1] == "… and 16 more: 16 pruned"
        assert len(names(board, height=23)) == 20
        assert "more" not in lines(board, height=23)[-1]

    def test_a_terminal_made_narrower_gets_a_new_page(self):
        board, console = many(20), Console(file=io.StringIO(), width=100, height=20)
        board._draw(console)
        console.width = 60
        drawn = board._draw(console).plain.split("\n")
        assert len(drawn) == 19
        assert max(map(len, drawn)) <= 60
        board._draw(console)
        assert console.file.getvalue() == "\n" * 20 + "\x1b[H"

    def test_those_that_run_have_room_behind_the_best(self):
        assert names(many(20, running=2), height=8) == ["t019", "t018", "t001", "t000"]
        assert names(many(20, running=9), height=8) == ["t019", "t018", "t008", "t007"]


class TestLog:
    def test_a_line_every_few_seconds_and_the_table_once(self, now, capsys):
        with Scoreboard("search", total=30, epochs=2) as board:
            for i in range(12):
                board.began(f"t{i:02d}", {"lr": i})
                now[0] += 1.0
                board.epoch(f"t{i:02d}", 1, i / 100, 0.5)
                board.ended(f"t{i:02d}", "pruned")
            board.began("last", {})
        said = capsys.readouterr().err.splitlines()
        heads = [line for line in said if line.startswith("search: ")]
        assert heads[0] == "search: 0/30 trials, 1 running, 0:00 elapsed"
        assert heads[1] == "search: 4/30 trials, 1 running, 4 pruned, 48.00 trials/min, 0:05 elapsed, 0:31 left, " + (
            "best 0.040 (t04)"
        )
        assert len(heads) == 4  # at 0, 5 and 10 seconds, and with the table
        table = said[said.index(heads[-1]) :]
        assert table[0] == "search: 12/30 trials, 12 pruned, 1 stopped"
        assert table[2].split() == ["trial", "state", "epoch", "val", "train", "configuration"]
        assert [row.split()[0] for row in table[3:13]] == [f"t{i:02d}" for i in range(11, 1, -1)]
        assert table[13:] == ["… and 3 more: 2 pruned, 1 stopped"]
        assert "\x1b" not in "".join(said)

    def test_stop_and_start_twice_are_once(self, capsys):
        board = Scoreboard("search", total=1, epochs=2)
        board.stop()
        assert capsys.readouterr().err == ""
        board.start()
        board.start()
        board.stop()
        board.stop()
        assert capsys.readouterr().err.count("search: 0/1 trials") == 1


def test_a_sweep_goes_on_without_its_table(monkeypatch, capsys):
    class Closed:
        def isatty(self):
            return False

        def write(self, _):
            raise OSError("no terminal")

    with monkeypatch.context() as closed:
        closed.setattr(sys, "stderr", Closed())
        with Scoreboard("search", total=1, epochs=2) as board:
            board.began("a", None)
            board.epoch("a", "one", "low", None)
            board.ended("a", "failed", "reason")
    assert "NoneType" in board.trouble
    board.stop()  # as at the end of the process: it could not before
    assert "1/1 trials, 1 failed" in capsys.readouterr().err


SWEEP = """
import sys, time
from mgc.core.progress import say
from mgc.sweep.live_table import Scoreboard

def sweep(board):
    for i in range(20):
        board.began(f"t{i:02d}", {"model.dropout": i / 100})
        board.epoch(f"t{i:02d}", 3, i / 100, 0.5)
        if i < 18:
            board.ended(f"t{i:02d}", "pruned")
        if i % 5 == 0:
            time.sleep(0.6)
            say(f"said at {i}")
            print(f"printed at {i}")

board = Scoreboard("search", total=24, epochs=12)
if sys.argv[1] == "exit":
    board.start()
    sweep(board)
    sys.exit(3)
with board:
    sweep(board)
    if sys.argv[1] == "raise":
        raise ValueError("on purpose")
    while sys.argv[1] == "wait":
        time.sleep(0.1)
"""


def on_screen(written, height):
    """What a terminal shows of it, scrolled-off lines included, and whether its cursor is there."""
    shown, row, column, cursor = [""], 0, 0, True
    for code, text in re.findall(r"\x1b\[([?\d;]*[A-Za-z])|([^\x1b]+)", written):
        if code in ("?25l", "?25h"):
            cursor = code == "?25h"
        elif code == "2K":
            shown[row] = ""
        elif code.endswith("A"):
            row = max(row - int(code[:-1]), len(shown) - height, 0)
        elif code:
            assert code.endswith("m"), code
        for char in text:
            if char == "\r":
                column = 0
            elif char == "\n":
                row += 1
                shown += [""] * (row == len(shown))
            else:
                shown[row] = shown[row].ljust(column)[:column] + char + shown[row][column + 1 :]
                column += 1
    return [line.rstrip() for line in shown], cursor


@pytest.mark.parametrize(("how", "rc"), [("end", 0), ("raise", 1), ("wait", -signal.SIGINT), ("exit", 3)])
def test_a_terminal_is_left_with_its_cursor_and_the_last_table(how, rc, tmp_path):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 15, 60, 0, 0))
    (tmp_path / "sweep.py").write_text(SWEEP)
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, tmp_path / "sweep.py", how],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment | {"TERM": "xterm-256color"},
    )
    os.close(theirs)
    written, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            written += os.read(ours, 1 << 16)
        except OSError:  # Linux says so that the other end is closed
            break
        if how == "wait" and b"t19" in written:
            process.send_signal(signal.SIGINT)
            how = "interrupted"
    os.close(ours)
    assert process.wait(60) == rc, written.decode()

    shown, cursor = on_screen(written.decode(), height=15)
    assert cursor
    heads = [i for i, line in enumerate(shown) if line.startswith("search: ")]
    assert len(heads) == 1  # drawn again and again, it is there once
    table = shown[heads[0] :]
    assert table[0] == "search: 18/24 trials, 18 pruned, 2 stopped"
    assert table[3] == "t19       stopped   3/12  0.190  0.500  dropout=0.19"
    assert table[13] == "… and 10 more: 10 pruned"
    above = [line for line in shown[: heads[0]] if line]
    assert above == [f"{verb} at {i}" for i in range(0, 20, 5) for verb in ("said", "printed")]
    below = [line for line in table[14:] if line]
    assert bool(below) == (rc in (1, -signal.SIGINT))
    assert not below or below[0].startswith("Traceback")
