"""Child processes: whatever an item does to its process costs that item only, and nothing of the process is left."""

from __future__ import annotations

import array
import ctypes
import fcntl
import gc
import os
import pickle
import resource
import select
import signal
import stat
import subprocess
import sys
import termios
import threading
import time

import numpy as np
import pytest

from mgc.core.errors import ClipError, Reason
from mgc.features.child_process import Lost, each

LINUX = sys.platform == "linux"
SEGFAULT = Lost("crashed", "killed by SIGSEGV")
OUT_OF_MEMORY = Lost("crashed", "out of memory")
NO_ANSWER = Lost("timed_out", "no answer in 1 s")
MB = 1 << 20


def pipes():
    """Descriptors of this process that are pipes."""
    found = set()
    for name in os.listdir("/dev/fd"):
        try:
            if stat.S_ISFIFO(os.fstat(int(name)).st_mode):
                found.add(int(name))
        except OSError:
            pass  # the one that lists them
    return found


def children():
    """Processes whose parent this one is, zombies too."""
    ps = subprocess.Popen(["ps", "-A", "-o", "pid=,ppid="], stdout=subprocess.PIPE, text=True)
    rows = [line.split() for line in ps.communicate()[0].splitlines()]
    return {int(pid) for pid, parent in rows if int(parent) == os.getpid()} - {ps.pid}


@pytest.fixture(autouse=True)
def inherited():
    """The pipes that were open before the test; after it there is none more, and no child, dead or alive."""
    before, born = pipes(), children()
    yield before
    assert pipes() == before
    assert children() <= born


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def waiting(pipe):
    """Bytes in a pipe that nobody has read yet."""
    count = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]


def hung_up(inherited):
    """Wait for the child to close the one pipe that is new; nothing is read."""
    (pipe,) = pipes() - inherited
    poll = select.poll()
    poll.register(pipe, 0)
    return bool(poll.poll(20_000))


def segfault():
    ctypes.string_at(0)


def endless():
    while True:
        pass


def endless_deaf():
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    endless()


def endless_in_c():
    ctypes.PyDLL(None).pause()  # with the GIL, as a decoder may


def run(code, **options):
    line = [
        sys.executable,
        "-c",
        "import atexit, ctypes, os, sys\nfrom mgc.features.child_process import each\n" + code,
    ]
    return subprocess.run(line, capture_output=True, text=True, timeout=30, check=True, **options)


# Results


def test_results_are_the_functions_own_and_in_order():
    def row(i):
        return {"track_id": i, "logmel": os.urandom(1) * 330_000, "seconds": i / 3, "pid": os.getpid()}

    rows = list(each(row, range(64), seconds=60))
    assert [(r["track_id"], r["seconds"]) for r in rows] == [(i, i / 3) for i in range(64)]
    assert all(r["logmel"] == r["logmel"][:1] * 330_000 for r in rows)
    assert len({r["pid"] for r in rows} - {os.getpid()}) == 1, "one child for all"


def test_no_items_no_results():
    assert list(each(abs, [], seconds=1)) == []


def test_a_result_may_be_large():
    assert list(each(lambda i: bytes([i]) * 50_000_000, [1, 2], seconds=60)) == [b"\1" * 50_000_000, b"\2" * 50_000_000]


def test_functions_and_items_need_no_pickling():
    assert list(each(lambda call: call(), [lambda: 1, lambda: 2], seconds=60)) == [1, 2]


# Crashes


@pytest.mark.parametrize("bad", [{0}, {3}, {6}, {2, 3}, {0, 1, 5, 6}, set(range(7))], ids=str)
def test_a_crash_costs_exactly_its_item(bad):
    found = list(each(lambda i: segfault() if i in bad else i, range(7), seconds=60))
    assert found == [SEGFAULT if i in bad else i for i in range(7)]


def die(number):
    os.kill(os.getpid(), number)
    endless()


@pytest.mark.parametrize(
    ("end", "detail"),
    [
        (lambda: os._exit(3), "exit code 3"),
        (lambda: os._exit(0), "exit code 0"),
        (os.abort, "killed by SIGABRT"),
        (lambda: die(signal.SIGKILL), "killed by SIGKILL"),
        (lambda: die(signal.SIGTERM), "killed by SIGTERM"),
        pytest.param(
            lambda: die(signal.SIGRTMIN + 5),
            f"killed by signal {getattr(signal, 'SIGRTMIN', 0) + 5}",
            marks=pytest.mark.skipif(not LINUX, reason="no real-time signals"),
        ),
    ],
)
def test_what_is_lost_says_how(end, detail):
    found = list(each(lambda i: end() if i == 1 else i, range(3), seconds=60))
    assert found == [0, Lost("crashed", detail), 2]


