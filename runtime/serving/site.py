"""The page and its files, what is served, and how the server is. No path of a request is one of a file."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from ..bundle.open import Bundle
from ..samplers.settings import samplers_for
from .meaning import picture_size
from .openapi import document
from .replies import json_reply
from .service import Service
from .ticket import Ticket

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

PAGE = {  # address -> file of the folder `page`, and its kind
    "/": ("index.html", "text/html"),
    "/docs": ("docs.html", "text/html"),
    "/page/style.css": ("style.css", "text/css"),
    "/page/page.js": ("page.js", "text/javascript"),
    "/page/images.js": ("images.js", "text/javascript"),
    "/page/server.js": ("server.js", "text/javascript"),
    "/page/docs.js": ("docs.js", "text/javascript"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}


@cache
def _content(name: str) -> bytes:
    return (files(__package__) / "page" / name).read_bytes()


async def page_file(request: Request) -> Response:
    from starlette.responses import Response

    name, kind = PAGE[request.url.path]
    return Response(_content(name), media_type=kind, headers={"cache-control": "no-cache"})


async def healthz(request: Request) -> Response:
    """The process answers."""
    return json_reply({"status": "ok"})


async def readyz(request: Request) -> Response:
    """Images are taken on; 503 while the server is being stopped, or when its scheduler died."""
    ready = request.app.state.service.scheduler.alive
    return json_reply({"status": "ready" if ready else "not ready"}, 200 if ready else 503)


async def openapi(request: Request) -> Response:
    return json_reply(document())


async def models(request: Request) -> Response:
    """As OpenAI's, with what a page has to know of each."""
    service: Service = request.app.state.service
    return json_reply({"object": "list", "data": [_model(name, bundle) for name, bundle in service.bundles.items()]})


async def status(request: Request) -> Response:
    """Who shares a step now, by number, and how fast steps are."""
    service: Service = request.app.state.service
    scheduler = service.scheduler
    lanes = {
        model: {
            "running": [_row(ticket) for ticket in scheduler.running(model)],
            "waiting": len(scheduler.waiting(model)),
            "images_per_call": scheduler.a_call(model),
        }
        for model in service.bundles
    }
    counts = scheduler.counts
    return json_reply(
        {
            "models": lanes,
            "decoding": scheduler.decoding,
            "max_batch": scheduler.limits.max_batch,
            "turn_seconds": counts.mean_turn,
            "image_steps": counts.image_steps,
            "turns": counts.turns,
        }
    )


def _row(ticket: Ticket) -> dict[str, Any]:
    return {"number": ticket.number, "step": ticket.step, "steps": ticket.steps}


def _model(name: str, bundle: Bundle) -> dict[str, Any]:
    manifest, program = bundle.manifest, bundle.program()
    width, height = picture_size(bundle)
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "ditedge",
        "sha256": bundle.sha256,
        "width": width,
        "height": height,
        "classes": [bundle.label_name(i) for i in range(manifest.model.num_classes)],
        "text": manifest.text is not None,
        "guided": manifest.model.null_class is not None if manifest.text is None else manifest.text.guidance != "none",
        "negative": manifest.text is None or manifest.text.guidance == "true",
        "guidance": manifest.defaults.guidance,
        "sampler": program.made.get("sampler"),
        "steps": program.made.get("steps", program.steps),
        "samplers": samplers_for(manifest.model.prediction, betas=bundle.schedule is not None),
    }
