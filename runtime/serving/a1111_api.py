"""A1111's interface, as far as it means something here: txt2img, samplers, models, progress, interrupt."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from ..samplers import SAMPLERS
from ..samplers.settings import samplers_for
from .files import png
from .jobs import Job
from .meaning import images_of, picture_size
from .replies import base64_of, error_reply, json_reply
from .service import Service
from .ticket import ENDED
from .watching import ended
from .wishes import A1111Wish, read_wish

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

KIND = "txt2img"


async def txt2img(request: Request) -> Response:
    """The answer when all pictures are there. A connection that is closed before cancels them."""
    from anyio.to_thread import run_sync

    service: Service = request.app.state.service
    wish: A1111Wish = read_wish(A1111Wish, await request.body())

    def submit() -> Job:
        sized = service.bundle(wish.model).manifest.text is not None
        model, images = images_of(service, wish.wish(sized))
        return service.jobs.add(service.scheduler.submit(model, images), request.scope.get("ditedge.key"), KIND)

    job = await run_sync(submit)
    try:
        await ended(job.tickets, request)
    finally:
        service.jobs.forget(job.name)
    for ticket in job.tickets:
        if ticket.error is not None:
            return error_reply(ticket.error)
    return json_reply(await run_sync(_pictures, service, job, wish))


async def samplers(request: Request) -> Response:
    """Those that one of the models takes."""
    service: Service = request.app.state.service
    kinds = {(b.manifest.model.prediction, b.schedule is not None) for b in service.bundles.values()}
    fitting = {name for prediction, betas in kinds for name in samplers_for(prediction, betas=betas)}
    names = [name for name in SAMPLERS if name in fitting]
    return json_reply([{"name": name, "aliases": [], "options": {}} for name in names])


async def models(request: Request) -> Response:
    service: Service = request.app.state.service
    return json_reply(
        [
            {"title": name, "model_name": name, "hash": bundle.sha256[:10], "sha256": bundle.sha256, "filename": name}
            for name, bundle in service.bundles.items()
        ]
    )


async def options(request: Request) -> Response:
    service: Service = request.app.state.service
    return json_reply({"sd_model_checkpoint": service.default, "samples_format": "png"})


async def progress(request: Request) -> Response:
    """Of this key's oldest txt2img that goes on."""
    service: Service = request.app.state.service
    going_on = service.jobs.going_on(KIND, request.scope.get("ditedge.key"))
    if not going_on:
        return json_reply(_progress(0, 0, 0, 0, 0.0))
    tickets, seconds = going_on[0].tickets, time.time() - going_on[0].created
    done, steps = sum(ticket.step for ticket in tickets), sum(ticket.steps for ticket in tickets)
    left = seconds * (steps - done) / done if done else 0.0
    return json_reply(_progress(len(tickets), sum(t.state in ENDED for t in tickets), done, steps, left))


async def interrupt(request: Request) -> Response:
    """All of this key's txt2img that go on."""
    service: Service = request.app.state.service
    for job in service.jobs.going_on(KIND, request.scope.get("ditedge.key")):
        job.cancel()
    return json_reply({})


def _progress(jobs: int, ended: int, done: int, steps: int, left: float) -> dict[str, Any]:
    state = {"job_count": jobs, "job_no": ended, "sampling_step": done, "sampling_steps": steps, "interrupted": False}
    return {
        "progress": done / steps if steps else 0.0,
        "eta_relative": left,
        "state": state,
        "current_image": None,
        "textinfo": None,
    }


def _pictures(service: Service, job: Job, wish: A1111Wish) -> dict[str, Any]:
    bundle = service.bundles[job.tickets[0].model]
    asked = [ticket.asked for ticket in job.tickets]
    width, height = picture_size(bundle, asked[0].size)
    info = {
        "prompt": wish.prompt,
        "seed": asked[0].seed,
        "all_seeds": [one.seed for one in asked],
        "width": width,
        "height": height,
        "sampler_name": asked[0].program.made.get("sampler", asked[0].program.name),
        "steps": asked[0].program.steps,
        "cfg_scale": bundle.manifest.defaults.guidance if asked[0].guidance is None else asked[0].guidance,
        "sd_model_name": bundle.manifest.name,
    }
    pictures = [png(bundle, ticket.asked, ticket.image) for ticket in job.tickets if ticket.image is not None]
    return {
        "images": [base64_of(data) for data in pictures],
        "parameters": wish.model_dump(),
        "info": json.dumps(info),
    }
