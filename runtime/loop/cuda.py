"""CUDA's runtime through ctypes: the calls that the loop over plans makes. Pointers are integers, sizes are bytes.

The library is the newest one here that the driver can run: one that is newer than the driver answers every call with
error 35, and an older one beside it may do.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EngineError

VARIABLE = "DITEDGE_CUDART"  # names the library, as for libditedge
NAMES = ("cudart64_13.dll", "cudart64_12.dll") if sys.platform == "win32" else ("libcudart.so.13", "libcudart.so.12")
SUCCESS, OUT_OF_MEMORY, DRIVER_TOO_OLD, NOT_READY = 0, 2, 35, 600
DEFAULT_DIRECTION, NON_BLOCKING, WITHOUT_TIMES, THREAD_LOCAL = 4, 1, 2, 1

POINTER, SIZE, INT, UINT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_uint
RESULT, NUMBER = ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_int)
SIGNATURES: dict[str, tuple[Any, ...]] = {  # of cuda_runtime_api.h, 12 and 13
    "cudaRuntimeGetVersion": (NUMBER,),
    "cudaDriverGetVersion": (NUMBER,),
    "cudaGetDeviceCount": (NUMBER,),
    "cudaSetDevice": (INT,),
    "cudaMalloc": (RESULT, SIZE),
    "cudaFree": (POINTER,),
    "cudaMallocHost": (RESULT, SIZE),
    "cudaFreeHost": (POINTER,),
    "cudaMemcpyAsync": (POINTER, POINTER, SIZE, INT, POINTER),
    "cudaStreamCreateWithFlags": (RESULT, UINT),
    "cudaStreamDestroy": (POINTER,),
    "cudaStreamSynchronize": (POINTER,),
    "cudaEventCreateWithFlags": (RESULT, UINT),
    "cudaEventDestroy": (POINTER,),
    "cudaEventRecord": (POINTER, POINTER),
    "cudaEventQuery": (POINTER,),
    "cudaStreamBeginCapture": (POINTER, INT),
    "cudaStreamEndCapture": (POINTER, RESULT),
    "cudaGraphInstantiate": (RESULT, POINTER, ctypes.c_ulonglong),
    "cudaGraphDestroy": (POINTER,),
    "cudaGraphLaunch": (POINTER, POINTER),
    "cudaGraphExecDestroy": (POINTER,),
    "cudaGetErrorName": (INT,),
}


def load_cudart() -> Any:
    """The library, with the types of its functions. Raises EngineError when there is none, or none for this driver."""
    refused = []
    for path in _places():
        try:
            library = typed(ctypes.CDLL(path))
        except (OSError, AttributeError):  # not here; another library of that name
            continue
        if library.cudaGetDeviceCount(ctypes.byref(ctypes.c_int())) != DRIVER_TOO_OLD:
            return library
        refused.append(library)
    if not refused:
        raise EngineError(
            f"CUDA's runtime library ({' or '.join(NAMES)}) is not to be found: it comes with CUDA and JetPack, "
            f"and with pip install nvidia-cuda-runtime; {VARIABLE} may name it"
        )
    driver = _version(refused[0].cudaDriverGetVersion)
    if not driver:
        raise EngineError("there is no NVIDIA driver")
    found = " and ".join(f"CUDA {version_of(library)}" for library in refused)
    raise EngineError(
        f"the NVIDIA driver, which is for CUDA {driver}, is too old for {found}: update it, or install the runtime "
        f"library of CUDA {driver.split('.')[0]}"
    )


def version_of(library: Any) -> str:
    """ "13.0"."""
    return _version(library.cudaRuntimeGetVersion)


def typed(library: Any) -> Any:
    """The library, with the types of the arguments of its functions set. Raises AttributeError when one is missing."""
    for name, arguments in SIGNATURES.items():
        getattr(library, name).argtypes = arguments
    library.cudaGetErrorName.restype = ctypes.c_char_p
    return library


def _places() -> Iterator[str]:
    """Names for the system's search, and paths in NVIDIA's Python packages, where no search path leads to."""
    if os.environ.get(VARIABLE):
        yield os.environ[VARIABLE]
        return
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or () if spec is not None else ())]
    for name in NAMES:
        yield name
        yield from (str(path) for folder in folders for path in sorted(folder.glob(f"*/*/{name}")))


def _version(function: Any) -> str:
    """ "12.4"; "" when there is none."""
    number = ctypes.c_int()
    function(ctypes.byref(number))
    return f"{number.value // 1000}.{number.value % 1000 // 10}" if number.value else ""


class Cuda:
    """Memory, streams, events and graphs of device 0. Raises EngineError when a call fails."""

    def __init__(self) -> None:
        self._library: Any = None

    def load(self) -> None:
        """Loads the library, once. Raises EngineError."""
        if self._library is None:
            self._library = load_cudart()

    def set_device(self) -> None:
        self._call("cudaSetDevice", 0)

    def malloc(self, size: int) -> int:
        return self._made("cudaMalloc", size)

    def free(self, pointer: int) -> None:
        self._call("cudaFree", pointer)

    def malloc_host(self, size: int) -> np.ndarray:
        pointer = self._made("cudaMallocHost", size)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer))

    def free_host(self, array: np.ndarray) -> None:
        self._call("cudaFreeHost", array.ctypes.data)

    def copy(self, destination: int, source: int, size: int, stream: int) -> None:
        self._call("cudaMemcpyAsync", destination, source, size, DEFAULT_DIRECTION, stream)

    def stream(self) -> int:
        return self._made("cudaStreamCreateWithFlags", NON_BLOCKING)

    def destroy_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def event(self) -> int:
        return self._made("cudaEventCreateWithFlags", WITHOUT_TIMES)

    def destroy_event(self, event: int) -> None:
        self._call("cudaEventDestroy", event)

    def record(self, event: int, stream: int) -> None:
        self._call("cudaEventRecord", event, stream)

    def done(self, event: int) -> bool:
        self.load()
        status = int(self._library.cudaEventQuery(event))
        if status != NOT_READY:
            self._check("cudaEventQuery", status)
        return status == SUCCESS

    def begin_capture(self, stream: int) -> None:
        self._call("cudaStreamBeginCapture", stream, THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        graph = ctypes.c_void_p()
        self._call("cudaStreamEndCapture", stream, ctypes.byref(graph))
        try:
            return self._made("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: int, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def _made(self, function: str, *arguments: Any) -> int:
        """Calls a function whose first argument is where it writes what it made."""
        made = ctypes.c_void_p()
        self._call(function, ctypes.byref(made), *arguments)
        return made.value or 0

    def _call(self, function: str, *arguments: Any) -> None:
        self.load()
        self._check(function, int(getattr(self._library, function)(*arguments)))

    def _check(self, function: str, status: int) -> None:
        if status != SUCCESS:
            name = (self._library.cudaGetErrorName(status) or b"").decode(errors="replace") or f"error {status}"
            memory = ": use a smaller --batch" if status == OUT_OF_MEMORY else ""
            raise EngineError(f"CUDA: {function} failed with {name}{memory}")
