"""The application: which address is answered by what, inside the guard that every request passes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from ..errors import Cancelled, DitedgeError
from . import a1111_api, images_api, jobs_api, site
from .guard import Guard
from .metrics import Metrics, metrics
from .replies import on_error, on_http_error
from .service import Service

if TYPE_CHECKING:
    from starlette.applications import Starlette

ROUTES: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    *(("GET", address, site.page_file) for address in site.PAGE),
    ("GET", "/healthz", site.healthz),
    ("GET", "/readyz", site.readyz),
    ("GET", "/metrics", metrics),
    ("GET", "/openapi.json", site.openapi),
    ("GET", "/v1/models", site.models),
    ("GET", "/v1/status", site.status),
    ("POST", "/v1/images/generations", images_api.generations),
    ("GET", "/v1/images/{job}/{number:int}.png", jobs_api.picture),
    ("POST", "/v1/jobs", jobs_api.create),
    ("GET", "/v1/jobs/{job}", jobs_api.show),
    ("DELETE", "/v1/jobs/{job}", jobs_api.cancel),
    ("GET", "/v1/jobs/{job}/events", jobs_api.events),
    ("POST", "/sdapi/v1/txt2img", a1111_api.txt2img),
    ("GET", "/sdapi/v1/samplers", a1111_api.samplers),
    ("GET", "/sdapi/v1/sd-models", a1111_api.models),
    ("GET", "/sdapi/v1/options", a1111_api.options),
    ("GET", "/sdapi/v1/progress", a1111_api.progress),
    ("POST", "/sdapi/v1/interrupt", a1111_api.interrupt),
)


def application(service: Service, counted: Metrics, at_end: Callable[[], None]) -> Starlette:
    """at_end: called when the server stops, after the last answer."""
    from anyio.to_thread import run_sync
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.routing import Route

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await run_sync(at_end)

    handlers: dict[Any, Any] = {HTTPException: on_http_error, Exception: on_error}
    handlers |= dict.fromkeys((DitedgeError, Cancelled), on_error)  # those that are answered are no failures of ours
    routes = [Route(address, function, methods=[method]) for method, address, function in ROUTES]
    app = Starlette(
        routes=routes, middleware=[Middleware(Guard, service=service)], exception_handlers=handlers, lifespan=lifespan
    )
    app.state.service, app.state.metrics = service, counted
    return app
