"""The token that requests must show."""

from __future__ import annotations

import os
import secrets

from mgc.core import ports
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
    token = os.environ.get(NAME)
    if not token and not ports.is_loopback(host):
        token = secrets.token_urlsafe(24)
        say(f"token, of this start alone ({NAME} sets one that stays): {token}")
    return token or None
