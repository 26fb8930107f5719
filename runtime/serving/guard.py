"""What every request passes first: its size, how long its body takes, its key, where its page is from.

Plain ASGI, around the application: nothing of a request is parsed before.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from .service import Service

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

MAX_BODY = 64 << 10  # bytes: requests are some lines of JSON
BODY_SECONDS = 10.0  # from the first byte of a body to its last
MOST_REQUESTS = 1000  # in the works at a time
OPEN = ("/", "/docs", "/openapi.json", "/healthz", "/readyz")  # no key is asked for; nor for the page's own files
OPEN_BELOW = ("/page/", "/v1/images/")  # a picture's address is a name that nobody guesses
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class Refused(Exception):
    """Before the application sees it."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def error_body(message: str, code: str, status: int) -> dict[str, Any]:
    """As OpenAI's API says it; `detail` as A1111's does."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}, "detail": message}


class Guard:
    """Around an application. Puts the number of the key of a request into its scope, as "ditedge.key"."""

    def __init__(self, app: App, service: Service) -> None:
        self._app, self._service = app, service
        self._requests = 0  # in the works

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._requests += 1
        try:
            await self._guarded(scope, receive, send)
        finally:
            self._requests -= 1

    async def _guarded(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        try:
            headers = _headers(scope)
            if self._requests > MOST_REQUESTS:
                raise Refused(429, "too_many", f"{MOST_REQUESTS} requests are being answered: try again")
            scope["ditedge.key"] = self._key(scope["path"], scope["method"], headers)
            self._check_host(headers)
            _check_origin(scope["method"], headers)
            body = await _body(scope["method"], headers, receive)
        except Refused as refusal:
            await _refuse(refusal, _with_headers(send))
            return
        await self._app(scope, _given(body, receive), _with_headers(send))

    def _key(self, path: str, method: str, headers: Mapping[str, str]) -> int | None:
        """Raises Refused."""
        if not self._service.keys:
            return None
        key = self._service.key_of(headers.get("authorization"), headers.get("x-api-key"))
        free = method in ("GET", "HEAD") and (path in OPEN or path.startswith(OPEN_BELOW))
        if key is None and not free:
            raise Refused(401, "invalid_api_key", "this server wants a key: send 'Authorization: Bearer KEY'")
        return key

    def _check_host(self, headers: Mapping[str, str]) -> None:
        """A name that somebody else gave this machine, so that a page of his is from here, is none. Raises Refused.

        Where keys are asked for, no such page has one.
        """
        name = _host_name(headers.get("host", "localhost"))
        if self._service.keys or name in self._service.hosts or name == "localhost" or _is_address(name):
            return
        raise Refused(
            421,
            "unknown_host",
            f"this server is not known as '{name[:100]}': start it with --allowed-host {name[:100]}",
        )


def _host_name(host: str) -> str:
    """ "[::1]:8000" -> "::1"; as it is where it is none."""
    try:
        return urlsplit(f"//{host}").hostname or host
    except ValueError:
        return host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _headers(scope: Mapping[str, Any]) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _check_origin(method: str, headers: Mapping[str, str]) -> None:
    """A page of somebody else's in a browser that can reach this server sends no images off. Raises Refused."""
    origin = headers.get("origin")
    if method in ("GET", "HEAD") or origin is None:
        return
    if origin.partition("://")[2] != headers.get("host"):
        raise Refused(403, "foreign_origin", f"a page of {origin[:100]} may not use this server from a browser")


async def _body(method: str, headers: Mapping[str, str], receive: Receive) -> bytes:
    """All of it. Raises Refused for one that is too long, too slow, or not JSON."""
    if method in ("GET", "HEAD", "DELETE"):
        return b""
    parts, size = [], 0
    try:
        declared = int(headers.get("content-length") or 0)
    except ValueError:
        raise Refused(400, "bad_length", "content-length is not a number") from None
    too_long = Refused(413, "too_large", f"the request is longer than {MAX_BODY >> 10} kB")
    if declared > MAX_BODY:
        raise too_long
    end = asyncio.get_running_loop().time() + BODY_SECONDS
    while True:
        left = end - asyncio.get_running_loop().time()
        try:
            message = await asyncio.wait_for(receive(), left)
        except asyncio.TimeoutError:
            raise Refused(408, "too_slow", f"the request took longer than {BODY_SECONDS:g} s to arrive") from None
        if message["type"] == "http.disconnect":
            raise Refused(400, "disconnected", "the connection was closed in the middle of the request")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY:
            raise too_long
        if not message.get("more_body"):
            break
    body = b"".join(parts)
    if body and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "not_json", "send JSON, and say so: content-type application/json")
    return body


def _given(body: bytes, receive: Receive) -> Receive:
    """What was received, once; then what comes later: that the connection was closed."""
    told = False

    async def again() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", []), *given]}
        await send(message)

    return sent


async def _refuse(refusal: Refused, send: Send) -> None:
    body = json.dumps(error_body(str(refusal), refusal.code, refusal.status)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refusal.status == 429:
        headers.append((b"retry-after", b"1"))
    if refusal.status in (408, 413, 429):
        headers.append((b"connection", b"close"))  # the rest of it is not read
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
