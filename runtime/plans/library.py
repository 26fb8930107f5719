"""TensorRT and TensorRT-RTX behind one handle: loaded when asked for, and every flag and enum looked up by name.

The two libraries have one Python API, and its versions 10.3 to 11.x differ in which flags exist and in the integers
behind them, so nothing here or in the builder uses a number.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..bundle.held_files import HeldFile
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
class GpuInfo:
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
        module, version = _imported(name)
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


def installed_libraries() -> dict[str, str]:
    """ "tensorrt" and "tensorrt-rtx", as they load here -> version."""
    found = {}
    for target, name in MODULES.items():
        try:
            found[target] = _imported(name)[1]
        except (ImportError, OSError, AttributeError):
            pass
    return found


def _imported(name: str) -> tuple[Any, str]:
    """The module and its version."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the bindings' own deprecations
        module = importlib.import_module(name)
    return module, str(module.__version__)


def first_gpu() -> GpuInfo | None:
    """CUDA's device 0, or None without a GPU or driver.

    Asked of the driver itself (libcuda), which needs no package and cannot crash. Never create a TensorRT runtime
    before this says that there is a GPU: without a driver it is a pointer to nothing.
    """
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
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
    return GpuInfo(name.value.decode(errors="replace"), f"sm{major.value}{minor.value}", memory.value)


def make_logger(library: Library, sink: Callable[[str, str], None]) -> Any:
    """A logger that hands every message to sink(severity, text); severity: "ERROR", "WARNING", "INFO", "VERBOSE"."""

    class Logger(library.module.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, message: str) -> None:
            sink(str(severity).rsplit(".", 1)[-1].replace("INTERNAL_ERROR", "ERROR"), message)

    return Logger()


@dataclass
class ErrorLog:
    """A sink that keeps the errors for the exception that follows."""

    errors: list[str] = field(default_factory=list)

    def __call__(self, severity: str, message: str) -> None:
        if severity == "ERROR":
            self.errors.append(message)


def make_runtime(library: Library, log: Callable[[str, str], None]) -> Any:
    """What deserialises plans, and must outlive them. Raises EngineError without a GPU: it would crash."""
    if first_gpu() is None:
        raise EngineError(f"{library.name} reads no plan without an NVIDIA GPU and its driver: there is none")
    return library.module.Runtime(make_logger(library, log))


def deserialize(library: Library, runtime: Any, plan: HeldFile, log: ErrorLog, host_code: bool = False) -> Any:
    """The ICudaEngine of a plan, from the bytes that were hashed. `runtime` and `log`: of `make_runtime`.

    host_code: lets a version-compatible plan run the runtime that it brings. Raises EngineError when the library
    refuses the plan, BundleError when it is not what was hashed.
    """
    if host_code and hasattr(runtime, "engine_host_code_allowed"):
        runtime.engine_host_code_allowed = True
    log.errors.clear()
    plan.check()
    with plan.map() as data:
        engine = runtime.deserialize_cuda_engine(data)
    plan.check()
    if engine is None:
        said = log.errors[0][:300] if log.errors else "no reason given"
        raise EngineError(f"{plan.path}: {library.name} cannot load this plan ({said}): build again")
    return engine


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
