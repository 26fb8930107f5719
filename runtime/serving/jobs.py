"""Jobs: images that are asked for now and fetched later, by a name that nobody guesses."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from .ticket import ENDED, Ticket

MOST = 1000  # jobs that are remembered; those that go on are never forgotten
MOST_BYTES = 256 << 20  # of their pixels
Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]


@dataclass(frozen=True)
class Job:
    """key: the one that asked for it, where there are keys. kind: what it came by."""

    name: str
    tickets: tuple[Ticket, ...]
    key: int | None
    kind: str
    created: float = field(default_factory=time.time)

    @property
    def ended(self) -> bool:
        return all(ticket.state in ENDED for ticket in self.tickets)

    @property
    def status(self) -> Status:
        states = {ticket.state for ticket in self.tickets}
        for state in ("failed", "cancelled"):
            if state in states and self.ended:
                return state  # type: ignore[return-value]
        return "succeeded" if self.ended else "queued" if states == {"queued"} else "running"

    @property
    def bytes(self) -> int:
        return sum(ticket.image.nbytes for ticket in self.tickets if ticket.image is not None)

    def cancel(self) -> None:
        for ticket in self.tickets:
            ticket.cancel()


class Jobs:
    """The last ones, by name. For any thread."""

    def __init__(self, most: int = MOST, most_bytes: int = MOST_BYTES) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, tickets: Sequence[Ticket], key: int | None, kind: str) -> Job:
        """Forgets the oldest that have ended, where there are too many."""
        job = Job(secrets.token_urlsafe(18), tuple(tickets), key, kind)
        with self._lock:
            self._jobs[job.name] = job
            size = sum(one.bytes for one in self._jobs.values())
            for old in [one for one in self._jobs.values() if one.ended]:
                if len(self._jobs) <= self._most and size <= self._most_bytes:
                    break
                size -= old.bytes
                del self._jobs[old.name]
        return job

    def get(self, name: str) -> Job | None:
        with self._lock:
            return self._jobs.get(name)

    def forget(self, name: str) -> None:
        with self._lock:
            self._jobs.pop(name, None)

    def going_on(self, kind: str, key: int | None) -> list[Job]:
        """The jobs of one key that came by `kind` and have not ended, the oldest first."""
        with self._lock:
            return [job for job in self._jobs.values() if job.kind == kind and job.key == key and not job.ended]