@pytest.mark.parametrize(
    ("bad", "then", "lost"),
    [(0, segfault, SEGFAULT), (1, segfault, SEGFAULT), (2, segfault, SEGFAULT), (1, endless_deaf, NO_ANSWER)],
)
def test_half_an_answer_is_none(bad, then, lost, inherited):
    def send_half(i):
        if i == bad:
            (writer,) = pipes() - inherited
            os.write(writer, (1000).to_bytes(8, "little") + b"half")
            then()
        return i

    found = list(each(send_half, range(3), seconds=1 if lost is NO_ANSWER else 60))
    assert found == [lost if i == bad else i for i in range(3)]


def test_a_child_that_closes_its_pipe_loses_its_item(inherited):
    def close(i):
        if i == 1:
            (writer,) = pipes() - inherited
            os.close(writer)
            endless_deaf()
        return i

    zero, one, two = each(close, range(3), seconds=60)
    assert (zero, one.how, two) == (0, "crashed", 2)


def test_a_crash_that_an_earlier_item_prepared_costs_nobody():
    heap = []

    def work(i):
        if i == 3:
            heap.append("corrupt")
        if i == 4 and heap:
            segfault()
        return i

    assert list(each(work, range(7), seconds=60)) == list(range(7))


def test_a_child_killed_from_outside_in_the_middle_of_an_answer_costs_nothing(inherited):
    answers = each(lambda i: (os.getpid(), bytes(20_000_000 * i)), range(3), seconds=60)
    pid, _ = next(answers)
    (pipe,) = pipes() - inherited
    wait_for(lambda: waiting(pipe) > 8)  # no pipe holds 20 MB: it waits for us
    os.kill(pid, signal.SIGKILL)
    (one, first), (two, second) = answers
    assert (len(first), len(second)) == (20_000_000, 40_000_000)
    assert one == two != pid


# Hangs


def test_a_hang_costs_exactly_its_item():
    found = list(each(lambda call: call(), [endless, endless_deaf, int, endless_in_c, int], seconds=1))
    assert found == [NO_ANSWER, NO_ANSWER, 0, NO_ANSWER, 0]


def test_a_child_stopped_in_the_middle_of_an_answer_is_a_hang(inherited):
    answers = each(lambda i: (os.getpid(), bytes(20_000_000 * (i == 1))), range(3), seconds=1)
    pid, _ = next(answers)
    (pipe,) = pipes() - inherited
    wait_for(lambda: waiting(pipe) > 8)
    os.kill(pid, signal.SIGSTOP)
    assert next(answers) == NO_ANSWER
    after, _ = next(answers)
    assert after != pid


@pytest.mark.parametrize("size", [10, 3_000_000], ids=["fits the pipe", "does not fit"])
def test_a_slow_consumer_is_not_a_slow_child(size):
    answers = each(lambda i: bytes(size), range(3), seconds=1)
    next(answers)
    time.sleep(1.3)  # what is tested: longer than `seconds`
    assert list(answers) == [bytes(size)] * 2


def test_a_hang_ends_while_the_consumer_is_away(inherited):
    answers = each(lambda i: endless() if i == 1 else i, range(3), seconds=1)
    next(answers)
    assert hung_up(inherited), "the child's own alarm ends it: nobody waits for it here, nor for an orphan"
    assert list(answers) == [NO_ANSWER, 2]


# Memory


memory_is_limited = pytest.mark.skipif(not LINUX, reason="no /proc/self/statm")


@memory_is_limited
def test_a_memory_hog_costs_its_item():
    def hog(i):
        return np.ones(10_000_000_000 if i == 1 else 1000, np.uint8).sum()

    assert list(each(hog, range(3), seconds=60, memory=256 * MB)) == [1000, OUT_OF_MEMORY, 1000]


@memory_is_limited
def test_a_result_too_large_to_pickle_costs_its_item():
    found = list(each(lambda i: bytes(200 * MB if i == 1 else 1), range(3), seconds=60, memory=256 * MB))
    assert found == [b"\0", OUT_OF_MEMORY, b"\0"]


