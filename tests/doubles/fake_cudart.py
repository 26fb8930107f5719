"""libcudart as ctypes sees it: C functions with the signatures of cuda_runtime_api.h, whose calls go on to the double.

They are real C function pointers: what is passed goes through ctypes' conversions, as with the library itself.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np

from ditedge.runtime.loop.cuda import DRIVER_TOO_OLD, NOT_READY, OUT_OF_MEMORY, SIGNATURES
from tests.doubles.gpu_double import DoubleGpu

ERROR_NAMES = {OUT_OF_MEMORY: b"cudaErrorMemoryAllocation", DRIVER_TOO_OLD: b"cudaErrorInsufficientDriver"}


def as_library(functions: dict[str, Any]) -> SimpleNamespace:
    """What ctypes.CDLL would have made: a C function for every name in SIGNATURES; those not given answer 0."""
    made = {}
    for name, arguments in SIGNATURES.items():
        result = ctypes.c_void_p if name == "cudaGetErrorName" else ctypes.c_int
        made[name] = ctypes.CFUNCTYPE(result, *arguments)(functions.get(name, lambda *_: 0))
    return SimpleNamespace(**made)


def driver_library(runtime: int, driver: int) -> SimpleNamespace:
    """A libcudart of one version (13000) over a driver of another (12040; 0: none), as far as both are asked for."""

    def answer(number: int, status: int = 0) -> Any:
        def write(place: Any) -> int:
            place[0] = number
            return status

        return write

    names = {status: ctypes.c_char_p(name) for status, name in ERROR_NAMES.items()}
    refusal = 0 if runtime // 1000 <= driver // 1000 else DRIVER_TOO_OLD
    library = as_library(
        {
            "cudaRuntimeGetVersion": answer(runtime),
            "cudaDriverGetVersion": answer(driver),
            "cudaGetDeviceCount": answer(0 if refusal else 1, refusal),
            "cudaMalloc": lambda place, size: OUT_OF_MEMORY if size > 1 << 20 else 0,
            "cudaGetErrorName": lambda status: ctypes.cast(names[status], ctypes.c_void_p).value,
        }
    )
    library.names = names  # what the pointers point to
    return library


class FakeCudart:
    """The functions over a double. memory: bytes that can be allocated."""

    def __init__(self, double: DoubleGpu) -> None:
        self.double, self.pinned, self.memory = double, dict[int, np.ndarray](), 1 << 40
        self.captured: set[int] = set()  # graphs that are not executable: 100,000 below those that are
        self.name = ctypes.c_char_p(ERROR_NAMES[OUT_OF_MEMORY])

    def library(self) -> SimpleNamespace:
        own = {name: getattr(self, name) for name in SIGNATURES if hasattr(self, name)}
        missing = SIGNATURES.keys() - own.keys() - {"cudaRuntimeGetVersion", "cudaDriverGetVersion"}
        assert not missing, f"the fake has no {missing}"
        return as_library(own)

    def cudaGetDeviceCount(self, count: Any) -> int:
        count[0] = 1
        return 0

    def cudaSetDevice(self, device: int) -> int:
        assert device == 0
        return 0

    def cudaMalloc(self, pointer: Any, size: int) -> int:
        self.memory -= size
        if self.memory < 0:
            return OUT_OF_MEMORY
        pointer[0] = self.double.malloc(size)
        return 0

    def cudaFree(self, pointer: int) -> int:
        return self._done(self.double.free(pointer))

    def cudaMallocHost(self, pointer: Any, size: int) -> int:
        array = self.double.malloc_host(size)
        self.pinned[array.ctypes.data] = array
        pointer[0] = array.ctypes.data
        return 0

    def cudaFreeHost(self, pointer: int) -> int:
        return self._done(self.double.free_host(self.pinned.pop(pointer)))

    def cudaMemcpyAsync(self, destination: int, source: int, size: int, kind: int, stream: int) -> int:
        assert kind == 4  # cudaMemcpyDefault
        return self._done(self.double.copy(destination, source, size, stream))

    def cudaStreamCreateWithFlags(self, stream: Any, flags: int) -> int:
        assert flags == 1  # cudaStreamNonBlocking
        stream[0] = self.double.stream()
        return 0

    def cudaStreamDestroy(self, stream: int) -> int:
        return self._done(self.double.destroy_stream(stream))

    def cudaStreamSynchronize(self, stream: int) -> int:
        return self._done(self.double.synchronize(stream))

    def cudaEventCreateWithFlags(self, event: Any, flags: int) -> int:
        assert flags == 2  # cudaEventDisableTiming
        event[0] = self.double.event()
        return 0

    def cudaEventDestroy(self, event: int) -> int:
        return self._done(self.double.destroy_event(event))

    def cudaEventRecord(self, event: int, stream: int) -> int:
        return self._done(self.double.record(event, stream))

    def cudaEventQuery(self, event: int) -> int:
        return 0 if self.double.done(event) else NOT_READY

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> int:
        assert mode == 1  # cudaStreamCaptureModeThreadLocal
        return self._done(self.double.begin_capture(stream))

    def cudaStreamEndCapture(self, stream: int, graph: Any) -> int:
        graph[0] = self.double.end_capture(stream) + 100_000
        self.captured.add(graph[0])
        return 0

    def cudaGraphInstantiate(self, executable: Any, graph: int, flags: int) -> int:
        assert graph in self.captured and flags == 0
        executable[0] = graph - 100_000
        return 0

    def cudaGraphDestroy(self, graph: int) -> int:
        return self._done(self.captured.remove(graph))

    def cudaGraphLaunch(self, graph: int, stream: int) -> int:
        return self._done(self.double.launch(graph, stream))

    def cudaGraphExecDestroy(self, graph: int) -> int:
        return self._done(self.double.destroy_graph(graph))

    def cudaGetErrorName(self, status: int) -> int:
        assert status == OUT_OF_MEMORY
        return ctypes.cast(self.name, ctypes.c_void_p).value or 0

    def _done(self, result: None) -> int:
        assert result is None
        return 0
