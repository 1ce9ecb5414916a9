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

from mgc.sweep.live_table import LiveTable

WIDE = 200


@pytest.fixture
def now(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("mgc.core.progress.time.monotonic", lambda: clock[0])
    return clock


def lines(table, width=WIDE, rows=1000):
    return table.text(width, rows).split("\n")


def names(table, rows=1000):
    return [line.split()[0] for line in lines(table, WIDE, rows) if re.search(r" \d+/\d+ +[\d–]", line)]


def run(table, name, accuracy=None, epoch=3, train=0.5, **differences):
    differences = {name.replace("__", "."): value for name, value in differences.items()}
    table.update(name, differences=differences, state="running")
    table.update(name, epoch=epoch, val_accuracy=accuracy, train_accuracy=train)


def many(count, running=0):
    table = LiveTable("search", total=count, epochs=12)
    for i in range(count):
        run(table, f"t{i:03d}", i / 1000, model__dropout=i / 1000)
        if i >= running:
            table.update(f"t{i:03d}", state="pruned")
    return table


class TestContent:
    def test_a_trial_is_a_row_of_state_epoch_accuracies_and_configuration(self):
        table = LiveTable("search", total=4, epochs=12)
        run(table, "a", 0.5, 1, 0.6, model__norm=True, model__dropout=0.2345, lr=0.00213, cut=None)
        table.update("a", epoch=2, val_accuracy=0.4, train_accuracy=0.75)
        assert lines(table)[-1].split() == (
            ["a", "running", "2/12", "0.500", "0.750", "norm=True", "dropout=0.234", "lr=0.00213", "cut=None"]
        )

    def test_best_first_then_those_without_an_accuracy_then_the_failed(self):
        table = LiveTable("search", total=9, epochs=12)
        for name, accuracy in {"failed": 0.9, "low": 0.1, "none": None, "nan": math.nan, "high": 0.8}.items():
            run(table, name, accuracy, 1, accuracy)
        table.update("failed", state="failed")
        assert names(table) == ["high", "low", "none", "nan", "failed"]
        assert "best 0.800 (high)" in lines(table)[1]
        assert lines(table)[-2].split() == ["nan", "running", "1/12", "–", "–"]

    def test_last_parts_of_names_only_where_they_are_unambiguous(self):
        table = LiveTable("search", total=2, epochs=12)
        run(table, "a", model__dropout=0.5, model__norm=True)
        run(table, "b", augment__dropout=0.5)
        assert lines(table)[-2].endswith("model.dropout=0.5 norm=True")
        assert lines(table)[-1].endswith("augment.dropout=0.5")

    def test_counts_by_state_and_a_stopped_trial_is_not_done(self):
        table = LiveTable("retrain: top 3 × 3 fresh seeds", total=9, epochs=12)
        for i, state in enumerate(["kept", "kept", "pruned", "failed", "stopped"]):
            table.update(str(i), state=state)
        table.update("runs", state="running")
        counts = "4/9 trials, 1 running, 2 kept, 1 pruned, 1 failed, 1 stopped"
        assert lines(table)[0] == f"retrain: top 3 × 3 fresh seeds: {counts}"

    def test_without_trials_there_are_only_the_counts(self, now):
        assert lines(LiveTable("search", total=24, epochs=12)) == ["search: 0/24 trials", "0:00 elapsed"]

    def test_a_reason_is_one_line_and_cannot_touch_the_terminal(self, capsys):
        table = LiveTable("search", total=1, epochs=12)
        run(table, "a", lr=1.0)
        table.update("a", state="failed", reason="no memory\n\x1b[2Jleft")
        assert capsys.readouterr().err == "search: a failed: no memory [2Jleft\n"
        assert lines(table)[-1].endswith("no memory [2Jleft: lr=1")

    def test_a_name_with_brackets_is_no_markup(self):
        table = LiveTable("search", total=1, epochs=12)
        run(table, "[red]a[/red]", channels=[4, 8])
        assert lines(table)[-1].startswith("[red]a[/red]")
        assert lines(table)[-1].endswith("channels=[4, 8]")


class TestTime:
    def test_rate_and_time_left_are_those_of_this_process(self, now):
        table = LiveTable("search", total=8, epochs=10)
        for name in "abcd":
            table.update(name, state="kept", epoch=10, val_accuracy=0.5, earlier=True)
        table.update("e", state="stopped", epoch=4, val_accuracy=0.5, earlier=True)
        table.update("e", state="running")
        now[0] = 60.0
        for epoch in range(1, 11):  # the first four are reported again
            table.update("e", epoch=epoch, val_accuracy=0.5)
        table.update("e", state="kept")
        table.update("e", state="kept")
        # 6 epochs in a minute; 3 trials of 10 are ahead
        assert lines(table)[1] == "1.00 trials/min, 1:00 elapsed, 5:00 left, best 0.500 (a)"

    def test_trials_to_come_cost_what_trials_cost_and_running_ones_are_not_taken_for_short(self, now):
        table = LiveTable("search", total=4, epochs=10)
        run(table, "pruned", 0.1, 2)
        table.update("pruned", state="pruned")
        run(table, "runs", 0.2, 4)
        now[0] = 6.0
        assert "0:18 left" in lines(table)[1]  # 6 of its own and two trials of (2 + 10) / 2 to come, a second each

    def test_a_trial_that_begins_again_keeps_what_it_has_reached(self):
        table = LiveTable("search", total=2, epochs=10)
        table.update("a", state="stopped", epoch=4, val_accuracy=0.5, train_accuracy=0.6, earlier=True)
        run(table, "a", 0.2, 1, 0.1, lr=1.0)
        assert lines(table)[-1].split() == ["a", "running", "4/10", "0.500", "0.600", "lr=1"]
        run(table, "a", 0.2, 5, 0.7)
        assert lines(table)[-1].split()[2:5] == ["5/10", "0.500", "0.700"]


class TestRoom:
    @pytest.mark.parametrize("width", [40, 60, 80, 100])
    @pytest.mark.parametrize("height", [6, 8, 12, 30])
    def test_never_wider_nor_higher_than_the_terminal(self, width, height):
        table, console = many(200, running=2), Console(file=io.StringIO(), width=width, height=height)
        run(table, "a name that nobody would give", 0.999, a="long " * 99)
        console.print(table._draw(console))
        drawn = console.file.getvalue().splitlines()
        assert len(drawn) <= height - 1  # the cursor has a line
        assert max(map(len, drawn)) <= width
        assert "… and" in drawn[-1]

    def test_forty_columns_show_all_but_the_configuration(self):
        assert lines(many(3), 40)[-1].startswith("t000   pruned   3/12  0.000  0.500")

    def test_a_configuration_is_cut_to_the_width(self):
        table = LiveTable("search", total=1, epochs=12)
        run(table, "a", first=True, second=True, third=True)
        assert lines(table, 60)[-1] == "a      running   3/12    –  0.500  first=True second=True t…"

    def test_the_best_have_room_and_the_rest_is_counted(self):
        table = many(20)
        assert names(table, 4) == ["t019", "t018", "t017", "t016"]
        assert lines(table, rows=4)[-1] == "… and 16 more: 16 pruned"
        assert len(names(table, 20)) == 20
        assert "more" not in lines(table, rows=20)[-1]

    def test_those_that_run_have_room_behind_the_best(self):
        assert names(many(20, running=2), 4) == ["t019", "t018", "t001", "t000"]
        assert names(many(20, running=9), 4) == ["t019", "t018", "t008", "t007"]

    def test_a_terminal_made_narrower_gets_a_new_page(self):
        table, console = many(20), Console(file=io.StringIO(), width=100, height=20)
        table._draw(console)
        console.width = 60
        table._draw(console)
        table._draw(console)
        assert console.file.getvalue() == "\n" * 20 + "\x1b[H"


class TestLog:
    def test_a_line_every_few_seconds_and_the_table_once(self, now, capsys):
        table = LiveTable("search", total=30, epochs=2)
        table.start()
        for i in range(12):
            table.update(f"t{i:02d}", state="running", differences={"lr": i})
            now[0] += 1.0
            table.update(f"t{i:02d}", epoch=1, val_accuracy=i / 100, train_accuracy=0.5)
            table.update(f"t{i:02d}", state="pruned")
        table.update("last", state="running")
        table.stop()
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
        table = LiveTable("search", total=1, epochs=2)
        table.stop()
        assert capsys.readouterr().err == ""
        table.start()
        table.start()
        table.stop()
        table.stop()
        assert capsys.readouterr().err.count("search: 0/1 trials") == 1


def test_a_sweep_goes_on_without_its_table(monkeypatch):
    class Closed:
        def isatty(self):
            return False

        def write(self, _):
            raise OSError("no terminal")

    table = LiveTable("search", total=1, epochs=2)
    with monkeypatch.context() as closed:
        closed.setattr(sys, "stderr", Closed())
        table.start()
        table.update("a", differences=3, epoch="one")
        table.update("a", epoch=1, val_accuracy="low")
        table.update("a", state="failed", reason="reason")
        table.stop()
    assert table.trouble.startswith("TypeError")
    assert lines(table)[0] == "search: 1/1 trials, 1 failed"


SWEEP = """
import sys, time
from mgc.core.progress import say
from mgc.sweep.live_table import LiveTable

def sweep(table):
    for i in range(20):
        table.update(f"t{i:02d}", state="running", differences={"model.dropout": i / 100})
        table.update(f"t{i:02d}", epoch=3, val_accuracy=i / 100, train_accuracy=0.5)
        if i < 18:
            table.update(f"t{i:02d}", state="pruned")
        if i % 5 == 0:
            time.sleep(0.6)
            say(f"said at {i}")
            print(f"printed at {i}")

table = LiveTable("search", total=24, epochs=12)
table.start()
if sys.argv[1] == "exit":
    sweep(table)
    sys.exit(3)
try:
    sweep(table)
    if sys.argv[1] == "raise":
        raise ValueError("on purpose")
    while sys.argv[1] == "wait":
        time.sleep(0.1)
finally:
    table.stop()
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
    assert table[3] == "t19    stopped   3/12  0.190  0.500  dropout=0.19"
    assert table[13] == "… and 10 more: 10 pruned"
    above = [line for line in shown[: heads[0]] if line]
    assert above == [f"{verb} at {i}" for i in range(0, 20, 5) for verb in ("said", "printed")]
    below = [line for line in table[14:] if line]
    assert bool(below) == (rc in (1, -signal.SIGINT))
    assert not below or below[0].startswith("Traceback")
