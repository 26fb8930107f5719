"""From threads to a coroutine: the end is seen, whenever it comes."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from ditedge.runtime.serving import watching


class Silent(SimpleNamespace):
    """A ticket whose end nobody is told of: as where it falls together with a time that is over."""

    state = "running"

    def listen(self, told: Any, end_only: bool) -> None: ...


def test_an_end_between_two_looks_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "KEEP_ALIVE", 0.001)
    ticket = Silent()

    async def watch() -> list[bool]:
        seen = []
        async for news in watching.changes([ticket]):  # type: ignore[list-item]
            seen.append(news)
            ticket.state = "done" if len(seen) == 3 else ticket.state
        return seen

    assert asyncio.run(asyncio.wait_for(watch(), 60)) == [True, False, False, True]
