"""What is asked of a cluster is waited for, said, and given up; a folder is one that all nodes see."""

import os
import signal
import time
from functools import partial

import pytest

from mgc.core.cluster import Demand, ask_nodes, check_shared
from mgc.core.errors import InputError
from mgc.core.storage import Folder


def test_what_there_is_room_for_is_not_waited_for(ray_session, capsys):
    Demand("workers", 2, {"CPU": 1}, 0).wait()
    Demand("trials", 1, {"CPU": 0.5, "GPU": 0}, 0).wait()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("count", "each", "words"),
    [
        (3, {"CPU": 1}, "3 workers × 1 CPU did not come in this time; the cluster has 2 CPU; add nodes"),
        (1, {"CPU": 1, "GPU": 1}, "1 worker × 1 CPU, 1 GPU did not come in this time; the cluster has 2 CPU and 0 GPU"),
    ],
)
def test_what_there_is_no_room_for_is_waited_for_and_then_named(ray_session, count, each, words):
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        Demand("workers", count, each, 0.05).wait()
    assert time.monotonic() - began >= 3
    assert caught.value.for_command_line().startswith(f"--wait 0.05: {words}")


def test_waiting_is_said_after_five_seconds(ray_session, capsys):
    with pytest.raises(InputError):
        Demand("workers", 3, {"CPU": 1}, 0.12).wait()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("3 workers × 1 CPU wait; the cluster has 2 CPU (for 0:0")


def test_room_that_others_hold_is_waited_for(ray_session):
    @ray_session.remote
    class Holder:
        def there(self):
            return True

    holder = Holder.options(num_cpus=2).remote()
    assert ray_session.get(holder.there.remote())
    with pytest.raises(InputError, match="did not come in this time"):
        Demand("workers", 1, {"CPU": 1}, 0.03).wait()
    ray_session.kill(holder)
    Demand("workers", 2, {"CPU": 1}, 1).wait()


@pytest.fixture
def on_ctrl_c():
    """Sets what SIGINT does in this process, for one test."""
    before = signal.getsignal(signal.SIGINT)
    yield partial(signal.signal, signal.SIGINT)
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_a_cluster_that_has_become_too_small_ends_the_work(ray_session, on_ctrl_c, handler):
    on_ctrl_c(handler)  # it is ignored by what a script starts with "&"
    with (
        pytest.raises(InputError, match="3 workers × 1 CPU did not come in this time"),
        Demand("workers", 3, {"CPU": 1}, 0.05).watched(),
    ):
        time.sleep(60)
    with Demand("workers", 2, {"CPU": 1}, 0.05).watched():
        time.sleep(6)
    with pytest.raises(KeyboardInterrupt), Demand("workers", 2, {"CPU": 1}, 0.05).watched():
        raise KeyboardInterrupt  # the user's own stays what it is
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_handler_that_a_library_leaves_behind_does_not_take_later_ctrl_cs(ray_session, on_ctrl_c):
    on_ctrl_c(signal.default_int_handler)
    with Demand("trials", 1, {"CPU": 1}, 1).watched():
        signal.signal(signal.SIGINT, lambda number, frame: None)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_ctrl_c_that_is_ignored_stays_ignored(ray_session, on_ctrl_c):
    on_ctrl_c(signal.SIG_IGN)
    with Demand("trials", 1, {"CPU": 1}, 1).watched():
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("minutes", [-1, float("nan")])
def test_a_time_to_wait_that_cannot_be_is_refused(minutes):
    with pytest.raises(InputError, match="must be at least 0 minutes"):
        Demand("workers", 1, {"CPU": 1}, minutes)


def test_a_folder_is_left_as_it_was_by_the_question_whether_it_is_seen(ray_session, tmp_path):
    check_shared("storage", Folder.at(tmp_path / "new"))
    assert list((tmp_path / "new").iterdir()) == []
    assert list(ask_nodes(lambda: "this node alone is not asked")) == []
