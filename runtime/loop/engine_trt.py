"""TensorRT and TensorRT-RTX plans: checked before a byte of them is deserialised, then run through a thin seam.

`Gpu`, `Plan` and `Context` are every CUDA and TensorRT call that the sampling loop (device_loop.py) makes; `NvidiaGpu`
makes them through CUDA's runtime and whichever of the two libraries the plans were built with. Pointers are integers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..bundle.held_files import HeldFile, check_all
from ..bundle.open import Bundle
from ..errors import BundleError, EngineError
from ..plans.kernels import keep_kernels, kernel_file, read_kernels
from ..plans.library import (
    NAMES,
    ErrorLog,
    GpuInfo,
    Library,
    deserialize,
    first_gpu,
    installed_libraries,
    load_library,
    make_runtime,
)
from ..plans.record import PLAN_NAMES, RECORD_NAME, BuildRecord, read_build_record
from .cuda import Cuda


class Context(Protocol):
    """One execution context: shapes, addresses and scratch memory of one graph. Shapes stay until set again."""

    def set_memory(self, pointer: int, size: int) -> None: ...  # scratch of at least Plan.scratch_bytes
    def set_shape(self, name: str, shape: tuple[int, ...]) -> None: ...
    def set_output(self, name: str, shape: tuple[int, ...]) -> None: ...  # for who cannot work it out
    def set_address(self, name: str, pointer: int) -> None: ...  # a multiple of 256; read when `enqueue` is called
    def capturable(self, stream: int) -> bool: ...  # whether the library says that `enqueue` can be captured now
    def enqueue(self, stream: int) -> None: ...  # returns at once


class Plan(Protocol):
    """One deserialised plan."""

    inputs: frozenset[str]
    scratch_bytes: int  # of any shape in its profile
    capturable: bool  # whether its work may be captured into a CUDA graph

    def context(self, stream: int, profile: int = 0) -> Context: ...
    def keep(self) -> None: ...  # what the library compiled since it was loaded, for later starts; raises nothing


class Gpu(Protocol):
    """Device 0 and the libraries for it. Raises EngineError when a call fails. Sizes are bytes."""

    def libraries(self) -> dict[str, str]: ...  # "tensorrt" and "tensorrt-rtx", as installed -> version
    def device(self) -> GpuInfo | None: ...  # None without a GPU or driver; raises when CUDA does not go with it
    def deserialize(self, record: BuildRecord, file: HeldFile) -> Plan: ...
    def malloc(self, size: int) -> int: ...
    def free(self, pointer: int) -> None: ...
    def malloc_host(self, size: int) -> np.ndarray: ...  # pinned, uint8 [size]
    def free_host(self, array: np.ndarray) -> None: ...
    def copy(self, destination: int, source: int, size: int, stream: int) -> None: ...  # enqueued; host or device
    def stream(self) -> int: ...
    def destroy_stream(self, stream: int) -> None: ...
    def synchronize(self, stream: int) -> None: ...
    def event(self) -> int: ...
    def destroy_event(self, event: int) -> None: ...
    def record(self, event: int, stream: int) -> None: ...
    def done(self, event: int) -> bool: ...  # never waits
    def begin_capture(self, stream: int) -> None: ...
    def end_capture(self, stream: int) -> int: ...  # an executable graph
    def launch(self, graph: int, stream: int) -> None: ...
    def destroy_graph(self, graph: int) -> None: ...


def check_plans(bundle: Bundle, folder: Path, gpu: Gpu) -> tuple[BuildRecord, dict[str, HeldFile]]:
    """Everything that can be known before a plan, which is executable code, is deserialised: the plans as hashed.

    In order: a library, a GPU (TensorRT crashes without a driver), the record, the record against library, GPU and
    bundle, and the plans against the record. Raises EngineError or BundleError with one sentence.
    """
    installed = gpu.libraries()
    if not installed:
        raise EngineError(
            f"{folder}: plans need TensorRT, which is not installed: it comes from NVIDIA or JetPack, TensorRT-RTX "
            "with pip install 'ditedge[tensorrt-rtx]'; the bundle itself runs on ONNX Runtime"
        )
    device = gpu.device()
    if device is None:
        raise EngineError(
            f"{folder}: plans need an NVIDIA GPU, and no CUDA device (or no driver) was found; "
            f"the bundle runs without one: --engine {bundle.folder}"
        )
    path = folder / RECORD_NAME
    record = read_build_record(path, bundle.trusted)
    name = f"{NAMES[record.library]} {record.library_version}"
    again = f"build them again: ditedge build --engine {bundle.folder} --target {record.library}"
    if record.library not in installed:
        have = ", ".join(f"{NAMES[kind]} {version}" for kind, version in installed.items())
        raise EngineError(f"{path}: the plans were built with {name}, and this machine has {have}: {again} on it")
    version = installed[record.library]
    if version.split(".")[0] != record.library_version.split(".")[0]:
        raise EngineError(f"{path}: the plans were built with {name}, and this machine has version {version}: {again}")
    if record.compute_capabilities and device.capability not in record.compute_capabilities:
        raise EngineError(
            f"{path}: the plans were built for {', '.join(record.compute_capabilities)}, and this machine has a "
            f"{device.name} ({device.capability}): {again} here, or with --arch {device.capability}"
        )
    if record.bundle_sha256 != bundle.sha256:
        raise BundleError(f"{path}: the plans were built from another version of bundle {bundle.folder}: {again}")
    missing = set(PLAN_NAMES) & set(bundle.manifest.graphs) - set(record.plans)
    if missing:
        raise BundleError(f"{path}: the plan of graph '{sorted(missing)[0]}' is missing: {again}")
    complaint = f"does not match its hash in {RECORD_NAME}: damaged or tampered with; {again}"
    files = {}
    for graph, info in record.plans.items():
        plan = folder / PLAN_NAMES[graph]
        if info.file != plan.name or not plan.is_file():
            raise BundleError(f"{plan} is missing: {again}")
        files[str(graph)] = HeldFile(plan, info.plan, complaint)
    check_all([*files.values()])
    if "STRIP_PLAN" in record.flags:
        raise EngineError(f"{path}: the plans were built without weights, which this version cannot run: {again}")
    return record, files


def load_plans(record: BuildRecord, files: Mapping[str, HeldFile], gpu: Gpu) -> dict[str, Plan]:
    """Deserialises the plans that `check_plans` let through. Raises EngineError; BundleError when one has changed."""
    plans = {}
    for graph, file in files.items():
        plans[graph] = gpu.deserialize(record, file)
    return plans


class NvidiaGpu(Cuda):
    """The real thing: CUDA's runtime, and TensorRT or TensorRT-RTX (plans/library.py), loaded at first use."""

    def __init__(self) -> None:
        super().__init__()
        self._loaded: dict[str, tuple[Library, Any]] = {}  # with its runtime object, which must outlive its plans
        self._log = ErrorLog()

    def libraries(self) -> dict[str, str]:
        return installed_libraries()

    def device(self) -> GpuInfo | None:
        found = first_gpu()
        if found is not None:
            self.load()
        return found

    def deserialize(self, record: BuildRecord, file: HeldFile) -> Plan:
        if record.library not in self._loaded:
            library = load_library(record.library)
            runtime = make_runtime(library, self._log)
            self.set_device()
            self._loaded[record.library] = library, runtime
        library, runtime = self._loaded[record.library]
        engine = deserialize(library, runtime, file, self._log, "VERSION_COMPATIBLE" in record.flags)
        gpu = self.device()
        kernels = kernel_file(file.sha256, gpu) if library.is_rtx and gpu is not None else None
        return _TrtPlan(library.module, engine, record.weight_streaming_mb, self._log.errors, kernels)


