"""The errors that mgc raises on purpose; the message of each is one line for a person.

``InputError`` (exit code 2): something the user gave cannot be used; nothing was written. ``WaitError``: a cluster did
not have in time what was asked for.
``RunError`` (exit code 1): the work failed; ``StoreError``: because an object store did.
``ClipError``: one clip cannot become a feature; it is quarantined and the work goes on.
"""

from __future__ import annotations

import errno
import re
from enum import StrEnum

_GIVEN = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ELOOP}
    | {errno.ENAMETOOLONG, errno.EINVAL}
)
"""Errors of the operating system that another path or other permissions mend; all others are the disk's."""
_PARAMETER = re.compile(r"`([a-z][a-z0-9_.]*)(?:=([^`]*))?`")


class MgcError(Exception):
    """Root of all errors that mgc raises on purpose; the message is one line for a person.

    A message names a parameter between backticks, as Python knows it: `` `min_seconds=-1`: must be at least 0``.
    """

    exit_code = 1

    def for_command_line(self) -> str:
        """The message with its parameters as flags: ``--min-seconds -1: must be at least 0``."""
        return _PARAMETER.sub(_flag, str(self))


class InputError(MgcError):
    """A file, flag or identifier the user gave cannot be used; the message names it and says what to do."""

    exit_code = 2


class WaitError(InputError):
    """A cluster did not have what was asked for in time; nothing is lost, and the same command goes on."""


class RunError(MgcError):
    """The work was started and failed."""


class StoreError(RunError):
    """An object store did not answer or refused; whether the file asked for is there is not known."""


def _flag(parameter: re.Match[str]) -> str:
    name, value = parameter.groups()
    flag = f"--{name.rpartition('.')[2].replace('_', '-')}"  # flags have no prefix: --dropout
    return flag if value in (None, "True") else f"{flag} {value}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def last_line(text: str) -> str:
    """The last line of a text that is not empty: of a traceback, what was raised."""
    return text.strip().splitlines()[-1]


def path_error(message: str, error: OSError) -> MgcError:
    """The error to raise for an ``OSError`` about a path that the user gave.

    Parameters
    ----------
    message
        One line that names the path.
    error
        What the operating system said.

    Returns
    -------
    MgcError
        ``InputError`` where the path is the fault (not there, no permission, of another kind), ``RunError`` where the
        disk is (an input/output error, no space, a lost network drive).
    """
    return (InputError if error.errno in _GIVEN else RunError)(message)


class Reason(StrEnum):
    """Why a clip is in quarantine."""

    MISSING = "missing"
    """The tracks table names a file that is not there."""
    UNREADABLE = "unreadable"
    """The path is not a regular file, or reading it is not permitted."""
    EMPTY = "empty"
    """The file has no bytes."""
    NOT_AUDIO = "not_audio"
    """No decoder recognises the bytes as audio."""
    DECODE_ERROR = "decode_error"
    """The decoder failed inside the file."""
    TOO_SHORT = "too_short"
    """Less audio was decoded than ``min_seconds``."""
    DAMAGED = "damaged"
    """Clearly less audio was decoded than the file's headers and size promise."""
    NOT_FINITE = "not_finite"
    """The decoded samples hold NaN or infinity."""
    TOO_LOUD = "too_loud"
    """The decoded samples exceed full scale by more than 120 dB."""
    CRASHED = "crashed"
    """The process that decoded this clip died."""
    TIMED_OUT = "timed_out"
    """Decoding this clip took longer than ``clip_timeout``."""
    FAILED = "failed"
    """An error that no other reason covers; the detail names it."""


class ClipError(MgcError):
    """One clip cannot become a feature.

    Parameters
    ----------
    reason
        The entry of the fixed list.
    detail
        What was found, for a person.
    seconds
        Length of the decoded audio, or None where none was decoded.
    """

    def __init__(self, reason: Reason, detail: str, seconds: float | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.seconds = seconds

    def __reduce__(self) -> tuple[type[ClipError], tuple[Reason, str, float | None]]:
        """Pickle by the constructor's arguments: workers raise this across processes."""
        return type(self), (self.reason, self.detail, self.seconds)
