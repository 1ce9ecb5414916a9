"""What ends a process from outside: Ctrl-C, a scheduler or a node that goes (SIGTERM), a closed terminal (SIGHUP).

All end it as Ctrl-C does, by a KeyboardInterrupt, so that what was begun can be written down and gone on with.
"""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_received = signal.SIGINT
_caught = False


def catch() -> None:
    """Let SIGTERM and SIGHUP end this process by a KeyboardInterrupt from now on; for the main thread of a program."""
    global _caught
    _caught = True
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup sets it
        signal.signal(signal.SIGHUP, _interrupt)


def catch_again() -> None:
    """``catch`` once more, if it was called: a library has put handlers of its own in their place."""
    if _caught:
        catch()


@contextmanager
def held() -> Iterator[None]:
    """Let an interrupt wait for the end of the block, which it would leave half done; a second one does not wait.

    In a thread that is not the main one, where no interrupt arrives, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    before = {number: handler for number, handler in before.items() if callable(handler)}
    came = []

    def hold(number: int, frame: FrameType | None) -> None:
        came.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, hold)
    try:
        yield
    finally:
        restore()
        if came:
            signal.raise_signal(came[0])


def exit_code() -> int:
    """The exit code of a process that was interrupted: 130 of Ctrl-C, 143 of SIGTERM."""
    return 128 + _received


def received() -> str:
    """Name of the signal that has interrupted this process: ``SIGINT``, ``SIGTERM`` or ``SIGHUP``."""
    return _received.name


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _received
    _received = signal.Signals(number)
    on_ctrl_c = signal.getsignal(signal.SIGINT)
    if callable(on_ctrl_c):  # Python's, or Ray Tune's while it runs
        on_ctrl_c(signal.SIGINT, frame)
    else:
        raise KeyboardInterrupt
