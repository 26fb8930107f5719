"""The sampling loop on a device: everything uploaded ahead, every step enqueued, captured once and replayed.

What the host loop binds step by step lies on the device at once (device_run.py, device_steps.py). The host waits by
polling events: it never stops the stream, and Ctrl-C is heard.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ..bundle.manifest import decoded_at_a_time
from ..bundle.open import Bundle
from ..samplers.program import Program
from . import engine_trt
from .device_engine import DeviceEngine, DeviceEngines
from .device_memory import ALIGNMENT, Memory
from .device_run import Batch, Run
from .device_tables import RunShape, run_shape
from .engine import Engine, EngineOptions
from .engine_ort_cuda import open_graphs
from .engine_trt import Context, Gpu, check_plans, load_plans
from .loop import Told, first_state
from .noise import NoiseSource
from .plan_limits import check_fits, check_shape, check_size
from .tables import StepTables
from .text_graphs import TextGraphs

RUNS_KEPT = 2  # shapes whose buffers and graphs are kept: whole batches, and the last one


class DeviceLoop:
    """The plans of one folder on one GPU, or a bundle's own graphs on ONNX Runtime there: a `Loop` (loop.py)."""

    def __init__(
        self,
        bundle: Bundle,
        folder: Path | None,
        options: EngineOptions | None = None,
        gpu: Gpu | None = None,
        on_host: Callable[[str], Engine] | None = None,
    ) -> None:
        """folder: of plans; None: ONNX Runtime's CUDA provider runs the bundle's graphs.

        on_host: loads a graph that has no plan, a text encoder's.
        """
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
        self._engines = DeviceEngines(self)  # of the other graphs
        self._on_host = on_host
        self._text = TextGraphs(bundle, self._engine)
        self._open = True

    def load(self, graph: str) -> None:
        """All that have plans are loaded already."""

    def _engine(self, graph: str) -> Engine:
        if graph in self.plans:
            return DeviceEngine(self._engines, graph, self.plans[graph].inputs)
        assert self._on_host is not None
        return self._on_host(graph)

    def latents(
        self,
        program: Program,
        tables: StepTables,
        noise: NoiseSource,
        on_step: Told | None = None,
        cancel: threading.Event | None = None,
    ) -> np.ndarray:
        self._engines.trim()
        state = first_state(program, noise)
        shape = run_shape(tables, state.shape[2:])
        check_fits(self.record, shape.batch, shape.rows)
        if self.bundle.manifest.text is not None:
            check_size(self.record, shape.latent[1:], self.bundle.manifest.text)
        told = self._text.inputs(tables.prompts, state.shape[3:], cancel)
        run = self._runs.pop(shape, None)
        fresh = run is None
        if run is None:
            while len(self._runs) >= RUNS_KEPT:
                self._runs.pop(next(iter(self._runs))).close()
            run = Run(self, shape, tables, told)
        self._runs[shape] = run
        latents = run.sample(Batch(program, tables, told, state, noise), on_step, cancel)
        if fresh:
            self._keep()
        return latents

    def images(self, graph: str, latents: np.ndarray) -> np.ndarray:
        size = self.bundle.manifest.picture_size(graph, latents.shape[2:])
        limits = self.record.plans[graph].profile.get("latent")
        most = decoded_at_a_time(size[0] * size[1])
        count = min(most, len(latents), limits.max[0] if limits is not None else most)
        images = np.empty((len(latents), *size), dtype=np.uint8)
        for first in range(0, len(latents), count):
            part = slice(first, first + count)
            self._engines.run(graph, {"latent": latents[part]}, {"image": images[part]})
        return images

    def _keep(self) -> None:
        """What was compiled for new shapes; nothing is enqueued."""
        for plan in self.plans.values():
            plan.keep()

    def context(
        self, graph: str, shapes: Mapping[str, tuple[int, ...]], made: Mapping[str, tuple[int, ...]]
    ) -> Context:
        """An execution context for inputs of these shapes, on the shared scratch memory.

        made: shapes of its outputs.
        """
        plan, profile = self.plans[graph], self.record.profile_for(graph, shapes)
        context = plan.context(self.stream, profile)
        for name, shape in shapes.items():
            if name in plan.inputs:
                check_shape(self.record, graph, profile, name, shape)
                context.set_shape(name, shape)
        for name, shape in made.items():
            context.set_output(name, shape)
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
        self._engines.close()
        self._runs = {}
