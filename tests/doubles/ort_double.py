"""ONNX Runtime's CUDA provider as the loop sees it, over the double of CUDA's calls: its CPU provider works instead.

A run is a piece of the double's work: nothing is computed when it is enqueued. Its tensors are bound by their addresses,
so what the loop bound is what is read and written.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from ditedge.runtime.bundle.held_files import HeldGraph
from ditedge.runtime.loop.engine import EngineOptions
from tests.doubles.gpu_double import DoubleGpu
from tests.doubles.sessions import session_of


class OrtDouble:
    """`open` takes the place of `open_session`. on_cpu: inputs that this provider leaves to the CPU.

    mixed: some nodes are on the CPU, so that a run has to wait for its end.
    """

    def __init__(self, gpu: DoubleGpu) -> None:
        self.gpu, self.on_cpu, self.mixed = gpu, tuple[str, ...](), False
        self.after: Callable[[np.ndarray], object] = lambda output: None  # a run wrote it
        self.opened: list[dict[str, str]] = []  # provider options

    def open(self, graph: HeldGraph, options: EngineOptions, more: dict[str, str]) -> Session:
        self.opened.append(more)
        return Session(self, graph.file.path.stem, graph.file.read(), int(more["user_compute_stream"]))


class Session:
    def __init__(self, double: OrtDouble, graph: str, model: bytes, stream: int) -> None:
        self.real = session_of(model)
        self.double, self.gpu, self.graph, self.stream = double, double.gpu, graph, stream
        self.get_inputs = self.real.get_inputs

    def get_input_memory_infos(self) -> list[Any]:
        names = [tensor.name for tensor in self.get_inputs()]
        return [SimpleNamespace(name="Cpu" if name in self.double.on_cpu else "Cuda") for name in names]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        mixed = [SimpleNamespace(ep_name="CPUExecutionProvider")] if self.double.mixed else []
        return [SimpleNamespace(ep_name="CUDAExecutionProvider"), *mixed]

    def io_binding(self) -> Binding:
        return Binding(self)

    def run_with_iobinding(self, binding: Binding, options: onnxruntime.RunOptions) -> None:
        gpu, goes_on = self.gpu, False
        gpu.demand(binding.session is self, "a binding of another session")
        with suppress(RuntimeError):  # no such entry
            goes_on = options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        gpu.demand(goes_on != self.double.mixed, "pinned memory is reused" if goes_on else "the run stops the stream")
        gpu.demand(gpu.capture is None, "ONNX Runtime allocates while capturing")
        wanted = {tensor.name for tensor in (*self.get_inputs(), *self.real.get_outputs())}
        gpu.demand({bound.name for bound in binding.tensors} == wanted, "not every tensor is bound")
        gpu.bound.append({bound.name: bound.address for bound in binding.tensors})
        gpu.enqueue(lambda: self._work(binding.tensors), self.stream)
        while gpu.queue and not goes_on:
            gpu.advance()

    def _work(self, tensors: list[Bound]) -> None:
        gpu, real = self.gpu, self.real.io_binding()
        gpu.log.append(self.graph)
        inputs = [bound for bound in tensors if bound.is_input]
        for bound in tensors:
            place = ("cpu", 0, bound.dtype, bound.shape, bound.address)
            if bound.is_input:
                gpu.read(bound.address, bound.size, f"input {bound.name} of {self.graph}")
                real.bind_input(bound.name, *place)
            else:
                gpu.demand(not any(map(bound.overlaps, inputs)), f"output {bound.name} lies over an input")
                block, part = gpu.find(bound.address, bound.size)
                block.data[part] = 0xFF
                block.written[part] = True
                real.bind_output(bound.name, *place)
        self.real.run_with_iobinding(real)
        for bound in tensors:
            if not bound.is_input:
                block, part = gpu.find(bound.address, bound.size)
                self.double.after(block.data[part].view(bound.dtype))


@dataclass(frozen=True)
class Bound:
    name: str
    dtype: str
    shape: tuple[int, ...]
    address: int
    is_input: bool

    @property
    def size(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    def overlaps(self, other: Bound) -> bool:
        return self.address < other.address + other.size and other.address < self.address + self.size


class Binding:
    def __init__(self, session: Session) -> None:
        self.session, self.tensors = session, list[Bound]()

    def bind_input(self, *place: Any) -> None:
        self._bind(True, *place)

    def bind_output(self, *place: Any) -> None:
        self._bind(False, *place)

    def _bind(self, is_input: bool, name: str, device: str, index: int, dtype: str, shape: Any, address: int) -> None:
        gpu = self.session.gpu
        gpu.demand((device, index) == ("cuda", 0), f"{name} is bound on {device} {index}")
        bound = Bound(name, dtype, tuple(shape), address, is_input)
        gpu.find(address, bound.size)
        self.tensors.append(bound)
