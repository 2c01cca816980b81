"""JSON answers over HTTP: figures rounded for people, null for what is not known, and errors with code and hint."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import PlainTextResponse, Response
from starlette.types import Scope

_DIGITS = 6
_LARGE = 10**_DIGITS  # a larger number, such as a time, keeps its fraction to the millisecond

_HEADERS = {"Cache-Control": "no-store"}


def rounded(value: Any) -> Any:
    """The value as JSON shows it: floats with 6 significant digits, None for NaN and infinities."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return float(f"{value:.{_DIGITS}g}") if abs(value) < _LARGE else round(value, 3)
    if isinstance(value, Mapping):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [rounded(each) for each in value]
    return value


def encode(document: Any) -> bytes:
    """A document as JSON in one line."""
    return encode_rounded(rounded(document))


def encode_rounded(document: Any) -> bytes:
    """The same for a document whose floats stay as they are. It has neither NaN nor infinities."""
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


def answer(document: Any, status: int = 200) -> Response:
    """A document as the answer to a request."""
    return encoded(encode(document), status)


def encoded(body: bytes, status: int = 200) -> Response:
    """The answer with a body that `encode` has made."""
    return Response(body, status, _HEADERS, media_type="application/json")


def refusal(status: int, code: str, message: str, hint: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error as the answer to a request for data."""
    body = encode({"code": code, "message": message, "hint": hint})
    return Response(body, status, {**_HEADERS, **(headers or {})}, media_type="application/json")


def refusal_for(
    scope: Scope, status: int, code: str, message: str, hint: str, headers: Mapping[str, str] | None = None
) -> Response:
    """The same, as text where a person or a probe reads it: outside /api."""
    if scope["path"].startswith("/api/"):
        return refusal(status, code, message, hint, headers)
    return PlainTextResponse(f"{status}: {message}; {hint}\n", status, headers)
