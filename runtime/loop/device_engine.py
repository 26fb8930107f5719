"""A graph that works once in a while on a device, as an `Engine`: its inputs up, its work, its outputs down."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np

from ..errors import Cancelled
from .device import Device, wait
from .device_memory import Arena, Memory, offsets_of, size_of

Arrays = Mapping[str, np.ndarray]
EngineKey = tuple[str, tuple[tuple[str, tuple[int, ...]], ...]]
INPUTS = "inputs"
KEPT = 6  # shapes whose buffers are kept: context, position, decoder and preview of whole batches and of the last


class DeviceEngines:
    """Those of one device, by graph and shapes."""

    def __init__(self, device: Device) -> None:
        self._device, self._calls = device, dict[EngineKey, _Call]()  # the most recently used last

    def run(self, graph: str, inputs: Arrays, outputs: Arrays) -> None:
        """Also from a progress callback: the work takes its place in the stream behind the steps enqueued already."""
        plan = self._device.plans[graph]
        read = {name: array for name, array in inputs.items() if name in plan.inputs}
        key = (graph, tuple((name, array.shape) for name, array in (read | dict(outputs)).items()))
        call = self._calls.pop(key, None) or _Call(self._device, graph, read, outputs)
        self._calls[key] = call
        call.run(read, outputs)

    def trim(self) -> None:
        """Frees what was not used for longest. Only when nothing is enqueued."""
        while len(self._calls) > KEPT:
            self._calls.pop(next(iter(self._calls))).close()

    def close(self) -> None:
        for call in self._calls.values():
            call.close()
        self._calls = {}


class DeviceEngine:
    """One graph of them, an `Engine` (engine.py)."""

    def __init__(self, engines: DeviceEngines, graph: str, inputs: frozenset[str]) -> None:
        self._engines, self._graph, self.inputs = engines, graph, inputs

    def run(self, inputs: Arrays, outputs: Arrays, cancel: threading.Event | None = None) -> None:
        if cancel is not None and cancel.is_set():
            raise Cancelled(f"stopped before graph '{self._graph}'")
        self._engines.run(self._graph, inputs, outputs)

    def close(self) -> None:
        """What it works with is its device's."""


class _Call:
    """Buffers and the context for inputs and outputs of one shape."""

    def __init__(self, device: Device, graph: str, inputs: Arrays, outputs: Arrays) -> None:
        self._device, self._memory = device, Memory(device.gpu)
        shapes = [{name: array.shape for name, array in arrays.items()} for arrays in (inputs, outputs)]
        self._context = device.context(graph, shapes[0], shapes[1])
        try:
            self._given = Arena(device.gpu, self._memory, {INPUTS: inputs})
            size = size_of(outputs)
            self._made, self._host = self._memory.device(size), self._memory.pinned(size)
            self._event = device.gpu.event()
        except BaseException:
            self._memory.free()
            raise
        for start, arrays in ((self._given.address(INPUTS), inputs), (self._made, outputs)):
            for name, offset in offsets_of(arrays).items():
                self._context.set_address(name, start + offset)

    def run(self, inputs: Arrays, outputs: Arrays) -> None:
        gpu, stream = self._device.gpu, self._device.stream
        self._given.upload({INPUTS: inputs}, stream)
        self._context.enqueue(stream)
        for name, offset in offsets_of(outputs).items():
            gpu.copy(self._host.ctypes.data + offset, self._made + offset, outputs[name].nbytes, stream)
        gpu.record(self._event, stream)
        wait(gpu, self._event)
        for name, offset in offsets_of(outputs).items():
            array = outputs[name]
            array[...] = self._host[offset : offset + array.nbytes].view(array.dtype).reshape(array.shape)

    def close(self) -> None:
        self._device.gpu.destroy_event(self._event)
        self._memory.free()
