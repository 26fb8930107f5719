"""Random mixes of images, as clients would send them, and the same images alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ditedge.runtime import generate, open_bundle
from ditedge.runtime.bundle.open import Bundle
from ditedge.runtime.loop.engine import EngineOptions
from ditedge.runtime.loop.session import Session
from ditedge.runtime.serving.options import Limits
from ditedge.runtime.serving.scheduler import Scheduler
from ditedge.runtime.serving.ticket import Asked, Ticket

SAMPLERS = ("ddpm", "ddim", "euler", "euler-ancestral", "heun", "dpm++", "sde-dpm++", "unipc", "deis", "lms")


@dataclass(frozen=True)
class Sent:
    """An image, the turn before which it comes, and the one before which it is cancelled."""

    asked: Asked
    turn: int
    cancelled: int | None


@contextmanager
def scheduling(*folders: Path, start: bool = False, **limits: Any) -> Iterator[Scheduler]:
    sessions = {folder.name: Session(open_bundle(folder), EngineOptions(threads=1)) for folder in folders}
    scheduler = Scheduler(sessions, Limits(**limits))
    if start:
        scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.close(drain=False)


def random_image(bundle: Bundle, random: np.random.Generator) -> Asked:
    model = bundle.manifest.model
    sampler = str(random.choice(SAMPLERS))
    program = bundle.program(sampler=sampler, steps=int(random.integers(1, 51)))
    guided = model.null_class is not None
    return Asked(
        subject=int(random.integers(model.num_classes)),
        seed=int(random.integers(2**63)),
        program=program,
        guidance=float(random.choice([1.0, 1.5, 4.0, 7.5])) if guided else 1.0,
        away_from=int(random.integers(model.num_classes)) if guided and random.random() < 0.2 else None,
        priority=int(random.integers(-1, 2)),
    )


def random_mix(bundle: Bundle, random: np.random.Generator) -> list[Sent]:
    """1 to 8 images over some 40 turns, a fifth of them cancelled."""
    sent = []
    for _ in range(int(random.integers(1, 9))):
        turn = int(random.integers(40))
        cancelled = turn + int(random.integers(1, 30)) if random.random() < 0.2 else None
        sent.append(Sent(random_image(bundle, random), turn, cancelled))
    return sorted(sent, key=lambda one: one.turn)


def through(scheduler: Scheduler, model: str, mix: list[Sent]) -> list[Ticket]:
    """The mix, turn by turn, without the scheduler's own thread -> every ticket, in order, ended."""
    tickets: list[Ticket] = []
    turn = 0
    while len(tickets) < len(mix) or any(ticket.state in ("queued", "running") for ticket in tickets):
        while len(tickets) < len(mix) and mix[len(tickets)].turn <= turn:
            tickets += scheduler.submit(model, [mix[len(tickets)].asked])
        for ticket, one in zip(tickets, mix, strict=False):
            if one.cancelled is not None and one.cancelled <= turn:
                ticket.cancel()
        scheduler.turn()
        turn += 1
    return tickets


def alone(session: Session, asked: Asked) -> np.ndarray:
    """The picture of a run of this one image."""
    away = None if asked.away_from is None else [asked.away_from]
    settings = {"program": asked.program, "guidance": asked.guidance, "away_from": away, "session": session}
    if "decoder" in session.bundle.manifest.graphs:
        return generate(session.bundle, [asked.subject], [asked.seed], **settings)[0]
    latents = generate(session.bundle, [asked.subject], [asked.seed], output="latents", **settings)
    return session.preview(latents)[0]


def with_previews(asked: Asked, every: int) -> Asked:
    return replace(asked, preview_every=every)
