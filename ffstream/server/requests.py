"""Requests of the page: reads and checks bodies and queries, and turns errors into answers.

A body is JSON of at most BODY_MAX_BYTES, and must be complete within BODY_TIMEOUT_S.
"""

import asyncio
import logging
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ffstream.errors import (
    BadRequest,
    DeadlineExceeded,
    FFStreamError,
    NoSamples,
    NotShown,
    ProtocolError,
    TooLarge,
    Unavailable,
)
from ffstream.server.answers import refusal

log = logging.getLogger(__name__)

BODY_MAX_BYTES = 1 << 20
BODY_TIMEOUT_S = 10.0
_STATUS: tuple[tuple[type[FFStreamError], int], ...] = (  # the first class that fits
    (TooLarge, 413),
    (ProtocolError, 400),
    (BadRequest, 400),
    (NoSamples, 404),
    (NotShown, 404),
    (Unavailable, 503),
    (DeadlineExceeded, 503),
)


class Arguments(BaseModel):
    """What a request asks for. Unknown names are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


_Arguments = TypeVar("_Arguments", bound=Arguments)


async def body_of(request: Request) -> bytes:
    """Reads the body. Raises TooLarge, and BadRequest if it does not come."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in request.stream():
                body += part
                if len(body) > BODY_MAX_BYTES:
                    raise TooLarge(
                        "the body is too large", hint=f"at most {BODY_MAX_BYTES} bytes; larger images go to a socket"
                    )
    except (TimeoutError, ClientDisconnect) as error:
        raise BadRequest("the body is not complete", hint=f"send it within {BODY_TIMEOUT_S:g} s") from error
    return bytes(body)


def parse(kind: type[_Arguments], body: bytes) -> _Arguments:
    """The arguments in a JSON body. Raises BadRequest, which names the first that is wrong."""
    try:
        return kind.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise _bad_request(kind, error) from error


def query(kind: type[_Arguments], request: Request) -> _Arguments:
    """The arguments in the query of the URL. Raises BadRequest."""
    try:
        return kind.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise _bad_request(kind, error) from error


def _bad_request(kind: type[Arguments], error: ValidationError) -> BadRequest:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    name = ".".join(str(each) for each in first["loc"])[:100]
    names = ", ".join(kind.model_fields)
    return BadRequest(f"{name}: {first['msg']}" if name else first["msg"], hint=f"the arguments are: {names}")


def refused(error: Exception) -> Response:
    """The answer to a request that has failed."""
    if not isinstance(error, FFStreamError):
        log.error("request failed", exc_info=error)
        return refusal(500, FFStreamError.code, repr(error), "see the daemon's log")
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    return refusal(status, error.code, error.message, error.hint)
