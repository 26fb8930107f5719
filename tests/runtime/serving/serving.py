"""A server in this process, for tests: the application that `ditedge serve` runs, and a client of it."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ditedge.runtime.loop.engine import EngineOptions
from ditedge.runtime.serving.options import Limits, ServeRequest

pytest.importorskip("starlette", reason="ditedge[serve] is not installed")
pytest.importorskip("prometheus_client", reason="ditedge[serve] is not installed")


@contextmanager
def client(*folders: Path, **asked: Any) -> Iterator[Any]:
    """Starlette's client; `client.service` is what the server works with."""
    from starlette.testclient import TestClient

    from ditedge.runtime.serving.server import served

    limits = Limits(**{name: asked.pop(name) for name in ("max_batch", "max_queue", "max_seconds") if name in asked})
    alone = asked.pop("alone", True)
    request = ServeRequest(
        tuple(folders),
        limits=limits,
        options=EngineOptions(threads=1),
        drain=0,
        **{"allowed_hosts": ("testserver",), **asked},
    )
    server = served(request, alone)
    with TestClient(server.app, raise_server_exceptions=False) as one:
        one.service = server.service
        yield one


class Gate:
    """Between a server's scheduler and its engines: a step is taken when it is let through, until `open`."""

    def __init__(self, server: Any) -> None:
        self._leave, self._opened = threading.Semaphore(0), False
        for session in server.service.scheduler.sessions.values():
            session.advance = self._behind(session.advance)

    def let(self, turns: int) -> None:
        for _ in range(turns):
            self._leave.release()

    def open(self) -> None:
        self._opened = True
        self.let(1)  # to whoever waits before it

    def _behind(self, advance: Callable[..., None]) -> Callable[..., None]:
        def advanced(*given: Any, **more: Any) -> None:
            if not self._opened:
                self._leave.acquire()
            advance(*given, **more)

        return advanced


@contextmanager
def gate(server: Any) -> Iterator[Gate]:
    """What happens while an image is sampled, at a test's own pace."""
    one = Gate(server)
    try:
        yield one
    finally:
        one.open()
        for session in server.service.scheduler.sessions.values():
            del session.advance


def pixels(data: bytes) -> np.ndarray:
    """uint8 [h, w] or [h, w, 3] of a PNG."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        return np.asarray(image)


def decoded(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def events(text: str) -> list[tuple[str, str]]:
    """(name, data) of server-sent events; comments are left out."""
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            found.append((lines["event"], lines["data"]))
    return found
