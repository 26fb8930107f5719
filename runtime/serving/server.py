"""`ditedge serve`: bundles opened, their engines loaded, a socket, and uvicorn until a signal comes."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from ..bundle.open import open_bundle
from ..errors import RequestError
from ..loop.engine import options_for
from ..loop.session import Session
from .app import application
from .guard import MOST_REQUESTS
from .metrics import Metrics
from .options import ServeRequest
from .scheduler import Scheduler
from .service import Service, named, read_keys

CONNECTIONS = 4 * MOST_REQUESTS  # at a time; more are answered 503, without a sentence
HEADER_BYTES = 16 << 10
ANSWER_SECONDS = 5  # for the last answers
IDLE_SECONDS = 15  # of a connection between two requests


@dataclass(frozen=True)
class Served:
    """A server that is loaded, and has not begun. app: ASGI."""

    request: ServeRequest
    service: Service
    app: Any

    def close(self) -> None:
        self.service.scheduler.close(drain=False)


def served(request: ServeRequest, alone: bool = True) -> Served:
    """Opens and loads everything; the scheduler begins. alone: it is no replica among others.

    Raises DitedgeError; ModuleNotFoundError without the extra.
    """
    metrics = Metrics()  # first, for it misses its package at once
    if not request.engines:
        raise RequestError("there is nothing to serve: give --engine a bundle")
    opened = [(path, open_bundle(path, trusted_keys=request.trusted_keys or None)) for path in request.engines]
    bundles = named([bundle for _, bundle in opened])
    keys = read_keys(request.api_key_file) if request.api_key_file is not None else ()
    sessions = {bundle.manifest.name: Session(bundle, options_for(path, request.options)) for path, bundle in opened}
    scheduler = Scheduler(sessions, request.limits, metrics.observe)
    metrics.watch(scheduler)
    hosts = frozenset(name.lower() for name in (*request.allowed_hosts, request.host))
    service = Service(scheduler, bundles, request.max_steps, request.max_images, keys, hosts, alone)

    app = application(service, metrics, lambda: _end(scheduler, request))
    scheduler.start()
    return Served(request, service, app)


def _end(scheduler: Scheduler, request: ServeRequest) -> None:
    """Of the work: what is begun has its time, then everybody is told. Twice is fine."""
    scheduler.close(drain=request.drain > 0, seconds=request.drain)


def run_server(request: ServeRequest, say: Callable[[str], object]) -> None:
    """Until SIGINT or SIGTERM. say: told the address when it listens."""
    import uvicorn

    class Ending(uvicorn.Server):
        """Ends the work at the first signal, so that whoever waits gets an answer before the connections are closed."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if not self.should_exit:
                threading.Thread(target=_end, args=(server.service.scheduler, request)).start()
            super().handle_exit(sig, frame)

    with _listening(request.host, request.port) as listening:
        server = served(request)
        config = uvicorn.Config(
            server.app,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            h11_max_incomplete_event_size=HEADER_BYTES,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=request.drain + ANSWER_SECONDS,
            proxy_headers=False,
            http="h11",
            ws="none",
        )
        for note in notes(request):
            say(f"note: {note}")
        say(f"serving {', '.join(server.service.bundles)} on {_address(listening)}; Ctrl-C ends it")
        try:
            asyncio.run(Ending(config).serve(sockets=[listening]))
        except KeyboardInterrupt:  # what uvicorn was stopped by, raised again by itself when all is over
            say("stopped")
        finally:
            server.close()


def notes(request: ServeRequest) -> list[str]:
    """What whoever starts it should know."""
    if request.api_key_file is None and not _is_loopback(request.host):
        return [f"whoever reaches {request.host}:{request.port} can use it: give --api-key-file"]
    return []


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listening(host: str, port: int) -> socket.socket:
    """Before anything is loaded. Raises RequestError."""
    try:
        family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(1024)
    except OSError as error:
        raise RequestError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; give another --host or --port"
        ) from None
    return listening


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
