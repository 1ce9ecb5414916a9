"""Ports of this machine, and whether a server can listen on one."""

from __future__ import annotations

import ipaddress
import socket

from mgc.core.errors import InputError

LOOPBACK = "127.0.0.1"
MOST = 65_535
"""The largest port."""


def check(port: int, host: str = LOOPBACK) -> None:
    """Refuse a port that cannot be used now, and offer the next one that can.

    Parameters
    ----------
    port
        To listen on.
    host
        Name or address of one of this machine's interfaces.

    Raises
    ------
    InputError
        The port is none, or taken; or the host is not this machine's.
    """
    if not 1 <= port <= MOST:
        raise InputError(f"`port={port}`: must be from 1 to {MOST}")
    why = _unusable(port, host)
    if why:
        if other := _unusable(0, host):  # whatever the port
            raise InputError(f"`host={host}`: {other}")
        free = next((other for other in range(port + 1, MOST + 1) if not _unusable(other, host)), None)
        raise InputError(f"`port={port}`: {why}" + (f"; {free} is free" if free else ""))


def listen(port: int, host: str = LOOPBACK) -> socket.socket:
    """Listen on a port; raises as ``check``.

    Parameters
    ----------
    port, host
        As for ``check``.

    Returns
    -------
    socket.socket
        It is the caller's to close.
    """
    check(port, host)
    family, address = _address(port, host)
    return socket.create_server(address[:2], family=family)


def is_loopback(host: str) -> bool:
    """Whether only this machine's own programs reach a name or an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _address(port: int, host: str) -> tuple[socket.AddressFamily, tuple[str, int]]:
    family, _, _, _, address = socket.getaddrinfo(host or "", port, type=socket.SOCK_STREAM)[0]
    return family, address  # type: ignore[return-value]


def _unusable(port: int, host: str) -> str:
    try:
        family, address = _address(port, host)
        with socket.socket(family) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as a server does
            server.bind(address)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that no host can have
        return (getattr(error, "strerror", None) or str(error)).lower()
    return ""
