"""Decoding clips one after the other in a child process: one that crashes or hangs its process costs that clip only."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from mgc.audio.decode import open_clip
from mgc.audio.quiet import quiet
from mgc.core.errors import ClipError, Reason
from mgc.features import child_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import FileIO

    from mgc.core.storage import Folder

R = TypeVar("R")

CLIP_MEMORY = 2 << 30
"""Bytes of memory that decoding one clip may take; a usual clip takes 40 MB."""
OPEN_CLIPS = 64
"""Clips open at a time; those of an object store are copied to anonymous temporary files."""
FETCHES = 8
"""Threads that open clips."""


def each_clip(
    clips: list[dict[str, Any]], root: Folder, function: Callable[[dict[str, Any], FileIO], R], clip_timeout: float
) -> Iterator[R | ClipError]:
    """Call a function for each clip in turn, in a child process.

    Parameters
    ----------
    clips
        Rows with a ``path``.
    root
        The folder that the paths are relative to.
    function
        Is given a row and its open file; what it returns is pickled. A ``ClipError`` is its answer for the clip, any
        other exception is one of reason ``failed``.
    clip_timeout
        Seconds that one clip may take.

    Yields
    ------
    R or ClipError
        The function's result, or why there is none.

    Raises
    ------
    StoreError
        The object store does not answer.
    """
    # Opened here because the client of an object store does not survive a fork; some at a time, because open files are
    # limited, and in threads, because a store takes its time to answer.
    for start in range(0, len(clips), OPEN_CLIPS):
        group = clips[start : start + OPEN_CLIPS]
        with ExitStack() as opened:
            with ThreadPoolExecutor(FETCHES) as pool:
                files = list(pool.map(partial(_open, root), group))
            for file in files:
                if not isinstance(file, ClipError):
                    opened.enter_context(file)
            sources = zip(group, files, strict=True)
            attempt = partial(_attempt, function)
            for outcome in child_process.each(attempt, sources, seconds=clip_timeout, memory=CLIP_MEMORY):
                if isinstance(outcome, child_process.Lost):
                    yield ClipError(Reason(outcome.how), outcome.detail)
                else:
                    yield outcome


def _open(root: Folder, clip: dict[str, Any]) -> FileIO | ClipError:
    try:
        return open_clip(root, clip["path"])
    except ClipError as error:
        return error


def _attempt(
    function: Callable[[dict[str, Any], FileIO], R], source: tuple[dict[str, Any], FileIO | ClipError]
) -> R | ClipError:
    clip, file = source
    return file if isinstance(file, ClipError) else outcome_of(partial(function, clip, file))


def outcome_of(call: Callable[[], R]) -> R | ClipError:
    """Call what decodes a file, and return its result, or why there is none, whatever it raises but a lack of memory.

    Parameters
    ----------
    call
        The call; what a library writes meanwhile is dropped.
    """
    try:
        with quiet():
            return call()
    except ClipError as error:
        return error
    except MemoryError:
        raise
    except Exception as error:
        return ClipError(Reason.FAILED, f"{type(error).__name__}: {error}")
