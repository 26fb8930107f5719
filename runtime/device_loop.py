"""The sampling loop on a device: everything uploaded ahead, every step enqueued, captured once and replayed.

What `Sampler` binds step by step lies on the device at once: the tables in one arena, each row at an aligned offset;
the adaLN rows of all steps; the noise; two states that take turns. A run is one CUDA graph, or one for every few steps
when somebody watches or may cancel, or while noise is still being drawn. Graphs depend on shapes and addresses only,
so a batch of other labels, seeds or guidance replays them. The host waits by polling events: it never stops the
stream, and Ctrl-C is heard.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import engine_trt
from .bundle import Bundle
from .engine_trt import Context, Gpu, captured, check_fits, check_plans, check_shape, load_plans
from .errors import Cancelled, EngineError
from .programs import Program
from .sampler import NoiseSource, StepEvent, StepTables

ALIGNMENT = 256  # bytes: what TensorRT asks of every tensor's address
MODULATION_BYTES = 256 << 20  # adaLN rows on the device; more steps than fit are computed in blocks
NOISE_BYTES = 128 << 20  # of a run on the device, and as much pinned memory; more is uploaded a part at a time
WATCHED_AHEAD = 4  # steps enqueued ahead of the last one that a progress callback was told of
CANCEL_STEPS = 4  # steps enqueued at a time when the run may be cancelled
DRAWN_STEPS = 10  # steps enqueued at a time when they add noise: the host draws the next while the device works
RUNS_KEPT = 2  # shapes whose buffers and graphs are kept: whole batches, and the last one
POLL_SECONDS = 1e-4


def aligned(size: int) -> int:
    """size rounded up to where the next tensor may begin."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class RunShape:
    """What buffers and graphs depend on."""

    guided: tuple[bool, ...]  # per step
    draws: tuple[bool, ...]  # per step: whether it adds noise
    batch: int
    slots: int
    rows: int
    segment: int  # steps enqueued at a time


def run_shape(program: Program, tables: StepTables, watched: bool, cancellable: bool) -> RunShape:
    draws = tuple(program.draws_noise(step) for step in range(program.steps))
    segment = 1 if watched else CANCEL_STEPS if cancellable else DRAWN_STEPS if any(draws) else program.steps
    return RunShape(
        guided=tuple(map(bool, tables.guided)),
        draws=draws,
        batch=len(tables.x0_bound),
        slots=program.slots,
        rows=len(tables.labels),
        segment=min(segment, program.steps),
    )