@memory_is_limited
def test_what_items_leak_together_costs_nobody():
    leak = []

    def work(i):
        leak.append(np.empty(100 * MB, np.uint8))
        return i

    assert list(each(work, range(5), seconds=60, memory=256 * MB)) == list(range(5))


def test_memory_is_counted_from_the_fork():
    held = np.zeros(300 * MB, np.uint8)
    assert list(each(lambda i: int(held[i]), range(2), seconds=60, memory=128 * MB)) == [0, 0]


# Errors


class BadlyMadeError(Exception):
    """Can be pickled, and not be unpickled."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class Unloadable:
    def __reduce__(self):
        return int, ("not a number",)


def throw(error):
    raise error


@pytest.mark.parametrize(
    "error", [ValueError("of item 2"), KeyError("k"), SystemExit(4), ClipError(Reason.EMPTY, "0 bytes")], ids=repr
)
def test_an_exception_is_raised_here_as_it_was_there(error):
    answers = each(lambda i: throw(error) if i == 2 else i, range(4), seconds=60)
    assert [next(answers), next(answers)] == [0, 1]
    with pytest.raises(type(error)) as caught:
        next(answers)
    assert (caught.value.args, caught.value is error) == (error.args, False)
    assert "in throw\n    raise error" in caught.value.__notes__[0], "the child's traceback"
    assert list(answers) == [], "a bug ends the work"


def test_after_an_exception_nothing_is_run(tmp_path, inherited):
    def work(i):
        (tmp_path / str(i)).touch()
        return throw(ValueError("a bug")) if i == 1 else i

    answers = each(work, range(9), seconds=60)
    next(answers)
    assert hung_up(inherited)
    with pytest.raises(ValueError, match="a bug"):
        next(answers)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def test_an_exception_that_cannot_travel_is_told():
    with pytest.raises(RuntimeError, match="BadlyMadeError: one and two"):
        list(each(lambda _: throw(BadlyMadeError("one", "two")), [1], seconds=60))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (threading.Lock(), "cannot pickle '_thread.lock' object"),
        (lambda: 1, "Can't pickle"),
        (Unloadable(), "a result cannot be unpickled: ValueError"),
    ],
)
def test_a_result_that_cannot_travel_is_an_error(result, message):
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError), match=message):
        list(each(lambda _: result, [1], seconds=60))


# Nothing is left (the fixture looks for processes and pipes after every test)


def test_an_unused_generator_starts_nothing(inherited):
    answers = each(abs, [1], seconds=60)
    assert pipes() == inherited
    answers.close()


def test_closing_early_ends_a_child_that_is_at_work():
    answers = each(lambda i: endless() if i else os.getpid(), range(3), seconds=60)
    pid = next(answers)
    answers.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_error_of_the_consumer_ends_the_child():
    def consume():
        for answer in each(lambda i: i, range(3), seconds=60):
            raise LookupError(answer)

    with pytest.raises(LookupError):
        consume()


def test_an_interrupt_ends_the_child():
    def interrupt(_):
        while True:  # Python loses one that comes while hooks of the fork run
            time.sleep(0.3)
            os.kill(os.getppid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(each(interrupt, [1], seconds=20))
    finally:
        signal.signal(signal.SIGINT, before)


def test_signals_do_not_cut_the_wait_short():
    before = signal.signal(signal.SIGUSR1, lambda *_: None)

    def nag(i):
        for _ in range(50):
            os.kill(os.getppid(), signal.SIGUSR1)
        return bytes(1_000_000)

    try:
        assert [len(answer) for answer in each(nag, range(5), seconds=60)] == [1_000_000] * 5
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.slow
def test_a_child_dies_with_its_parent():
    seconds = 600 if LINUX else 3  # elsewhere by its alarm
    code = f"""
from mgc.features.child_process import each
def work(i):
    print("working", flush=True)
    while True:
        pass
list(each(work, [1], seconds={seconds}))
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout.readline() == b"working\n"
        parent.kill()
        assert select.select([parent.stdout], [], [], 20)[0], "the child still holds their standard output"
        assert parent.stdout.read() == b""


# What a child has of its parent


def test_a_child_leaves_its_parents_exit_and_output_alone():
    code = """
atexit.register(print, "at exit")
print("buffered", end=" ")
def work(i):
    if i == 1:
        ctypes.string_at(0)
    return i
print([type(answer).__name__ for answer in each(work, range(3), seconds=60)])
"""
    done = run(code, env=os.environ | {"PYTHONFAULTHANDLER": "1"})
    assert done.stdout == "buffered ['int', 'Lost', 'int']\nat exit\n"
    assert done.stderr == "", "not even what a crash says to faulthandler"


