"""Answers: JSON, pictures, events; and which status an error has. Its sentence is that of the command line."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import Cancelled, DitedgeError, EngineError, NotFiniteError, RequestError
from .guard import error_body
from .scheduler import ClosingError
from .service import UnknownJobError, UnknownModelError
from .ticket import LateError, Ticket, sentence_of
from .waiting import BusyError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

log = logging.getLogger(__name__)
CLOSING_SECONDS = 5  # after which another server may be there
STATUS: tuple[tuple[type[Exception], int, str], ...] = (
    (BusyError, 429, "queue_full"),
    (ClosingError, 503, "closing"),
    (UnknownModelError, 404, "model_not_found"),
    (UnknownJobError, 404, "job_not_found"),
    (LateError, 504, "deadline"),
    (NotFiniteError, 422, "overflow"),
    (EngineError, 500, "engine"),
    (DitedgeError, 400, "invalid_value"),
    (Cancelled, 409, "cancelled"),
)


def json_reply(
    value: Mapping[str, Any] | list[Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """In ASCII: what a caller sent may hold halves of characters."""
    from starlette.responses import Response

    return Response(json.dumps(value), status, headers, media_type="application/json")


def status_of(error: Exception) -> tuple[int, str]:
    """HTTP's status and our word for it."""
    return next(((status, code) for kind, status, code in STATUS if isinstance(error, kind)), (500, "internal"))


def error_reply(error: Exception) -> Response:
    """Of any error; what is a bug is in the log."""
    status, code = status_of(error)
    if code == "internal":
        log.error("a request failed", exc_info=error)
    after = {BusyError: getattr(error, "retry_after", 0), ClosingError: CLOSING_SECONDS}.get(type(error))
    headers = {} if after is None else {"retry-after": str(after)}
    return json_reply(error_body(sentence_of(error), code, status), status, headers)


async def on_error(request: Request, error: Exception) -> Response:
    """For Starlette: errors that a route raised."""
    return error_reply(error)


async def on_http_error(request: Request, error: Exception) -> Response:
    """For Starlette: no such route, or no such method of it."""
    status = getattr(error, "status_code", 500)
    sentence = {404: f"there is no {request.url.path[:100]} here", 405: f"{request.method} is not for this address"}
    message = sentence.get(status, str(getattr(error, "detail", error)))
    return json_reply(error_body(message, f"http_{status}", status), status, getattr(error, "headers", None))


def picture_reply(data: bytes) -> Response:
    from starlette.responses import Response

    return Response(data, media_type="image/png", headers={"cache-control": "private, max-age=3600"})


def events_reply(events: AsyncIterator[bytes]) -> Response:
    """Server-sent events. Proxies are told to hold nothing back."""
    from starlette.responses import StreamingResponse

    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


def event(name: str, value: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return f"event: {name}\ndata: {json.dumps(value)}\n\n".encode()


def error_event(ticket: Ticket) -> bytes:
    error = ticket.error or RequestError("there is no image")
    status, code = status_of(error)
    return event("error", error_body(sentence_of(error), code, status))


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
