"""The token that requests must show."""

from __future__ import annotations

import os
import secrets

from mgc.core import ports
from mgc.core.errors import InputError
from mgc.core.progress import say

NAME = "MGC_TOKEN"
"""The environment variable with it."""


def token_for(host: str) -> str | None:
    """Return the environment's token, or a new one, which is said, where others than this machine reach the server.

    Parameters
    ----------
    host
        That the server listens on.

    Returns
    -------
    str or None
        None: only this machine reaches it, and no token is wanted.
    """
    token = given_token()
    if not token and not ports.is_loopback(host):
        token = secrets.token_urlsafe(24)
        say(f"token, of this start alone ({NAME} sets one that stays): {token}")
    return token


def given_token() -> str | None:
    """Return the environment's token, without spaces and line ends around it; None where there is none.

    Raises
    ------
    InputError
        It has other characters than those of ASCII, which a header does not carry.
    """
    token = os.environ.get(NAME, "").strip()
    if token and not (token.isascii() and token.isprintable()):
        raise InputError(f"{NAME}: must be of ASCII letters, digits and signs")
    return token or None