class _TrtPlan:
    """An ICudaEngine of either library. kernels: where TensorRT-RTX's are kept."""

    def __init__(
        self, trt: Any, engine: Any, weights_mb: int | None, errors: list[str], kernels: Path | None = None
    ) -> None:
        self._trt, self._engine, self._errors = trt, engine, errors
        self._kernels, self._kept, self._cache = kernels, b"", None
        if weights_mb is not None:  # before any context is made
            errors.clear()
            engine.weight_streaming_budget_v2 = min(weights_mb << 20, engine.streamable_weights_size)
            if errors:  # the bindings drop what the setter answers
                raise EngineError(f"TensorRT refuses {weights_mb} MB for the plan's weights{_said(errors)}")
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self.inputs = frozenset(name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)
        self.scratch_bytes = int(engine.device_memory_size_v2)
        self.capturable = weights_mb is None  # streaming copies from host memory that a graph would not renew

    def context(self, stream: int, profile: int = 0) -> Context:
        trt, strategy = self._trt, self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if hasattr(self._engine, "create_runtime_config") and hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            # TensorRT-RTX compiles kernels on the device; in the background, a captured graph would keep the slow ones
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            self._compile_into(config)
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context(strategy)
        if context is None:
            raise EngineError(f"TensorRT cannot create an execution context{_said(self._errors)}")
        chosen = context.active_optimization_profile  # only an engine's first context gets profile 0 by itself
        if chosen != profile and not context.set_optimization_profile_async(profile, stream):
            raise EngineError(f"TensorRT refuses profile {profile} of the plan{_said(self._errors)}")
        return _TrtContext(context, self._errors)

    def _compile_into(self, config: Any) -> None:
        """Kernels that a context compiles go to the engine's cache, which begins with those of earlier starts."""
        if self._kernels is None:
            return
        if self._cache is None:
            self._cache, self._kept = config.create_runtime_cache(), read_kernels(self._kernels)
            if self._cache is not None and self._kept and not self._cache.deserialize(self._kept):
                self._kept = b""  # of another driver, GPU or version
        if self._cache is not None:
            config.set_runtime_cache(self._cache)

    def keep(self) -> None:
        kernels = bytes(self._cache.serialize() or b"") if self._cache is not None else b""
        if kernels and kernels != self._kept:
            keep_kernels(self._kernels, kernels)
            self._kept = kernels


