"""TensorRT and TensorRT-RTX behind one handle: loaded when asked for, and every flag and enum looked up by name.

The two libraries have one Python API, and its versions 10.3 to 11.x differ in which flags exist and in the integers
behind them, so nothing here or in the builder uses a number.
"""

from __future__ import annotations

import ctypes
import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import EngineError, first_line

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
NAMES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
REMEDIES = {
    "tensorrt": "it comes with JetPack on a Jetson (use the system's Python packages) and from NVIDIA's TensorRT "
    "downloads elsewhere; TensorRT-RTX installs with pip install 'ditedge[tensorrt-rtx]'",
    "tensorrt-rtx": "pip install 'ditedge[tensorrt-rtx]'",
}
OLDEST = {"tensorrt": (10, 3), "tensorrt-rtx": (1, 2)}


@dataclass(frozen=True)
class Gpu:
    """The GPU that CUDA calls device 0."""

    name: str
    capability: str  # "sm86"
    memory: int  # bytes


@dataclass(frozen=True)
class Library:
    """One loaded library. target: "tensorrt" or "tensorrt-rtx"."""

    target: str
    module: Any
    version: str  # "10.3.0.26"

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])

    @property
    def name(self) -> str:
        """For messages: "TensorRT-RTX 1.7.1.116"."""
        return f"{NAMES[self.target]} {self.version}"

    @property
    def is_rtx(self) -> bool:
        return self.target == "tensorrt-rtx"

    def member(self, enum: str, name: str) -> Any:
        """trt.<enum>.<name>. Raises EngineError naming the version when this library has no such member."""
        found = getattr(getattr(self.module, enum, None), name, None)
        if found is None:
            raise EngineError(f"{self.name} has no {enum}.{name}: leave the option out, or use another version")
        return found

    def has(self, enum: str, name: str) -> bool:
        return hasattr(getattr(self.module, enum, None), name)


def load_library(target: str) -> Library:
    """Imports the library of `target`. Raises EngineError when it is missing, broken, or too old."""
    name = MODULES[target]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the bindings' own deprecations
            module = importlib.import_module(name)
        version = str(module.__version__)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in (name, f"{name}_bindings", f"{name}_libs"):
            raise
        raise EngineError(f"{NAMES[target]} is not installed: {REMEDIES[target]}") from None
    except (ImportError, OSError, AttributeError) as error:  # a wheel without its shared libraries
        raise EngineError(
            f"{NAMES[target]} is installed but does not load ({first_line(error)}): {REMEDIES[target]}"
        ) from None
    if _numbers(version) < OLDEST[target]:
        oldest = ".".join(map(str, OLDEST[target]))
        raise EngineError(f"{NAMES[target]} {version} is too old: ditedge needs {oldest} or later")
    return Library(target, module, version)


def first_gpu() -> Gpu | None:
    """CUDA's device 0, or None without a GPU or driver.

    Asked of the driver itself (libcuda), which needs no package and cannot crash. Never create a TensorRT runtime
    before this says that there is a GPU: without a driver it is a pointer to nothing.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, device = ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or count.value < 1:
        return None
    name, memory = ctypes.create_string_buffer(128), ctypes.c_size_t()
    major, minor = ctypes.c_int(), ctypes.c_int()
    failed = (
        cuda.cuDeviceGet(ctypes.byref(device), 0)
        or cuda.cuDeviceGetName(name, 128, device)
        or cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # COMPUTE_CAPABILITY_MAJOR
        or cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)  # COMPUTE_CAPABILITY_MINOR
    )
    if failed:
        return None
    return Gpu(name.value.decode(errors="replace"), f"sm{major.value}{minor.value}", memory.value)


def make_logger(library: Library, sink: Callable[[str, str], None]) -> Any:
    """A logger that hands every message to sink(severity, text); severity: "ERROR", "WARNING", "INFO", "VERBOSE"."""

    class Logger(library.module.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, message: str) -> None:
            sink(str(severity).rsplit(".", 1)[-1].replace("INTERNAL_ERROR", "ERROR"), message)

    return Logger()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
