"""What holds for every request: who may ask, what a browser may do with an answer, and that a refusal arrives."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

NAMES = ("localhost", "127.0.0.1", "[::1]")
"""What this machine calls itself."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; media-src 'self' blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """An ASGI application around another.

    Parameters
    ----------
    app
        What is behind it.
    local
        Whether the server has no token, because only this machine reaches it: then the ``Host`` must be one of this
        machine's names with the server's port, or a page elsewhere whose name is made to lead here (DNS rebinding)
        could read answers; and a request that names its ``Origin`` must come from the server's own page.
    drain_seconds
        How long to take the rest of a body that was refused: most clients read the answer only when they have sent all.
    """

    def __init__(self, app: ASGIApp, *, local: bool, drain_seconds: float) -> None:
        self.app, self.local, self.drain_seconds = app, local, drain_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self.drain_seconds)
        why = _stranger(scope) if self.local else ""
        app = JSONResponse({"error": why}, 403) if why else self.app
        await app(scope, exchange.receive, exchange.send)


class _Exchange:
    """A request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, drain_seconds: float) -> None:
        headers = Headers(scope=scope)
        self._receive, self._send, self._drain_seconds = receive, send, drain_seconds
        self._to_come = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        self._not_asked_for = "expect" in headers  # a client that waits to be asked sends no body after a refusal

    async def receive(self) -> Message:
        message = await self._receive()
        self._not_asked_for = False
        self._to_come = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if last and self._to_come and not self._not_asked_for:
            await self._send({**message, "more_body": True})
            with anyio.move_on_after(self._drain_seconds):
                while self._to_come:
                    await self.receive()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)


def _stranger(scope: Scope) -> str:
    """Why a request does not come from this machine's own programs or the server's own page; empty if it does."""
    headers = Headers(scope=scope)
    address, port = scope.get("server") or ("", 0)
    names = [f"{name}:{port}" for name in dict.fromkeys((*NAMES, address))]  # the address as --host may have it
    host, origin = headers.get("host", "").lower(), headers.get("origin")
    if host not in names + [name.removesuffix(":80") for name in names]:
        return f"Host «{host}»: this server answers to {', '.join(names)} only"
    if origin is not None and origin.lower() != f"http://{host}":
        return f"Origin «{origin}»: this server answers its own page only"
    return ""


def may_ask(headers: Headers, token: str | None) -> bool:
    """Whether a request has the server's token, compared in constant time; where there is none, any may ask.

    Parameters
    ----------
    headers
        Of the request.
    token
        Of the server.
    """
    given = headers.get("authorization", "").encode("latin-1")
    return token is None or hmac.compare_digest(given, b"Bearer " + token.encode())
