"""The sampling loop on a device: everything uploaded ahead, every step enqueued, captured once and replayed.

What the host loop binds step by step lies on the device at once (device_run.py, device_steps.py). The host waits by
polling events: it never stops the stream, and Ctrl-C is heard.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..bundle.manifest import decoded_at_a_time
from ..bundle.open import Bundle
from ..samplers.program import Program
from . import engine_trt
from .device import wait
from .device_memory import ALIGNMENT, Memory
from .device_run import Run
from .device_tables import RunShape, run_shape
from .engine import EngineOptions
from .engine_ort_cuda import open_graphs
from .engine_trt import Context, Gpu, check_fits, check_plans, check_shape, load_plans
from .loop import Told
from .noise import NoiseSource
from .tables import StepTables

RUNS_KEPT = 2  # shapes whose buffers and graphs are kept: whole batches, and the last one


class DeviceLoop:
    """The plans of one folder on one GPU, or a bundle's own graphs on ONNX Runtime there: a `Loop` (loop.py)."""

    def __init__(
        self, bundle: Bundle, folder: Path | None, options: EngineOptions | None = None, gpu: Gpu | None = None
    ) -> None:
        """folder: of plans; None: ONNX Runtime's CUDA provider runs the bundle's graphs."""
        self.bundle, options = bundle, options or EngineOptions()
        self.gpu = gpu if gpu is not None else engine_trt.NvidiaGpu()
        if folder is None:
            self.record, self.plans, self.stream = open_graphs(bundle, self.gpu, options)
        else:
            self.record, files = check_plans(bundle, folder, self.gpu)
            self.plans, self.stream = load_plans(self.record, files, self.gpu), self.gpu.stream()
        self.graphs = options.cuda_graphs and self.plans["step"].capturable
        self._memory = Memory(self.gpu)
        # Never moved: captured graphs hold its address. Used by one graph at a time: there is one stream.
        self.scratch_size = max([ALIGNMENT, *(plan.scratch_bytes for plan in self.plans.values())])
        self.scratch = self._memory.device(self.scratch_size)
        self._runs: dict[RunShape, Run] = {}  # the most recently used last
        self._decoders: dict[tuple[str, int], _Decoder] = {}  # by graph and images at a time
        self._open = True

    def load(self, graph: str) -> None:
        """All are loaded already."""

    def latents(
        self,
        program: Program,
        tables: StepTables,
        noise: NoiseSource,
        on_step: Told | None = None,
        cancel: threading.Event | None = None,
    ) -> np.ndarray:
        shape = run_shape(tables)
        check_fits(self.record, shape.batch, shape.rows)
        run = self._runs.pop(shape, None)
        fresh = run is None
        if run is None:
            while len(self._runs) >= RUNS_KEPT:
                self._runs.pop(next(iter(self._runs))).close()
            run = Run(self, shape, tables)
        self._runs[shape] = run
        latents = run.sample(program, tables, noise, on_step, cancel)
        if fresh:
            self._keep()
        return latents

    def images(self, graph: str, latents: np.ndarray) -> np.ndarray:
        size = self.bundle.manifest.picture_size(graph)
        limits = self.record.plans[graph].profile.get("latent")
        most = decoded_at_a_time(size[0] * size[1])
        count = min(most, len(latents), limits.max[0] if limits is not None else most)
        images = np.empty((len(latents), *size), dtype=np.uint8)
        for first in range(0, len(latents), count):
            part = np.ascontiguousarray(latents[first : first + count])
            key = (graph, len(part))
            if key not in self._decoders:
                self._decoders[key] = _Decoder(self, graph, part.shape, size)
            images[first : first + count] = self._decoders[key].decode(part)
        return images

    def _keep(self) -> None:
        """What was compiled for new shapes; nothing is enqueued."""
        for plan in self.plans.values():
            plan.keep()

    def context(self, graph: str, shapes: Mapping[str, tuple[int, ...]]) -> Context:
        """An execution context for inputs of these shapes, on the shared scratch memory."""
        plan = self.plans[graph]
        context = plan.context(self.stream, self.record.profile_for(graph, shapes))
        for name, shape in shapes.items():
            if name in plan.inputs:
                check_shape(self.record, graph, name, shape)
                context.set_shape(name, shape)
        context.set_memory(self.scratch, self.scratch_size)
        return context

    def close(self) -> None:
        """Frees everything. Calling it twice is fine."""
        if not self._open:
            return
        self._open = False
        self.gpu.synchronize(self.stream)
        self._keep()
        self._close_contexts()
        self.plans = {}  # with the last contexts gone, before the stream that they were made for
        self._memory.free()
        self.gpu.destroy_stream(self.stream)

    def _close_contexts(self) -> None:
        for run in self._runs.values():
            run.close()
        for decoder in self._decoders.values():
            decoder.close()
        self._runs, self._decoders = {}, {}


class _Decoder:
    """Buffers and the context for making pictures of one number of latents at a time."""

    def __init__(self, device: DeviceLoop, graph: str, shape: tuple[int, ...], size: tuple[int, int, int]) -> None:
        self._device, self._shape = device, (shape[0], *size)
        self._latent_bytes, self._image_bytes = 4 * int(np.prod(shape)), int(np.prod(self._shape))
        self._context = device.context(graph, {"latent": shape})
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
        wait(self._device.gpu, self._event)
        return self._image_host[: self._image_bytes].reshape(self._shape)

    def close(self) -> None:
        self._device.gpu.destroy_event(self._event)
        self._memory.free()
