"""Noise that a thread draws while the device works on earlier steps: as much as one segment ahead, in order."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from .device_tables import Segment
from .noise import NoiseSource


class NoiseAhead:
    """Draws into a ring of pinned memory. One thread at a time asks the source, for the steps in order.

    Leave it as a context manager: what is being drawn still writes into the ring.
    """

    def __init__(self, noise: NoiseSource, draws: Sequence[bool], ring: np.ndarray, draw_bytes: int) -> None:
        """draws: per step, whether it adds noise. ring: uint8 [slots, draw_bytes or more]: step n takes n % slots."""
        self._noise, self._draws, self._ring, self._draw_bytes = noise, draws, ring, draw_bytes
        self._thread = ThreadPoolExecutor(1, "ditedge-noise") if any(draws) else None
        self._drawing: Future[dict[int, int]] | None = None

    def begin(self, segment: Segment) -> None:
        """Starts with a segment's draws, into slots that no enqueued work reads any more."""
        if self._thread is not None:
            self._drawing = self._thread.submit(self._draw, segment.first, segment.last)

    def take(self) -> dict[int, int]:
        """What was begun, when it is done: by step, the address. Raises what the source raised."""
        return self._drawing.result() if self._drawing is not None else {}

    def _draw(self, first: int, last: int) -> dict[int, int]:
        drawn = {}
        for step in range(first, last):
            if self._draws[step]:
                slot = self._ring[step % len(self._ring)]
                slot[: self._draw_bytes].view(np.float32)[:] = self._noise.step(step).reshape(-1)
                drawn[step] = slot.ctypes.data
        return drawn

    def __enter__(self) -> NoiseAhead:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
