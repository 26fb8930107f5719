"""`POST /v1/images/generations`, as OpenAI's: pictures in the answer, or piece by piece as server-sent events."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from .files import png, said_of
from .meaning import images_of, picture_size
from .replies import base64_of, error_event, error_reply, event, events_reply, json_reply
from .service import Service
from .ticket import ENDED, Asked, Ticket
from .watching import cancel_all, changes, ended
from .wishes import OpenAIWish, read_wish

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

NO_TOKENS = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0, "input_tokens_details": None}


async def generations(request: Request) -> Response:
    """The answer when all pictures are there. A connection that is closed before cancels them."""
    from anyio.to_thread import run_sync

    service: Service = request.app.state.service
    wish: OpenAIWish = read_wish(OpenAIWish, await request.body())
    if wish.response_format == "url":
        service.check_remembers("addresses of pictures")
    model, images, tickets = await run_sync(submitted, service, wish)
    if wish.stream:
        return events_reply(_events(service, model, images, tickets))
    await ended(tickets, request)
    for ticket in tickets:
        if ticket.error is not None:
            return error_reply(ticket.error)
    if wish.response_format == "url":
        job = service.jobs.add(tickets, request.scope.get("ditedge.key"), "images")
        base = str(request.base_url).rstrip("/")
        data = [{"url": f"{base}/v1/images/{job.name}/{i}.png"} for i in range(len(tickets))]
    else:
        data = [{"b64_json": base64_of(await run_sync(_png, service, ticket))} for ticket in tickets]
    said = [one | _about(service, ticket) for one, ticket in zip(data, tickets, strict=True)]
    return json_reply(_header(service, model, images[0]) | {"model": model, "data": said})


def submitted(service: Service, wish: OpenAIWish) -> tuple[str, list[Asked], list[Ticket]]:
    """Raises DitedgeError."""
    model, images = images_of(service, wish)
    if wish.stream and wish.partial_images:
        every = -(-images[0].program.steps // (wish.partial_images + 1))
        _, images = images_of(service, wish.model_copy(update={"seed": images[0].seed}), every)
    return model, images, service.scheduler.submit(model, images)


def _png(service: Service, ticket: Ticket) -> bytes:
    assert ticket.image is not None
    return png(service.bundles[ticket.model], ticket.asked, ticket.image)


def _about(service: Service, ticket: Ticket) -> dict[str, Any]:
    return {"revised_prompt": said_of(service.bundles[ticket.model], ticket.asked), "seed": ticket.asked.seed}


def _header(service: Service, model: str, asked: Asked) -> dict[str, Any]:
    width, height = picture_size(service.bundles[model], asked.size)
    said = {"size": f"{width}x{height}", "quality": "high", "background": "opaque", "output_format": "png"}
    return {"created": int(time.time())} | said


async def _events(service: Service, model: str, images: list[Asked], tickets: list[Ticket]) -> AsyncIterator[bytes]:
    """Estimates as they come, and each picture when it is there. `index`: which of the pictures it is."""
    from anyio.to_thread import run_sync

    shown, partial, over = [0] * len(tickets), [0] * len(tickets), [False] * len(tickets)
    header = _header(service, model, images[0])
    header["created_at"] = header.pop("created")
    try:
        async for changed in changes(tickets):
            if not changed:
                yield b": still here\n\n"
            for i, ticket in enumerate(tickets):
                estimate = ticket.estimate
                if estimate is not None and estimate.step > shown[i] and ticket.state not in ENDED:
                    data = await run_sync(png, service.bundles[model], images[i], estimate.image, estimate.step)
                    said = {"b64_json": base64_of(data), "partial_image_index": partial[i], "index": i}
                    yield _said("partial_image", header | said | {"step": estimate.step, "steps": ticket.steps})
                    shown[i], partial[i] = estimate.step, partial[i] + 1
                if ticket.state in ENDED and not over[i]:
                    over[i] = True
                    if ticket.error is not None:
                        yield error_event(ticket)
                    else:
                        data = await run_sync(_png, service, ticket)
                        said = {"b64_json": base64_of(data), "index": i, "usage": NO_TOKENS}
                        yield _said("completed", header | said | _about(service, ticket))
    finally:
        cancel_all(tickets)  # those that are there stay


def _said(what: str, value: dict[str, Any]) -> bytes:
    name = f"image_generation.{what}"
    return event(name, {"type": name} | value)
