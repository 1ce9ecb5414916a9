"""What can go wrong, in the words a user reads.

``InputError`` (exit code 2): something the user gave cannot be used; nothing was written.
``RunError`` (exit code 1): the work itself failed.
``ClipError``: one clip cannot become a feature; it is quarantined and the work goes on.
"""

from __future__ import annotations

import re
from enum import StrEnum

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


class RunError(MgcError):
    """The work was started and failed."""


class StoreError(RunError):
    """An object store did not answer or refused: this says nothing of the file that was asked for."""


def _flag(parameter: re.Match[str]) -> str:
    name, value = parameter.groups()
    flag = f"--{name.replace('_', '-')}"
    return flag if value in (None, "True") else f"{flag} {value}"


def first_line(error: BaseException) -> str:
    """The first line of what an error of a library says, or its kind if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class Reason(StrEnum):
    """Why a clip is in quarantine: the fixed list."""

    MISSING = "missing"
    """The tracks table names a file that is not there."""
    UNREADABLE = "unreadable"
    """The path is not a regular file, or reading it is not permitted."""
    EMPTY = "empty"
    """The file has no bytes."""
    NOT_AUDIO = "not_audio"
    """No decoder recognises the bytes as audio."""
    DECODE_ERROR = "decode_error"
    """The decoder gave up inside the file."""
    TOO_SHORT = "too_short"
    """Less audio came out than ``--min-seconds``."""
    DAMAGED = "damaged"
    """Clearly less audio came out than the file promises."""
    NOT_FINITE = "not_finite"
    """The decoded samples hold NaN or infinity."""
    TOO_LOUD = "too_loud"
    """The decoded samples are beyond anything that is sound."""
    CRASHED = "crashed"
    """The decoder's process died of this clip."""
    TIMED_OUT = "timed_out"
    """The decoder did not come back from this clip."""
    FAILED = "failed"
    """An error that no other reason covers; the detail names it."""


class ClipError(MgcError):
    """One clip cannot become a feature.

    Parameters
    ----------
    reason
        The entry of the fixed list.
    detail
        What was seen, for a person.
    seconds
        Length of the decoded audio, where any was decoded.
    """

    def __init__(self, reason: Reason, detail: str, seconds: float | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.seconds = seconds

    def __reduce__(self) -> tuple[type[ClipError], tuple[Reason, str, float | None]]:
        """Pickle by the constructor's arguments: workers raise this across processes."""
        return type(self), (self.reason, self.detail, self.seconds)
