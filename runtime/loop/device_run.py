"""One run of a program on a device: buffers, contexts and captured graphs for runs of one shape.

The tables lie in one arena, each row at an aligned offset; beside it the adaLN rows of all steps, the noise, and two
states that take turns. A run is one CUDA graph, or one for every few steps when somebody watches or may cancel, or
while noise is still being drawn. Graphs depend on shapes and addresses only, so a batch of other labels, seeds or
guidance replays them.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol

import numpy as np

from ..bundle.open import Bundle
from ..errors import Cancelled, EngineError
from ..plans.record import BuildRecord
from ..samplers.program import Program
from . import device_memory
from .device_memory import Arena, Memory, aligned
from .device_tables import CANCEL_STEPS, RunShape, arena_parts, parts_of_step
from .engine_trt import Context, Gpu, Plan, captured
from .loop import StepEvent, first_state
from .noise import NoiseSource
from .tables import StepTables

MODULATION_BYTES = 256 << 20  # adaLN rows on the device; more steps than fit are computed in blocks
NOISE_BYTES = 128 << 20  # of a run on the device, and as much pinned memory; more is uploaded a part at a time
WATCHED_AHEAD = 4  # steps enqueued ahead of the last one that a progress callback was told of
POLL_SECONDS = 1e-4


class Device(Protocol):
    """The plans of one folder on one GPU, as a run needs them (device_loop.DeviceLoop)."""

    bundle: Bundle
    gpu: Gpu
    record: BuildRecord
    plans: dict[str, Plan]
    graphs: bool  # whether its work can be captured
    stream: int

    def context(self, graph: str, shapes: Mapping[str, tuple[int, ...]]) -> Context: ...


def wait(gpu: Gpu, event: int) -> None:
    """Until the stream has passed `event`; the stream does not stop for it, and Ctrl-C is heard."""
    while not gpu.done(event):
        time.sleep(POLL_SECONDS)


class Run:
    """Buffers, contexts and graphs for runs of one shape."""

    def __init__(self, device: Device, shape: RunShape, tables: StepTables) -> None:
        self._device, self._gpu, self._shape = device, device.gpu, shape
        manifest = device.bundle.manifest
        model, steps, batch = manifest.model, len(shape.evaluations_of), shape.batch
        self._latent = model.latent_shape
        width = manifest.modulation_width
        self._row_bytes = 4 * width * shape.rows  # of one step
        limits = device.record.plans["conditioner"].profile.get(next(iter(tables.conditions)))
        most = max(1, limits.max[0] // shape.rows) if limits is not None else 1
        # One call writes the rows of several steps end to end: possible where each step's begin at an aligned address
        self._per_call = min(most, steps) if self._row_bytes % device_memory.ALIGNMENT == 0 else 1
        self._per_call = min(self._per_call, max(1, MODULATION_BYTES // self._row_bytes))
        calls = min(-(-steps // self._per_call), max(1, MODULATION_BYTES // (self._row_bytes * self._per_call)))
        self._block = calls * self._per_call  # steps whose rows are held at once

        self._memory = Memory(self._gpu)
        self._graphs: list[int] = []
        self._events: list[int] = []
        self._warm = False
        try:
            self._conditioner, self._contexts = self._make_contexts(tables, width)
            self._conditions = tuple(tables.conditions)
            self._arena = Arena(self._gpu, self._memory, arena_parts(tables, self._latent, self._per_call))
            self._modulation = self._memory.device(calls * self._per_call * aligned(self._row_bytes))
            self._state_shape = (batch, shape.slots, *self._latent)
            self._state_bytes = 4 * int(np.prod(self._state_shape))
            self._states = [self._memory.device(self._state_bytes) for _ in range(2)]
            self._plan_noise(4 * batch * int(np.prod(self._latent)), steps)
            few = {1: WATCHED_AHEAD, CANCEL_STEPS: 2}
            self._ahead = few.get(self._segment, -(-steps // self._segment))  # segments enqueued at most
            if 0 < self._noise_slots < steps:
                self._ahead = min(self._ahead, self._noise_slots // self._segment)
            self._start = self._memory.pinned(self._state_bytes)
            self._seen = [
                self._memory.pinned(self._state_bytes) for _ in range(self._ahead if shape.segment == 1 else 1)
            ]
            self._events = [self._gpu.event() for _ in range(self._ahead)]
        except BaseException:
            self.close()
            raise

    def _make_contexts(self, tables: StepTables, width: int) -> tuple[Context, dict[int, Context]]:
        """The conditioner's, and by E the step graph's: no shape changes between steps or within a captured graph."""
        shape = self._shape
        batch, slots, outputs = shape.batch, shape.slots, tables.evaluations[0].combine.shape[2]

        def step_inputs(evaluations: int) -> dict[str, tuple[int, ...]]:
            return {
                "state": (batch, slots, *self._latent),
                "sample": (evaluations,),
                "condition": (evaluations,),
                "modulation": (shape.rows, width),
                "combine": (batch, evaluations, outputs),
                "x0_from": (batch, 2),
                "x0_bound": (batch,),
                "log_sigma": (batch, 2),
                "mix": (batch, slots, slots + 2),
                "noise": (batch, *self._latent),
            }

        rows = (self._per_call * shape.rows,)
        conditioner = self._device.context("conditioner", dict.fromkeys(tables.conditions, rows))
        return conditioner, {count: self._device.context("step", step_inputs(count)) for count in {*shape.evaluations}}

    def _plan_noise(self, draw_bytes: int, steps: int) -> None:
        """Room for the noise of every step, or of as many segments as fit, at least two: filled in turn."""
        self._draw_bytes, self._segment = draw_bytes, self._shape.segment
        fit = max(2, NOISE_BYTES // aligned(draw_bytes))
        if not any(self._shape.draws):
            self._noise_slots = 0
        elif fit >= steps:
            self._noise_slots = steps
        else:
            self._segment = min(self._segment, fit // 2)
            self._noise_slots = fit // self._segment * self._segment
        self._noise = self._memory.device(self._noise_slots * aligned(draw_bytes)) if self._noise_slots else 0
        size = self._noise_slots * aligned(draw_bytes)
        self._noise_host = self._memory.pinned(size) if size else np.empty(0, dtype=np.uint8)

    def sample(
        self,
        program: Program,
        tables: StepTables,
        noise: NoiseSource,
        on_step: Callable[[StepEvent], None] | None,
        cancel: threading.Event | None,
    ) -> np.ndarray:
        steps, gpu, stream = program.steps, self._gpu, self._device.stream
        pending: deque[tuple[int, int]] = deque()  # (steps done, index of event and of pinned state)

        def deliver() -> None:
            done, index = pending[0]
            wait(self._gpu, self._events[index])
            pending.popleft()
            if on_step is not None:
                state = self._state_seen(index)
                on_step(StepEvent(done, steps, state[:, 0], state))

        try:
            self._upload(program, tables, noise)
            for index, first in enumerate(range(0, steps, self._segment)):
                while len(pending) >= self._ahead or (pending and gpu.done(self._events[pending[0][1]])):
                    deliver()
                if cancel is not None and cancel.is_set():
                    raise Cancelled(f"stopped before step {first + 1} of {steps}")
                last = min(first + self._segment, steps)
                self._upload_noise(noise, first, last)
                self._launch(index, first, last)
                slot = index % self._ahead
                if on_step is not None or last == steps:
                    seen = self._seen[slot % len(self._seen)]
                    gpu.copy(seen.ctypes.data, self._states[last % 2], self._state_bytes, stream)
                gpu.record(self._events[slot], stream)
                pending.append((last, slot))
            final = pending[-1][1]
            while pending:
                deliver()
        except BaseException:  # what is enqueued still reads and writes this run's memory: let it end
            with suppress(EngineError):  # the first failure is the one to report
                gpu.record(self._events[0], stream)
                wait(self._gpu, self._events[0])
            raise
        return self._state_seen(final)[:, 0].copy()

    def _state_seen(self, index: int) -> np.ndarray:
        """[B, K, C, H, W] float32: what a segment left, copied to the host."""
        seen = self._seen[index % len(self._seen)]
        return seen[: self._state_bytes].view(np.float32).reshape(self._state_shape)

    def _upload(self, program: Program, tables: StepTables, noise: NoiseSource) -> None:
        """Tables and initial state; one for all steps."""
        self._arena.upload(arena_parts(tables, self._latent, self._per_call), self._device.stream)
        start = self._start[: self._state_bytes].view(np.float32).reshape(self._state_shape)
        start[:] = first_state(program, noise)
        self._gpu.copy(self._states[0], self._start.ctypes.data, self._state_bytes, self._device.stream)

    def _upload_noise(self, noise: NoiseSource, first: int, last: int) -> None:
        """The draws of steps first .. last - 1, into slots that no enqueued work reads any more."""
        for step in range(first, last):
            if self._shape.draws[step]:
                at = step % self._noise_slots * aligned(self._draw_bytes)
                host = self._noise_host[at : at + self._draw_bytes]
                host.view(np.float32)[:] = noise.step(step).reshape(-1)
                self._gpu.copy(self._noise + at, host.ctypes.data, self._draw_bytes, self._device.stream)

    def _launch(self, index: int, first: int, last: int) -> None:
        """Enqueues steps first .. last - 1: as a graph, captured now when it is the first time."""
        if not self._device.graphs:
            self._enqueue(first, last)
            return
        if not self._warm:
            self._warm_up()
        if index == len(self._graphs) and not self._captured(first, last):
            self._enqueue(first, last)
            return
        self._gpu.launch(self._graphs[index], self._device.stream)

    def _captured(self, first: int, last: int) -> bool:
        """Whether the steps are a graph now. What cannot be captured is enqueued, from here on, and that is said."""
        try:
            with captured(self._gpu, self._device.stream, self._graphs):
                self._enqueue(first, last)
        except EngineError as error:
            self._device.graphs = False
            text = "these plans cannot be captured as a CUDA graph: every step is enqueued anew, which is slower"
            warnings.warn(f"{text} ({error})", RuntimeWarning, stacklevel=2)
            return False
        return True

    def _warm_up(self) -> None:
        """Runs every context once: TensorRT allocates and uploads at its first enqueue, which capture forbids."""
        self._modulate(0)
        for count in self._contexts:
            first = self._shape.evaluations_of.index(self._shape.evaluations.index(count))
            self._step(first, self._modulation, self._arena.address("silence"), (self._states[0], self._states[1]))
        self._warm = True

    def _enqueue(self, first: int, last: int) -> None:
        for step in range(first, last):
            if step % self._block == 0:
                end = min(step + self._block, len(self._shape.evaluations_of))
                for call in range(step // self._per_call, -(-end // self._per_call)):
                    self._modulate(call)
            drawn = self._arena.address("silence")
            if self._shape.draws[step]:
                drawn = self._noise + step % self._noise_slots * aligned(self._draw_bytes)
            modulation = self._modulation + step % self._block * aligned(self._row_bytes)
            self._step(step, modulation, drawn, (self._states[step % 2], self._states[(step + 1) % 2]))

    def _modulate(self, call: int) -> None:
        """Call `call` of the conditioner: the adaLN rows of a few steps."""
        context, place = self._conditioner, call * self._per_call % self._block
        for name in self._conditions:
            context.set_address(name, self._arena.address(f"{name}/{call}"))
        context.set_address("modulation", self._modulation + place * aligned(self._row_bytes))
        context.enqueue(self._device.stream)

    def _step(self, step: int, modulation: int, noise: int, states: tuple[int, int]) -> None:
        """states: addresses of the state and the next state."""
        context = self._contexts[self._shape.evaluations[self._shape.evaluations_of[step]]]
        addresses = {
            "state": states[0],
            "modulation": modulation,
            "noise": noise,
            **{name: self._arena.address(part) for name, part in parts_of_step(self._shape, step).items()},
        }
        inputs = self._device.plans["step"].inputs
        for key, address in addresses.items():
            if key in inputs:
                context.set_address(key, address)
        context.set_address("next_state", states[1])
        context.enqueue(self._device.stream)

    def close(self) -> None:
        """Only when nothing of this run is enqueued."""
        for graph in self._graphs:
            self._gpu.destroy_graph(graph)
        for event in self._events:
            self._gpu.destroy_event(event)
        self._graphs, self._events, self._contexts = [], [], {}
        self._memory.free()
