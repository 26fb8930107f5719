"""Many images of several bundles, each a step at a time in one batch with whoever is there (docs/serving.md).

One thread owns the engines of the steps. Before every turn it drops who was cancelled or is too late and admits who
waits, then each bundle's images take one step together (`Session.advance`). So an image joins, and goes, after one step
at most, and it is the image that it is alone, for tables belong to one image. Nothing here knows of HTTP.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..errors import Cancelled, RequestError
from ..loop.session import Session
from ..samplers.program import with_x0_slot
from .calls import images_a_call
from .decoding import Decoding
from .options import Limits
from .preparing import Preparing
from .ticket import ENDED, Asked, LateError, Ticket
from .waiting import BusyError, Waiting, retry_after

log = logging.getLogger(__name__)
SMOOTHING = 0.1  # of the newest turn in the mean of how long they take


class ClosingError(RequestError):
    """Nothing new is taken on."""


@dataclass(frozen=True)
class Counts:
    """What was done since the start."""

    turns: int = 0  # steps of a batch
    image_steps: int = 0  # steps of images: over turns, how full the batches were
    step_seconds: float = 0.0  # in the engines
    turn_seconds: float = 0.0  # the same and everything around it
    mean_turn: float = 0.0  # seconds, of late


@dataclass(eq=False)
class _Lane:
    """One bundle's images."""

    session: Session
    a_call: int  # images in a call of the step graph
    waiting: Waiting = field(default_factory=Waiting)
    running: list[Ticket] = field(default_factory=list)