class _TrtContext:
    """An IExecutionContext of either library."""

    def __init__(self, context: Any, errors: list[str]) -> None:
        self._context, self._errors = context, errors

    def set_memory(self, pointer: int, size: int) -> None:
        self._context.set_device_memory(pointer, size)

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if not self._context.set_input_shape(name, shape):
            raise EngineError(f"TensorRT refuses shape {list(shape)} for input {name}{_said(self._errors)}")

    def set_output(self, name: str, shape: tuple[int, ...]) -> None:
        """TensorRT works it out."""

    def set_address(self, name: str, pointer: int) -> None:
        if not self._context.set_tensor_address(name, pointer):
            raise EngineError(f"TensorRT refuses the address of tensor {name}{_said(self._errors)}")

    def capturable(self, stream: int) -> bool:
        """TensorRT-RTX can say so; of the others it is known when a capture fails."""
        asked = getattr(self._context, "is_stream_capturable", None)
        return asked is None or bool(asked(stream))

    def enqueue(self, stream: int) -> None:
        if not self._context.execute_async_v3(stream):
            raise EngineError(f"TensorRT cannot enqueue its work{_said(self._errors)}")


def _said(errors: list[str]) -> str:
    return f": {errors[-1][:300]}" if errors else ""


@contextmanager
def captured(gpu: Gpu, stream: int, graphs: list[int]) -> Iterator[None]:
    """What is enqueued inside is appended to `graphs` as one executable graph instead of being run."""
    gpu.begin_capture(stream)
    try:
        yield
    except BaseException:
        try:
            gpu.destroy_graph(gpu.end_capture(stream))
        except EngineError:
            pass  # the first failure is the one to report
        raise
    graphs.append(gpu.end_capture(stream))
