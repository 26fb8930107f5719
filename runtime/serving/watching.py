"""From the scheduler's threads to a coroutine: what changes, and that nobody listens any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from .ticket import ENDED, Ticket

if TYPE_CHECKING:
    from starlette.requests import Request

KEEP_ALIVE = 15.0  # seconds: proxies close a connection on which nothing is said


async def changes(tickets: Sequence[Ticket], end_only: bool = False) -> AsyncIterator[bool]:
    """Once now, and once after each change, until all have ended; False where it is only that time has passed.

    Changes while the one before is looked at are one: who reads slowly sees fewer.
    end_only: the end of a ticket is the only change.
    """
    loop, changed = asyncio.get_running_loop(), asyncio.Event()

    def told(ticket: Ticket) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(changed.set)

    for ticket in tickets:
        ticket.listen(told, end_only)
    news = True
    while True:
        changed.clear()
        over = all(ticket.state in ENDED for ticket in tickets)  # before they are looked at, so that no end is missed
        yield news or over
        if over:
            return
        try:
            await asyncio.wait_for(changed.wait(), KEEP_ALIVE)
            news = True
        except asyncio.TimeoutError:
            news = False


async def ended(tickets: Sequence[Ticket], request: Request) -> None:
    """Until all have; whoever closes the connection meanwhile wants none of them, and they are cancelled."""
    waiting, closing = asyncio.ensure_future(_all(tickets)), asyncio.ensure_future(_closed(request))
    try:
        await asyncio.wait((waiting, closing), return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not waiting.done():
            cancel_all(tickets)
        for task in (waiting, closing):
            task.cancel()
    if not waiting.done() or waiting.cancelled():
        await _all(tickets)


def cancel_all(tickets: Sequence[Ticket]) -> None:
    for ticket in tickets:
        ticket.cancel()


async def _all(tickets: Sequence[Ticket]) -> None:
    async for _ in changes(tickets, end_only=True):
        pass


async def _closed(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
