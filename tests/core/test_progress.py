"""Lines for people: their figures, and what becomes of them when nobody reads any more."""

import os
import subprocess
import sys

import pytest

from mgc.core.progress import LOG_EVERY_SECONDS, Pace, Progress, clock


def test_what_was_done_before_counts_for_the_total_and_not_for_the_rate(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("mgc.core.progress.time.monotonic", lambda: clock[0])
    progress = Progress("train", 40, "epochs")
    progress.resume(30)
    clock[0] = 10.0
    progress.advance(5, "loss 1")
    assert capsys.readouterr().err == "train: 35/40 epochs, 0.50/s, 0:10 elapsed, 0:10 left  loss 1\n"


def test_a_log_gets_a_line_every_few_seconds_and_always_the_last(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("mgc.core.progress.time.monotonic", lambda: now[0])
    progress = Progress("verify", 100, "shards")
    for _ in range(100):
        now[0] += LOG_EVERY_SECONDS / 10
        progress.advance()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11
    assert lines[0].startswith("verify: 1/100 shards, ")
    assert lines[-1].startswith("verify: 100/100 shards, ")
    assert "left" not in lines[-1]


def test_a_line_may_be_had_at_once(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("mgc.core.progress.time.monotonic", lambda: now[0])
    pace = Pace()
    assert [pace.due(), pace.due(), pace.due(now=True), pace.due()] == [True, False, True, False]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3600, "1:00:00")])
def test_seconds_are_shown_as_a_clock_does(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize("name", ["say", "show"])
def test_a_reader_that_has_gone_ends_nothing(name):
    """As in ``mgc … | head``: the work goes on, and Python has nothing to complain about at its exit."""
    code = f"""
import os, sys
from mgc.core import progress
from mgc.core.progress import Progress
for _ in range(3):
    progress.{name}("a line " * 20_000)
    Progress("train", 1, "epochs").advance()
os.write(int(sys.argv[1]), b"ended")
"""
    read, write = os.pipe()
    told, tell = os.pipe()
    os.close(read)
    stream = {"say": "stderr", "show": "stdout"}[name]
    other = {"say": "stdout", "show": "stderr"}[name]
    command = [sys.executable, "-c", code, str(tell)]
    done = subprocess.run(command, **{stream: write, other: subprocess.PIPE}, pass_fds=[tell], check=False)
    for handle in (write, tell):
        os.close(handle)
    with open(told, "rb") as ended:
        assert ended.read() == b"ended"
    assert done.returncode == 0
    complaint = done.stderr if name == "show" else done.stdout
    assert b"BrokenPipe" not in complaint