class Scheduler:
    """Tickets for images. `start` begins the work; `close` ends it and closes the sessions."""

    def __init__(
        self,
        sessions: Mapping[str, Session],
        limits: Limits | None = None,
        on_end: Callable[[Ticket], object] = lambda ticket: None,
    ) -> None:
        """sessions: by the name of their model; their engines are loaded here. on_end: told of every ticket's end."""
        self.limits = limits or Limits()
        for session in sessions.values():
            check_servable(session)
        self.sessions = dict(sessions)
        self.counts = Counts()
        self.refused = 0  # images
        self._on_end = on_end
        self._lanes = {name: _Lane(session, self._a_call(session)) for name, session in sessions.items()}
        self._decoding = Decoding(self.sessions)
        self._more = threading.Condition()  # guards the queues, and `_closing`
        self._closing = False
        self._preparing = Preparing(self.sessions, self._more, self._unready)
        self._freeing = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="ditedge-stepping", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _a_call(self, session: Session) -> int:
        return self.limits.a_call or images_a_call(session, self.limits.max_batch)

    @property
    def alive(self) -> bool:
        """Whether it works, or will when it is asked."""
        return self._thread.is_alive() and not self._closing

    def submit(self, model: str, images: Sequence[Asked]) -> list[Ticket]:
        """All of them or none. Raises RequestError for what does not fit the bundle, BusyError, ClosingError."""
        if model not in self._lanes:
            raise RequestError(f"model '{model}' is not one of {', '.join(self._lanes)}")
        lane = self._lanes[model]
        tickets = [self._ticket(model, lane.session, asked) for asked in images]
        with self._more:
            if self._closing:
                raise ClosingError("the server is being stopped: it takes nothing new on")
            self._check_room(lane, len(tickets))
            lane.waiting.add(tickets)
            self._more.notify_all()
        return tickets

    def a_call(self, model: str) -> int:
        """Images in a call of the engine."""
        return self._lanes[model].a_call

    def waiting(self, model: str) -> list[Ticket]:
        with self._more:
            return sorted(self._lanes[model].waiting.tickets, key=lambda ticket: ticket.rank)

    def running(self, model: str) -> list[Ticket]:
        """Who shares steps now."""
        return list(self._lanes[model].running)

    @property
    def decoding(self) -> int:
        """Images whose steps are done and whose pixels are not."""
        return self._decoding.backlog

    def close(self, drain: bool = True, seconds: float | None = None) -> None:
        """Takes nothing new on, and ends. drain: what was promised is made first, for so many `seconds`."""
        with self._more:
            self._closing = True
            self._more.notify_all()
        if self._thread.is_alive() and drain:
            self._thread.join(seconds)
        self._cancel_all()
        if self._thread.ident is not None:
            self._thread.join()
        self._preparing.close()
        self._decoding.close()
        with self._freeing:  # a signal and the server's own end may both come here
            for session in self.sessions.values():
                session.close()

    def turn(self) -> bool:
        """One step of everybody; False where nobody was there to take one. For the thread, and for tests without."""
        began = time.monotonic()
        self._drop(began)
        self._admit(began)
        stepped = [lane for lane in self._lanes.values() if lane.running]
        for lane in stepped:
            self._advance(lane)
        if stepped:
            self._count(time.monotonic() - began)
        return bool(stepped)

    def _ticket(self, model: str, session: Session, asked: Asked) -> Ticket:
        given = asked.program if asked.preview_every is None else with_x0_slot(asked.program)
        if asked.preview_every is not None and asked.preview_every < 1:
            raise RequestError(f"an estimate every {asked.preview_every} steps: give 1 or more")
        deadline = min(self.limits.max_seconds, asked.deadline or self.limits.max_seconds)
        run = session.start(
            given, asked.subject, asked.seed, guidance=asked.guidance, away_from=asked.away_from, size=asked.size
        )
        ready = session.is_prepared(run)
        return Ticket(model, replace(asked, deadline=deadline), run, on_end=self._on_end, ready=ready)

    def _unready(self) -> Ticket | None:
        """Whose prompts are to be encoded next."""
        found = (lane.waiting.unready(self.limits.max_batch) for lane in self._lanes.values())
        return min(filter(None, found), key=lambda ticket: ticket.rank, default=None)

    def _check_room(self, lane: _Lane, more: int) -> None:
        """Raises BusyError, with the time when a place may be free."""
        most = self.limits.max_queue
        if more > most:
            raise RequestError(f"{more} images at once, and the queue takes {most}: ask for fewer")
        if len(lane.waiting) + more <= most:
            return
        steps = lane.waiting.steps + sum(ticket.steps - ticket.step for ticket in lane.running)
        after = retry_after(steps, self.limits.max_batch, self.counts.mean_turn, len(lane.waiting))
        self.refused += more
        raise BusyError(f"{len(lane.waiting)} images wait, {more} more are over {most}: try again in {after} s", after)

    def _work(self) -> None:
        while True:
            with self._more:
                while not (self._closing or self._anybody()):
                    self._more.wait()
                if not self._anybody():
                    return
            if not self.turn():
                time.sleep(0.002)  # everybody waits for the decoder, or for the encoder of prompts

    def _anybody(self) -> bool:
        return any(lane.running or len(lane.waiting) for lane in self._lanes.values())

    def _cancel_all(self) -> None:
        for lane in self._lanes.values():
            with self._more:
                left = [*lane.waiting.tickets, *lane.running]
            for ticket in left:
                ticket.cancel()
        if not self._thread.is_alive():
            self._drop(time.monotonic())

    def _drop(self, now: float) -> None:
        """Who was cancelled, or is too late: before the next step."""
        for lane in self._lanes.values():
            with self._more:
                waiting = lane.waiting.tickets
                both = (*waiting, *lane.running)
                gone = [ticket for ticket in both if not ticket.wanted or ticket.late(now) or ticket.state in ENDED]
                if not gone:
                    continue
                lane.waiting.keep([ticket for ticket in waiting if ticket not in gone])
                lane.running = [ticket for ticket in lane.running if ticket not in gone]
                self._more.notify_all()  # others are first now, whose prompts may be still to be encoded
            for ticket in gone:  # those whose prompts failed have ended already
                ticket.end(None, _why(ticket))
                ticket.run.release()

    def _admit(self, now: float) -> None:
        """Who waits, by rank, where there is room; none while the decoder is behind by a batch."""
        for lane in self._lanes.values():
            room = self.limits.max_batch - len(lane.running)
            if self._decoding.backlog >= self.limits.max_batch:
                continue
            with self._more:
                admitted = lane.waiting.take(room)
                lane.running = [*lane.running, *admitted]
                if admitted:
                    self._more.notify_all()  # there is room for prompts to be encoded
            for ticket in admitted:
                ticket.started, ticket.state = now, "running"

    def _advance(self, lane: _Lane) -> None:
        began, moving = time.monotonic(), lane.running
        try:
            lane.session.advance([ticket.run for ticket in moving], a_call=lane.a_call)
        except Exception:
            log.exception("a step of %d images failed: each takes it alone", len(moving))
            self._advance_alone(lane)
        spent = time.monotonic() - began
        self.counts = replace(
            self.counts,
            image_steps=self.counts.image_steps + len(moving),
            step_seconds=self.counts.step_seconds + spent,
        )
        for ticket in moving:
            self._stepped(ticket, len(moving))
        lane.running = [ticket for ticket in moving if ticket.state == "running"]
        for ticket in moving:
            if ticket.state != "running":
                ticket.run.release()

    def _advance_alone(self, lane: _Lane) -> None:
        """After a step that failed: an image that an engine cannot take fails alone."""
        for ticket in lane.running:
            if ticket.run.step > ticket.step:
                continue  # its part of the batch was done
            try:
                lane.session.advance([ticket.run])
            except Exception as error:
                ticket.end(None, error)

    def _stepped(self, ticket: Ticket, together: int) -> None:
        if ticket.state != "running":
            return
        ticket.step, ticket.together = ticket.run.step, together
        ticket.tell()
        if ticket.run.done:
            ticket.state = "decoding"
            self._decoding.finish(ticket, ticket.run.latent)
        elif ticket.asked.preview_every is not None and ticket.step % ticket.asked.preview_every == 0:
            self._decoding.show(ticket, ticket.step, ticket.run.state[-1].copy())

    def _count(self, seconds: float) -> None:
        counts = self.counts
        mean = seconds if not counts.turns else counts.mean_turn + SMOOTHING * (seconds - counts.mean_turn)
        self.counts = replace(
            counts, turns=counts.turns + 1, turn_seconds=counts.turn_seconds + seconds, mean_turn=mean
        )


def _why(ticket: Ticket) -> Exception:
    """The error of one that takes no further step."""
    at = f"step {ticket.step} of {ticket.steps}"
    if not ticket.wanted:
        return Cancelled(f"cancelled after {at}")
    return LateError(f"not done within {ticket.asked.deadline:g} s ({at}): ask for fewer steps, or later")


def check_servable(session: Session) -> None:
    """Loads what will be needed. Raises RequestError for a bundle that cannot be sampled step by step, or shown."""
    bundle = session.bundle
    session.advance([])  # raises for plans
    pictures = [graph for graph in ("decoder", "preview") if graph in bundle.manifest.graphs]
    if not pictures:
        bundle.require("decoder")  # raises, with the remedy
    of_text = [f"text{suffix}" for suffix in bundle.manifest.text.encoders] if bundle.manifest.text is not None else []
    if not set(of_text) <= bundle.manifest.graphs.keys():
        raise RequestError(f"{bundle.folder} has no text encoder, which reads what requests say")
    for graph in ("conditioner", "step", *of_text, *({"context", "position"} & bundle.manifest.graphs.keys())):
        session.engine(graph)
    for graph in pictures:
        session.load(graph)