def arena_parts(tables: StepTables, latent: tuple[int, ...], steps_per_call: int) -> dict[str, np.ndarray]:
    """Every array that the graphs read but state, noise and modulation, by the name under which it is bound.

    timestep/c and label/c are what call c of the conditioner reads: `steps_per_call` steps x R rows; the steps after
    the last are copies of it.
    """
    steps, rows = len(tables.timestep), len(tables.labels)
    parts = {
        "sample": tables.sample,
        "condition": tables.condition,
        "combine_guided": tables.combine_guided,
        "combine_plain": tables.combine_plain,
        "x0_bound": tables.x0_bound,
        "silence": np.zeros((len(tables.x0_bound), *latent), dtype=np.float32),
    }
    for step in range(steps):
        parts |= {f"{name}/{step}": getattr(tables, name)[step] for name in ("x0_from", "log_sigma", "mix")}
    for call in range(-(-steps // steps_per_call)):
        chosen = np.minimum(np.arange(call * steps_per_call, (call + 1) * steps_per_call), steps - 1)
        parts[f"timestep/{call}"] = np.repeat(tables.timestep[chosen], rows)
        parts[f"label/{call}"] = np.tile(tables.labels, steps_per_call)
    return parts


def part_of_step(name: str, step: int) -> str:
    """The arena's name of what a step binds to an input that has one row per step."""
    return f"{name}/{step}"


class Memory:
    """Device and pinned memory of one owner, freed together."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._device: list[int] = []
        self._pinned: list[np.ndarray] = []

    def device(self, size: int) -> int:
        self._device.append(self._gpu.malloc(aligned(size)))
        return self._device[-1]

    def pinned(self, size: int) -> np.ndarray:
        self._pinned.append(self._gpu.malloc_host(aligned(size)))
        return self._pinned[-1]

    def free(self) -> None:
        while self._device:
            self._gpu.free(self._device.pop())
        while self._pinned:
            self._gpu.free_host(self._pinned.pop())


class Arena:
    """Arrays at aligned offsets of one device buffer, uploaded in one copy."""

    def __init__(self, gpu: Gpu, memory: Memory, parts: Mapping[str, np.ndarray]) -> None:
        self._gpu, self._offsets, end = gpu, dict[str, int](), 0
        for name, array in parts.items():
            self._offsets[name] = end
            end += aligned(array.nbytes)
        self._size = end
        self._base, self._host = memory.device(end), memory.pinned(end)

    def upload(self, parts: Mapping[str, np.ndarray], stream: int) -> None:
        """Only when no earlier upload is under way: the pinned memory is one."""
        for name, array in parts.items():
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            self._host[self._offsets[name] : self._offsets[name] + array.nbytes] = flat
        self._gpu.copy(self._base, self._host.ctypes.data, self._size, stream)

    def address(self, name: str) -> int:
        return self._base + self._offsets[name]


class DeviceSampler:
    """The plans of one folder on one GPU: what `Sampler` hands its work to. One caller at a time."""

    def __init__(self, bundle: Bundle, folder: Path, cuda_graphs: bool = True, gpu: Gpu | None = None) -> None:
        self.bundle = bundle
        self.gpu = gpu if gpu is not None else engine_trt.NvidiaGpu()
        self.record, files = check_plans(bundle, folder, self.gpu)
        self.plans = load_plans(self.record, files, self.gpu)
        self.graphs = cuda_graphs and self.plans["step"].capturable and self.plans["conditioner"].capturable
        self.stream = self.gpu.stream()
        self._memory = Memory(self.gpu)
        # Never moved: captured graphs hold its address. Used by one graph at a time: there is one stream.
        self.scratch_size = max([ALIGNMENT, *(plan.scratch_bytes for plan in self.plans.values())])
        self.scratch = self._memory.device(self.scratch_size)
        self._runs: dict[RunShape, _Run] = {}  # the most recently used last
        self._decoders: dict[int, _Decoder] = {}  # by images at a time
        self._open = True

    def latents(
        self,
        program: Program,
        tables: StepTables,
        noise: NoiseSource,
        on_step: Callable[[StepEvent], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> np.ndarray:
        """Runs the whole program on one batch -> latents [B, C, H, W] float32. Raises Cancelled, RequestError."""
        shape = run_shape(program, tables, on_step is not None, cancel is not None)
        check_fits(self.record, shape.batch, shape.rows)
        run = self._runs.pop(shape, None)
        if run is None:
            while len(self._runs) >= RUNS_KEPT:
                self._runs.pop(next(iter(self._runs))).close()
            run = _Run(self, shape, tables)
        self._runs[shape] = run
        return run.sample(program, tables, noise, on_step, cancel)

    def images(self, latents: np.ndarray, size: tuple[int, int, int], count: int) -> np.ndarray:
        """latents [B, C, H, W] float32 -> uint8 [B, *size], at most `count` pictures at a time."""
        limits = self.record.plans["decoder"].profile.get("latent")
        count = min(count, len(latents), limits.max[0] if limits is not None else count)
        images = np.empty((len(latents), *size), dtype=np.uint8)
        for first in range(0, len(latents), count):
            part = np.ascontiguousarray(latents[first : first + count])
            if len(part) not in self._decoders:
                self._decoders[len(part)] = _Decoder(self, part.shape, size)
            images[first : first + count] = self._decoders[len(part)].decode(part)
        return images

    def context(self, graph: str, shapes: Mapping[str, tuple[int, ...]]) -> Context:
        """An execution context for inputs of these shapes, on the shared scratch memory."""
        plan, context = self.plans[graph], self.plans[graph].context(self.stream)
        for name, shape in shapes.items():
            if name in plan.inputs:
                check_shape(self.record, graph, name, shape)
                context.set_shape(name, shape)
        context.set_memory(self.scratch, self.scratch_size)
        return context

    def wait(self, event: int) -> None:
        """Until the stream has passed `event`; the stream does not stop for it."""
        while not self.gpu.done(event):
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        """Frees everything. Calling it twice is fine."""
        if not self._open:
            return
        self._open = False
        self.gpu.synchronize(self.stream)
        for run in self._runs.values():
            run.close()
        for decoder in self._decoders.values():
            decoder.close()
        self._runs, self._decoders, self.plans = {}, {}, {}
        self._memory.free()
        self.gpu.destroy_stream(self.stream)


class _Run:
    """Buffers, contexts and graphs for runs of one shape."""

    def __init__(self, device: DeviceSampler, shape: RunShape, tables: StepTables) -> None:
        self._device, self._gpu, self._shape = device, device.gpu, shape
        manifest = device.bundle.manifest
        model, steps, batch = manifest.model, len(shape.guided), shape.batch
        self._latent = (model.in_channels, model.input_size, model.input_size)
        width = int(manifest.graphs["conditioner"].outputs[0].shape[1])
        self._row_bytes = 4 * width * shape.rows  # of one step
        limits = device.record.plans["conditioner"].profile.get("label")
        most = max(1, limits.max[0] // shape.rows) if limits is not None else 1
        # One call writes the rows of several steps end to end: possible where each step's begin at an aligned address
        self._per_call = min(most, steps) if self._row_bytes % ALIGNMENT == 0 else 1
        self._per_call = min(self._per_call, max(1, MODULATION_BYTES // self._row_bytes))
        calls = min(-(-steps // self._per_call), max(1, MODULATION_BYTES // (self._row_bytes * self._per_call)))
        self._block = calls * self._per_call  # steps whose rows are held at once

        self._memory = Memory(self._gpu)
        self._graphs: list[int] = []
        self._events: list[int] = []
        self._warm = False
        try:
            self._contexts = self._make_contexts(tables, width)
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

    def _make_contexts(self, tables: StepTables, width: int) -> dict[str, Context]:
        """One per shape of the step graph, so that no shape changes between steps or within a captured graph."""
        shape = self._shape
        batch, slots, outputs = shape.batch, shape.slots, tables.combine_plain.shape[2]

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
        contexts = {"conditioner": self._device.context("conditioner", {"timestep": rows, "label": rows})}
        for name, wanted, evaluations in (("guided", True, 2 * batch), ("plain", False, batch)):
            if wanted in shape.guided:
                contexts[name] = self._device.context("step", step_inputs(evaluations))
        return contexts

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
            self._device.wait(self._events[index])
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
                self._device.wait(self._events[0])
            raise
        return self._state_seen(final)[:, 0].copy()

    def _state_seen(self, index: int) -> np.ndarray:
        """[B, K, C, H, W] float32: what a segment left, copied to the host."""
        seen = self._seen[index % len(self._seen)]
        return seen[: self._state_bytes].view(np.float32).reshape(self._state_shape)

    def _upload(self, program: Program, tables: StepTables, noise: NoiseSource) -> None:
        """Tables and initial state; one for all steps."""
        self._arena.upload(arena_parts(tables, self._latent, self._per_call), self._device.stream)
        state = self._start[: self._state_bytes].view(np.float32).reshape(self._state_shape)
        state[:] = 0
        state[:, 0] = noise.initial() * np.float32(program.init_scale)
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
        if index == len(self._graphs):
            with captured(self._gpu, self._device.stream, self._graphs):
                self._enqueue(first, last)
        self._gpu.launch(self._graphs[index], self._device.stream)

    def _warm_up(self) -> None:
        """Runs every context once: TensorRT allocates and uploads at its first enqueue, which capture forbids."""
        self._modulate(0)
        for name in self._contexts.keys() - {"conditioner"}:
            first = self._shape.guided.index(name == "guided")
            self._step(first, self._modulation, self._arena.address("silence"), (self._states[0], self._states[1]))
        self._warm = True

    def _enqueue(self, first: int, last: int) -> None:
        for step in range(first, last):
            if step % self._block == 0:
                end = min(step + self._block, len(self._shape.guided))
                for call in range(step // self._per_call, -(-end // self._per_call)):
                    self._modulate(call)
            drawn = self._arena.address("silence")
            if self._shape.draws[step]:
                drawn = self._noise + step % self._noise_slots * aligned(self._draw_bytes)
            modulation = self._modulation + step % self._block * aligned(self._row_bytes)
            self._step(step, modulation, drawn, (self._states[step % 2], self._states[(step + 1) % 2]))

    def _modulate(self, call: int) -> None:
        """Call `call` of the conditioner: the adaLN rows of a few steps."""
        context, place = self._contexts["conditioner"], call * self._per_call % self._block
        context.set_address("timestep", self._arena.address(f"timestep/{call}"))
        context.set_address("label", self._arena.address(f"label/{call}"))
        context.set_address("modulation", self._modulation + place * aligned(self._row_bytes))
        context.enqueue(self._device.stream)

    def _step(self, step: int, modulation: int, noise: int, states: tuple[int, int]) -> None:
        """states: addresses of the state and the next state."""
        name = "guided" if self._shape.guided[step] else "plain"
        arena, context = self._arena.address, self._contexts[name]
        addresses = {
            "state": states[0],
            "modulation": modulation,
            "noise": noise,
            "sample": arena("sample"),
            "condition": arena("condition"),
            "combine": arena(f"combine_{name}"),
            "x0_bound": arena("x0_bound"),
            **{key: arena(part_of_step(key, step)) for key in ("x0_from", "log_sigma", "mix")},
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


class _Decoder:
    """Buffers and the context for decoding one number of latents at a time."""

    def __init__(self, device: DeviceSampler, shape: tuple[int, ...], size: tuple[int, int, int]) -> None:
        self._device, self._shape = device, (shape[0], *size)
        self._latent_bytes, self._image_bytes = 4 * int(np.prod(shape)), int(np.prod(self._shape))
        self._context = device.context("decoder", {"latent": shape})
        self._memory = Memory(device.gpu)
        self._latent, self._image = self._memory.device(self._latent_bytes), self._memory.device(self._image_bytes)
        self._latent_host = self._memory.pinned(self._latent_bytes)
        self._image_host = self._memory.pinned(self._image_bytes)
        self._event = device.gpu.event()

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """latents [B, C, H, W] float32 -> uint8 [B, h, w, 1 or 3], a view that the next call overwrites.

        Also from a progress callback: the work takes its place in the stream behind the steps enqueued already.
        """
        gpu, stream = self._device.gpu, self._device.stream
        self._latent_host[: self._latent_bytes] = latents.reshape(-1).view(np.uint8)
        gpu.copy(self._latent, self._latent_host.ctypes.data, self._latent_bytes, stream)
        self._context.set_address("latent", self._latent)
        self._context.set_address("image", self._image)
        self._context.enqueue(stream)
        gpu.copy(self._image_host.ctypes.data, self._image, self._image_bytes, stream)
        gpu.record(self._event, stream)
        self._device.wait(self._event)
        return self._image_host[: self._image_bytes].reshape(self._shape)

    def close(self) -> None:
        self._device.gpu.destroy_event(self._event)
        self._memory.free()
