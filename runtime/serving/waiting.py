"""Images that wait for a place in a batch: who comes next, and what they are told where too many do."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence

from ..errors import RequestError
from .ticket import Ticket

LONGEST_RETRY = 600  # seconds


class BusyError(RequestError):
    """The queue is full. retry_after: seconds, a guess from how long steps take now."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Waiting:
    """The queue of one bundle, in order of rank. Its owner has a lock."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Ticket]] = []
        self._count = itertools.count()  # of two of one rank, who came first

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def tickets(self) -> list[Ticket]:
        return [ticket for *_, ticket in self._heap]

    @property
    def steps(self) -> int:
        return sum(ticket.steps for ticket in self.tickets)

    def add(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            heapq.heappush(self._heap, (ticket.rank, next(self._count), ticket))

    def take(self, count: int) -> list[Ticket]:
        """The first ones that are ready, no longer waiting."""
        first = heapq.nsmallest(count, (entry for entry in self._heap if entry[2].ready))
        taken = [ticket for *_, ticket in first]
        if taken:
            self.keep([ticket for ticket in self.tickets if ticket not in taken])
        return taken

    def unready(self, ahead: int) -> Ticket | None:
        """Whose prompts are to be encoded next: of so many who come first, the first who is not ready."""
        first = (entry[2] for entry in heapq.nsmallest(ahead, self._heap))
        return next((ticket for ticket in first if not ticket.ready and ticket.state == "queued"), None)

    def keep(self, wanted: Sequence[Ticket]) -> None:
        """Only those of them that are in `wanted`."""
        kept = set(map(id, wanted))
        self._heap = [entry for entry in self._heap if id(entry[2]) in kept]
        heapq.heapify(self._heap)


def retry_after(steps: int, batch: int, seconds: float, waiting: int) -> int:
    """When a place in the queue is free. steps: still to be done; seconds: that a step of a batch takes."""
    return max(1, min(LONGEST_RETRY, math.ceil(steps / batch * seconds / max(1, waiting))))
