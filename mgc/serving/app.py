"""The application: a page, ``POST /v1/predict``, and what says how to use them.

It is of starlette alone, so that uvicorn runs it for one person (``mgc serve``) and Ray Serve for many.
"""

from __future__ import annotations

import asyncio
import math
import os
import tempfile
from contextlib import asynccontextmanager
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING, Any

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mgc.core.errors import ClipError, Reason
from mgc.evaluation.calibration import PRECISION
from mgc.serving import openapi
from mgc.serving.decoding import decode
from mgc.serving.guard import Guard, may_ask
from mgc.serving.network import Network

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from io import FileIO

    from numpy.typing import NDArray
    from starlette.requests import Request

    from mgc.library.genre_model import GenreModel
    from mgc.library.listening import Answer
    from mgc.serving.decoding import Decoded
    from mgc.serving.limits import Limits

PAGE = {"": "text/html", "app.js": "text/javascript", "style.css": "text/css", "icon.svg": "image/svg+xml"}
"""The files of the page, and their types."""
SHOWN = 16
"""Digits of the model's fingerprint that are shown."""
RETRY_SECONDS = 2
STATUS = {Reason.EMPTY: 400, Reason.NOT_AUDIO: 415}
"""HTTP's status of a file that gives no prediction; 422 of other reasons."""


def application(model: GenreModel, limits: Limits, token: str | None, *, precision: float = PRECISION) -> Guard:
    """Make the application of a model.

    Parameters
    ----------
    model
        The model; from the start of the application on its network belongs to a thread of it.
    limits
        What is refused.
    token
        What requests must show (``Authorization: Bearer …``). None: the application is for this machine alone, and
        answers only to this machine's names.
    precision
        Share of right answers, on the model's validation clips, that ``unsure`` leaves.

    Returns
    -------
    Guard
        An ASGI application.

    Raises
    ------
    InputError
        ``precision`` is no share.
    """
    service = _Service(model, limits, token, model.threshold(precision))
    document = openapi.document(limits, needs_token=token is not None)
    page = resources.files("mgc.serving") / "page"
    routes = [
        _file(f"/{name}", (page / (name or "index.html")).read_text("utf-8"), kind) for name, kind in PAGE.items()
    ]
    routes += [
        _file("/docs", openapi.page(document), "text/html"),
        Route("/openapi.json", lambda _: JSONResponse(document)),
        Route("/healthz", service.health),
        Route("/v1/predict", service.predict, methods=["POST"]),
    ]
    made = Starlette(
        routes=routes,
        exception_handlers={HTTPException: _refusal, ClientDisconnect: _nobody, Exception: _fault},  # type: ignore[dict-item]
        lifespan=service.running,
    )
    return Guard(made, local=token is None, drain_seconds=limits.upload_timeout)  # around its answers of 500, too


class _Service:
    """What requests share."""

    def __init__(self, model: GenreModel, limits: Limits, token: str | None, threshold: float) -> None:
        self.model, self.limits, self.token = model, limits, token
        self.threshold = threshold if math.isfinite(threshold) else None  # JSON has no infinity
        self.network = Network(model)
        self.healthy = {
            "status": "ok",
            "model": model.fingerprint[:SHOWN],
            "genres": list(model.card.genres),
        }
        self.at_work = 0

    @asynccontextmanager
    async def running(self, _: Starlette) -> AsyncIterator[None]:
        self.decoders = anyio.CapacityLimiter(os.cpu_count() or 1)
        self.network.start()
        try:
            yield
        finally:
            await anyio.to_thread.run_sync(self.network.close)

    async def health(self, request: Request) -> Response:
        self._admit(request)
        return JSONResponse(self.healthy)

    async def predict(self, request: Request) -> Response:
        self._admit(request)
        spectrogram = request.query_params.get("spectrogram") == "1"
        if self.at_work >= self.limits.at_once:
            why = f"{self.at_work} files are in work, the most at a time; try again in a moment"
            raise HTTPException(429, why, {"Retry-After": str(RETRY_SECONDS)})
        self.at_work += 1
        try:
            with tempfile.TemporaryFile(buffering=0) as file:
                await self._receive(request, file)
                work = partial(decode, file, self.model.card.spec, self.limits, spectrogram=spectrogram)
                decoded = await anyio.to_thread.run_sync(work, limiter=self.decoders)
            if decoded.seconds > self.limits.max_seconds:
                raise HTTPException(413, f"more than {self.limits.max_seconds:g} s of audio, the most of a file")
            answer = await asyncio.wrap_future(self.network.answer(decoded.pieces))
        except ClipError as error:
            raise HTTPException(STATUS.get(error.reason, 422), str(error)) from None
        finally:
            self.at_work -= 1
        return JSONResponse(self._said(answer, decoded))

    def _admit(self, request: Request) -> None:
        if not may_ask(request.headers, self.token):
            raise HTTPException(401, "this server wants its token: Authorization: Bearer …", _CHALLENGE)

    async def _receive(self, request: Request, file: FileIO) -> None:
        """Write the body to a file."""
        too_large = HTTPException(413, f"more than {self.limits.max_mb:g} MB, the most of a file")
        promised = request.headers.get("content-length", "0")
        if len(promised) > len(str(self.limits.bytes)) or int(promised) > self.limits.bytes:
            raise too_large
        size = 0
        try:
            with anyio.fail_after(self.limits.upload_timeout):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > self.limits.bytes:
                        raise too_large
                    if file.write(chunk) != len(chunk):
                        raise OSError("no space left")
        except TimeoutError:
            why = f"the file did not arrive in {self.limits.upload_timeout:g} s"
            raise HTTPException(408, why) from None
        except OSError as error:
            raise HTTPException(503, f"the server cannot keep the file ({error.strerror or error})") from None
        if not size:
            raise ClipError(Reason.EMPTY, "0 bytes")

    def _said(self, answer: Answer, decoded: Decoded) -> dict[str, Any]:
        genres = self.model.card.genres
        best = int(answer.probabilities_G.argmax())
        confidence = float(answer.probabilities_G[best])

        def by_genre(probabilities_G: NDArray[Any]) -> dict[str, float]:
            return dict(zip(genres, probabilities_G.round(6).tolist(), strict=True))

        said = {
            "genre": genres[best],
            "unsure": self.threshold is None or confidence < self.threshold,
            "threshold": self.threshold,
            "confidence": round(confidence, 6),
            "probabilities": by_genre(answer.probabilities_G),
            "seconds": round(decoded.seconds, 3),
            "windows": [
                {"start": round(each.start, 3), "end": round(each.end, 3)}
                | {"probabilities": by_genre(each.probabilities_G)}
                for each in answer.windows
            ],
            "warning": decoded.warning,
        }
        return said | ({"spectrogram": decoded.spectrogram} if decoded.spectrogram else {})


_CHALLENGE = {"WWW-Authenticate": "Bearer"}
_PLAIN = {404: "there is nothing at this address; /docs says what there is", 405: "this address takes other methods"}


def _file(path: str, text: str, kind: str) -> Route:
    return Route(path, lambda _: Response(text, media_type=kind))


async def _refusal(_: Request, error: HTTPException) -> Response:
    why = _PLAIN.get(error.status_code, error.detail)
    return JSONResponse({"error": why}, error.status_code, error.headers)


async def _nobody(_: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=400)  # the client has gone


async def _fault(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"the server failed: {type(error).__name__}; its log says more"}, 500)
