"""One run of a program on a device: tables up, steps enqueued a segment at a time, the sample down.

The host stays AHEAD steps in front of the device, polls events, and never stops the stream. The noise of the next
segment is drawn while it waits. The state comes to the host where somebody looks at it, and at the end.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from ..errors import Cancelled, EngineError
from ..samplers.program import Program
from .device import Device, wait
from .device_memory import Arena, Memory, aligned
from .device_modulation import Modulation
from .device_prompts import Prompts
from .device_steps import Steps
from .device_tables import AHEAD, SEGMENT, RunShape, Segment, records_of, segments
from .loop import StepEvent, Told, looks_of
from .noise import NoiseSource
from .noise_ahead import NoiseAhead
from .tables import StepTables


@dataclass(frozen=True)
class Batch:
    """What is sampled at once. told: what is made of its prompts; state: [B, K, C, H, W] float32, the first one."""

    program: Program
    tables: StepTables
    told: Mapping[str, np.ndarray]
    state: np.ndarray
    noise: NoiseSource


@dataclass(frozen=True)
class _Enqueued:
    segment: Segment
    slot: int  # of its event, and of the state that it leaves for the host


class Run:
    """Buffers, contexts and graphs for runs of one shape."""

    def __init__(self, device: Device, shape: RunShape, tables: StepTables, told: Mapping[str, np.ndarray]) -> None:
        self._device, self._gpu, self._shape = device, device.gpu, shape
        self._state_shape = (shape.batch, shape.slots, *shape.latent)
        self._state_bytes = 4 * int(np.prod(self._state_shape))
        self._memory = Memory(self._gpu)
        self._seen: list[np.ndarray] = []  # pinned: states for who looks at them, by slot
        self._ring = np.empty((0, 0), dtype=np.uint8)  # pinned: noise of the next steps
        self._events: list[int] = []
        try:
            self._modulation = Modulation(device, self._memory, shape, tables.conditions, told.get("vector"))
            self._arena = Arena(self._gpu, self._memory, self._records(tables, told))
            self._prompts = Prompts(self._gpu, self._memory, told)
            self._steps = Steps(device, self._memory, shape, tables, self._modulation, self._prompts)
            self._ends = self._memory.pinned(self._state_bytes)  # the first state, and then the last one
            for _ in range(AHEAD):
                self._events.append(self._gpu.event())
        except BaseException:
            self._free()
            raise

    def _records(self, tables: StepTables, told: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
        return records_of(tables, told.get("vector"), self._shape.latent, self._modulation.per_call)

    def sample(self, batch: Batch, on_step: Told | None, cancel: threading.Event | None) -> np.ndarray:
        """-> latents [B, C, H, W] float32. Raises Cancelled, EngineError, and what `noise` and `on_step` raise."""
        tables, program = batch.tables, batch.program
        cuts = list(segments(tables, looks_of(on_step)))
        draws = [program.draws_noise(step) for step in range(program.steps)]
        self._make_room(any(draws), any(segment.looked_at for segment in cuts))
        try:
            self._upload(batch)
            with NoiseAhead(batch.noise, draws, self._ring, self._steps.draw_bytes) as ahead:
                self._enqueue(cuts, tables, ahead, on_step, cancel)
        except BaseException:  # what is enqueued still reads and writes this run's memory: let it end
            with suppress(EngineError):  # the first failure is the one to report
                self._gpu.record(self._events[0], self._device.stream)
                wait(self._gpu, self._events[0])
            raise
        return self._state(self._ends)[:, 0].copy()

    def _make_room(self, draws: bool, looked_at: bool) -> None:
        """Pinned memory that not every run needs: for what is on its way, and for the segment that is drawn."""
        if draws and not len(self._ring):
            slots = min(AHEAD + SEGMENT, self._shape.steps)
            draw = aligned(self._steps.draw_bytes)
            self._ring = self._memory.pinned(slots * draw).reshape(slots, draw)
        if looked_at and not self._seen:
            self._seen = [self._memory.pinned(self._state_bytes) for _ in range(min(AHEAD, self._shape.steps))]

    def _upload(self, batch: Batch) -> None:
        """Tables, what is made of prompts, and initial state; one for all steps."""
        self._arena.upload(self._records(batch.tables, batch.told), self._device.stream)
        self._prompts.upload(batch.tables.prompts, batch.told, self._device.stream)
        self._state(self._ends)[:] = batch.state
        self._gpu.copy(self._steps.states[0], self._ends.ctypes.data, self._state_bytes, self._device.stream)
        self._steps.begin()

    def _enqueue(
        self,
        cuts: list[Segment],
        tables: StepTables,
        ahead: NoiseAhead,
        on_step: Told | None,
        cancel: threading.Event | None,
    ) -> None:
        """All segments, each when there is room for it."""
        steps, pending = tables.steps, deque[_Enqueued]()
        ahead.begin(cuts[0])
        for index, segment in enumerate(cuts):
            while pending and (segment.last - pending[0].segment.first > AHEAD or self._passed(pending[0])):
                self._deliver(pending.popleft(), steps, on_step)
            if cancel is not None and cancel.is_set():
                raise Cancelled(f"stopped before step {segment.first + 1} of {steps}")
            self._steps.stage(segment, tables.evaluations_of, self._arena, ahead.take())
            self._steps.launch(segment)
            pending.append(self._leave(segment, index % AHEAD, segment.last == steps))
            if segment.last < steps:
                ahead.begin(cuts[index + 1])
        while pending:
            self._deliver(pending.popleft(), steps, on_step)

    def _leave(self, segment: Segment, slot: int, final: bool) -> _Enqueued:
        """Enqueues what follows a segment: the state for who looks at it, and at the end, and the event."""
        state = self._steps.states[segment.last % 2]
        for wanted, room in ((segment.looked_at, self._seen[slot : slot + 1]), (final, [self._ends])):
            if wanted:
                self._gpu.copy(room[0].ctypes.data, state, self._state_bytes, self._device.stream)
        self._gpu.record(self._events[slot], self._device.stream)
        return _Enqueued(segment, slot)

    def _passed(self, enqueued: _Enqueued) -> bool:
        return self._gpu.done(self._events[enqueued.slot])

    def _deliver(self, enqueued: _Enqueued, steps: int, on_step: Told | None) -> None:
        """Tells of a segment's steps when it is done."""
        wait(self._gpu, self._events[enqueued.slot])
        if on_step is None:
            return
        segment = enqueued.segment
        for done in range(segment.first + 1, segment.last + 1):
            seen = done == segment.last and segment.looked_at
            on_step(StepEvent(done, steps, self._state(self._seen[enqueued.slot]) if seen else None))

    def _state(self, pinned: np.ndarray) -> np.ndarray:
        """[B, K, C, H, W] float32 in pinned memory."""
        return pinned[: self._state_bytes].view(np.float32).reshape(self._state_shape)

    def close(self) -> None:
        """Only when nothing of this run is enqueued."""
        self._steps.close()
        self._free()

    def _free(self) -> None:
        for event in self._events:
            self._gpu.destroy_event(event)
        self._events = []
        self._memory.free()
