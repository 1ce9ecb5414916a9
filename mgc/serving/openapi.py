"""The API, described: an OpenAPI document, and the same as a page."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

import jinja2

import mgc

if TYPE_CHECKING:
    from mgc.serving.limits import Limits

_PROBABILITIES = {
    "type": "object",
    "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1},
    "description": "Calibrated probability of each genre.",
}
_SECONDS = {"type": "number", "minimum": 0}
_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}


def _object(properties: dict[str, Any], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


_WINDOW = _object({"start": _SECONDS, "end": _SECONDS, "probabilities": _PROBABILITIES})
_SPECTROGRAM = _object(
    {
        "width": {"type": "integer", "minimum": 1, "maximum": 1200},
        "height": {"type": "integer", "minimum": 1, "description": "Mel bands; the lowest is the last row."},
        "end": {**_SECONDS, "description": "Seconds at the right edge; the left one is the file's beginning."},
        "pixels": {
            "type": "string",
            "contentEncoding": "base64",
            "description": "A byte a pixel, row by row; 0 and 255: 2.5 standard deviations below and above the mean.",
        },
    }
)
_PREDICTION = _object(
    {
        "genre": {"type": "string", "description": "The most probable one."},
        "unsure": {"type": "boolean", "description": "The confidence is below the threshold."},
        "threshold": {
            "type": ["number", "null"],
            "description": "Confidence from which the asked-for share of validation clips was right, or null.",
        },
        "confidence": {"type": "number", "description": "The genre's probability."},
        "probabilities": _PROBABILITIES,
        "seconds": {**_SECONDS, "description": "Of audio in the file."},
        "windows": {"type": "array", "items": _WINDOW, "description": "What the model hears at a time, in order."},
        "warning": {"type": ["string", "null"], "description": "Why this is worth less: damaged, or very short."},
        "spectrogram": {**_SPECTROGRAM, "description": "Only if it was asked for."},
    },
    optional=("spectrogram",),
)
_HEALTH = _object(
    {
        "status": {"const": "ok"},
        "model": {"type": "string", "description": "The beginning of the model's fingerprint."},
        "genres": {"type": "array", "items": {"type": "string"}, "description": "That it knows."},
    }
)


def document(limits: Limits, *, needs_token: bool) -> dict[str, Any]:
    """Describe the API of a server.

    Parameters
    ----------
    limits
        The server's.
    needs_token
        Whether requests must show a token.

    Returns
    -------
    dict
        An OpenAPI 3.1 document.
    """
    refusals = {
        "400": "The file is empty.",
        "408": f"The file did not arrive in {limits.upload_timeout:g} s.",
        "413": f"More than {limits.max_mb:g} MB, or more than {limits.max_seconds:g} s of audio.",
        "415": "The bytes are no audio that can be decoded.",
        "422": f"The audio breaks while it is decoded, or decoding took more than {limits.decode_timeout:g} s.",
        "429": f"{limits.at_once} files are in work; Retry-After says when to try again.",
        "503": "The server cannot keep the file: its disk is full.",
    }
    stranger = {"401": "No token, or a wrong one."} if needs_token else {"403": "Host or Origin is another server's."}
    scheme = {"token": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "mgc", "version": mgc.__version__, "description": "The genre of a music file."},
        "paths": {
            "/v1/predict": {
                "post": {
                    "summary": "Predict the genre of a file: MP3, WAV, FLAC, Ogg or what else libsndfile reads.",
                    "parameters": [
                        {
                            "name": "spectrogram",
                            "in": "query",
                            "description": "1: the answer has the log-Mel spectrogram, too.",
                            "schema": {"enum": ["1"]},
                        }
                    ],
                    "requestBody": {
                        "required": True,
                        "description": "The file's bytes, as they are; a content type and a name are not looked at.",
                        "content": {"application/octet-stream": {}},
                    },
                    "responses": _responses("The prediction.", _PREDICTION, refusals | stranger),
                }
            },
            "/healthz": {
                "get": {
                    "summary": "Say that the server is there, which model it has, and what genres that knows.",
                    "responses": _responses("It is.", _HEALTH, stranger),
                }
            },
        },
        **({"components": {"securitySchemes": scheme}, "security": [{"token": []}]} if needs_token else {}),
    }


def _responses(well: str, schema: dict[str, Any], refusals: dict[str, str]) -> dict[str, Any]:
    found = {"200": {"description": well, "content": {"application/json": {"schema": schema}}}}
    error = {"application/json": {"schema": _ERROR}}
    return found | {code: {"description": refusals[code], "content": error} for code in sorted(refusals)}


def page(description: dict[str, Any]) -> str:
    """Make a page of a document.

    Parameters
    ----------
    description
        As ``document`` returns it.

    Returns
    -------
    str
        HTML.
    """
    text = (resources.files("mgc.serving") / "page" / "docs.html.j2").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(text).render(api=description)
