"""A decoder's prints do not reach standard output, and what comes before and after does."""

import subprocess
import sys

PROGRAM = """
import ctypes, os
from mgc.audio.quiet import quiet
libc = ctypes.CDLL(None)
libc.puts(b"before")
with quiet():
    libc.puts(b"Error 1 : FF")
    os.write(1, b"Error A : FF")
    {inside}
print("after")
"""


def run(inside="", **options):
    code = PROGRAM.replace("{inside}", inside)
    return subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False, **options)


def test_what_c_prints_inside_is_thrown_away_and_nothing_else():
    assert run().stdout == "before\nafter\n"


def test_an_error_inside_gives_standard_output_back():
    done = run("try:\n        with quiet(): 1 / 0\n    except ZeroDivisionError: pass")
    assert (done.stdout, done.returncode) == ("before\nafter\n", 0)


def test_a_closed_standard_output_is_no_error():
    program = "import os; os.close(1)\nfrom mgc.audio.quiet import quiet\nwith quiet(): pass"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
