"""Jobs: `POST /v1/jobs` answers at once; progress, events, pictures and the end of it are other requests."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from .files import png, said_of
from .jobs import Job
from .meaning import images_of
from .replies import base64_of, error_reply, event, events_reply, json_reply, picture_reply, status_of
from .service import Service, UnknownJobError
from .ticket import Ticket, sentence_of
from .watching import changes
from .wishes import JobWish, read_wish

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


async def create(request: Request) -> Response:
    from anyio.to_thread import run_sync

    service: Service = request.app.state.service
    service.check_remembers("jobs")
    wish: JobWish = read_wish(JobWish, await request.body())

    def submit() -> Job:
        model, images = images_of(service, wish, wish.preview_every)
        return service.jobs.add(service.scheduler.submit(model, images), request.scope.get("ditedge.key"), "job")

    job = await run_sync(submit)
    return json_reply(_job_said(service, job), 202, {"location": f"/v1/jobs/{job.name}"})


async def show(request: Request) -> Response:
    """Progress, with the newest estimate where ?preview=true."""
    service, job = _found(request)
    return json_reply(_job_said(service, job, request.query_params.get("preview") == "true"))


async def cancel(request: Request) -> Response:
    """Cancels what goes on; what has ended is forgotten."""
    service, job = _found(request)
    if job.ended:
        service.jobs.forget(job.name)
    job.cancel()
    return json_reply(_job_said(service, job))


async def events(request: Request) -> Response:
    """Every change as a server-sent event. ?attached=true: who closes the connection cancels the job."""
    service, job = _found(request)
    return events_reply(_events(service, job, request.query_params.get("attached") == "true"))


async def picture(request: Request) -> Response:
    """A PNG. No key is asked for: nobody guesses the name of a job."""
    from anyio.to_thread import run_sync

    service, ticket = _picture_of(request)
    if ticket.error is not None:
        return error_reply(ticket.error)
    if ticket.image is None:
        raise UnknownJobError(f"this picture is not there yet: step {ticket.step} of {ticket.steps}")
    return picture_reply(await run_sync(png, service.bundles[ticket.model], ticket.asked, ticket.image))


def _picture_of(request: Request) -> tuple[Service, Ticket]:
    service: Service = request.app.state.service
    job, number = service.jobs.get(request.path_params["job"]), request.path_params["number"]
    if job is None or number >= len(job.tickets):
        raise UnknownJobError("there is no such picture, or it is forgotten by now")
    return service, job.tickets[number]


def _found(request: Request) -> tuple[Service, Job]:
    """One's own job: another key's is none."""
    service: Service = request.app.state.service
    job = service.jobs.get(request.path_params["job"])
    if job is None or job.key != request.scope.get("ditedge.key"):
        raise UnknownJobError("there is no such job, or it is forgotten by now")
    return service, job


async def _events(service: Service, job: Job, attached: bool) -> AsyncIterator[bytes]:
    from anyio.to_thread import run_sync

    shown = -1
    try:
        async for changed in changes(job.tickets):
            if not changed:
                yield b": still here\n\n"
                continue
            newest = sum(ticket.estimate.step for ticket in job.tickets if ticket.estimate is not None)
            yield event("job", await run_sync(_job_said, service, job, newest != shown))
            shown = newest
    finally:
        if attached:
            job.cancel()


def _job_said(service: Service, job: Job, preview: bool = False) -> dict[str, Any]:
    return {
        "id": job.name,
        "object": "job",
        "status": job.status,
        "created": int(job.created),
        "model": job.tickets[0].model,
        "images": [_ticket_said(service, job, i, preview) for i in range(len(job.tickets))],
    }


def _ticket_said(service: Service, job: Job, i: int, preview: bool) -> dict[str, Any]:
    ticket = job.tickets[i]
    bundle, asked = service.bundles[ticket.model], ticket.asked
    said: dict[str, Any] = {
        "number": ticket.number,
        "status": ticket.state,
        "prompt": said_of(bundle, asked),
        "seed": asked.seed,
        "program": asked.program.name,
        "step": ticket.step,
        "steps": ticket.steps,
        "together": ticket.together,
        "queued_seconds": (ticket.started or ticket.ended or time.monotonic()) - ticket.submitted,
        "seconds": (ticket.ended or time.monotonic()) - ticket.submitted,
    }
    if ticket.image is not None:
        said["url"] = f"/v1/images/{job.name}/{i}.png"
    if ticket.error is not None:
        said["error"] = {"message": sentence_of(ticket.error), "code": status_of(ticket.error)[1]}
    if preview and ticket.estimate is not None and ticket.image is None:
        data = png(bundle, asked, ticket.estimate.image, ticket.estimate.step)
        said["preview"] = {"step": ticket.estimate.step, "b64_png": base64_of(data)}
    return said