def test_signal_handlers_stay_behind(tmp_path):
    before = signal.signal(signal.SIGTERM, lambda *_: (tmp_path / "handled").touch())
    try:
        assert list(each(lambda _: die(signal.SIGTERM), [1], seconds=60)) == [Lost("crashed", "killed by SIGTERM")]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not (tmp_path / "handled").exists()


def test_signals_that_the_parent_ignores_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert list(each(lambda i: os.kill(os.getpid(), signal.SIGHUP), [1], seconds=60)) == [None]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_crash_dumps_no_core():
    assert list(each(lambda _: resource.getrlimit(resource.RLIMIT_CORE), [1], seconds=60)) == [(0, 0)]


def test_the_parents_garbage_is_the_parents(tmp_path):
    class Cycle:
        def __init__(self):
            self.me = self

        def __del__(self):
            (tmp_path / str(os.getpid())).touch()

    gc.disable()
    try:
        Cycle()
        assert list(each(lambda _: gc.collect() * 0, [1], seconds=60)) == [0]
    finally:
        gc.enable()
    gc.collect()
    assert [path.name for path in tmp_path.iterdir()] == [str(os.getpid())]


def test_the_child_holds_no_end_to_read_from(inherited):
    assert list(each(lambda _: len(pipes() - inherited), [1], seconds=60)) == [1]


def test_generators_do_not_disturb_each_other():
    held = [each(lambda _: (os.getpid(), bytes(3_000_000)), range(3), seconds=60)]  # more than a pipe holds: it waits
    first = next(held[0])

    def drop(i):
        held.clear()  # the child's copy, whose end must not be that of the other child
        return segfault() if i == 1 else i

    assert list(each(drop, range(3), seconds=60)) == [0, SEGFAULT, 2]
    assert list(held[0]) == [first, first]


def test_it_nests():
    def work(i):
        return list(each(lambda j: segfault() if j == 1 else i * j, range(3), seconds=60))

    assert list(each(work, [1, 2], seconds=60)) == [[0, SEGFAULT, 2], [0, SEGFAULT, 4]]


def test_it_works_in_threads_beside_others():
    end = threading.Event()
    busy = [threading.Thread(target=lambda: [sum(range(1000)) for _ in iter(end.is_set, True)]) for _ in range(2)]
    found = {}

    def use(name):
        found[name] = list(each(lambda i: segfault() if i == name else i, range(6), seconds=60))

    users = [threading.Thread(target=use, args=(name,)) for name in range(4)]
    for thread in busy + users:
        thread.start()
    for thread in users:
        thread.join()
    end.set()
    for thread in busy:
        thread.join()
    assert found == {name: [SEGFAULT if i == name else i for i in range(6)] for name in range(4)}


def test_a_crash_is_seen_while_another_threads_child_lives():
    """The other is forked between this one's pipe and fork, if it can be: then it would have this one's pipe open."""
    code = """
import threading, time
both = threading.Barrier(2)
def meet():
    try:
        both.wait(0.5)
        time.sleep(0.2 * (threading.current_thread() is threading.main_thread()))  # the other forks first
    except threading.BrokenBarrierError:
        pass
os.register_at_fork(before=meet)
reader, writer = os.pipe()
other = threading.Thread(target=lambda: list(each(lambda _: os.read(reader, 1), [1], seconds=20)))
other.start()
print(*each(ctypes.string_at, [0], seconds=3))
os.write(writer, b"!")
other.join()
"""
    assert run(code).stdout == f"{SEGFAULT}\n"


def test_openblas_threads_of_the_parent_do_no_harm():
    generator = np.random.default_rng(0)
    A, B = generator.normal(size=(2, 700, 700))
    expected = A @ B  # starts the library's threads, which a fork does not copy
    for product in each(lambda _: A @ B, range(3), seconds=30, memory=1024 * MB):
        np.testing.assert_allclose(product, expected)
    np.testing.assert_allclose(A @ B, expected)


@pytest.mark.parametrize("seconds", [float("inf"), 1e12])
def test_a_time_out_longer_than_the_kernel_knows_is_no_error(seconds):
    assert list(each(abs, [-1, 2], seconds=seconds)) == [1, 2]
