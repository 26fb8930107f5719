"""TensorRT and TensorRT-RTX plans: checked before a byte of them is deserialised, then run through a thin seam.

`Gpu`, `Plan` and `Context` are every CUDA and TensorRT call that the sampling loop (device_loop.py) makes; `NvidiaGpu`
makes them through cuda-python and whichever of the two libraries the plans were built with. Pointers are integers.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..bundle.held_files import HeldFile, check_all
from ..bundle.open import Bundle
from ..errors import BundleError, EngineError, RequestError
from ..plans.library import MODULES, NAMES
from ..plans.record import PLAN_NAMES, RECORD_NAME, BuildRecord, read_build_record


class Context(Protocol):
    """One execution context: shapes, addresses and scratch memory of one graph. Shapes stay until set again."""

    def set_memory(self, pointer: int, size: int) -> None: ...  # scratch of at least Plan.scratch_bytes
    def set_shape(self, name: str, shape: tuple[int, ...]) -> None: ...
    def set_address(self, name: str, pointer: int) -> None: ...  # a multiple of 256; read when `enqueue` is called
    def enqueue(self, stream: int) -> None: ...  # returns at once


class Plan(Protocol):
    """One deserialised plan."""

    inputs: frozenset[str]
    scratch_bytes: int  # of any shape in its profile
    capturable: bool  # whether its work may be captured into a CUDA graph

    def context(self, stream: int) -> Context: ...


class Gpu(Protocol):
    """Device 0 and the libraries for it. Raises EngineError when a call fails. Sizes are bytes."""

    def libraries(self) -> dict[str, str]: ...  # "tensorrt" and "tensorrt-rtx", as installed -> version
    def devices(self) -> int: ...  # 0 without a driver; never raises
    def capability(self) -> str: ...  # "sm86"
    def name(self) -> str: ...
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
            f"{folder}: plans need TensorRT and cuda-python, which are not installed: TensorRT comes from NVIDIA or "
            "JetPack, TensorRT-RTX with pip install 'ditedge[tensorrt-rtx]'; the bundle itself runs on ONNX Runtime"
        )
    if gpu.devices() < 1:
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
    capability = gpu.capability()
    if record.compute_capabilities and capability not in record.compute_capabilities:
        raise EngineError(
            f"{path}: the plans were built for {', '.join(record.compute_capabilities)}, and this machine has a "
            f"{gpu.name()} ({capability}): {again} here, or with --arch {capability}"
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


def check_fits(record: BuildRecord, batch: int, rows: int) -> None:
    """A batch, and the distinct labels of one step, against what was built. Raises RequestError naming the flag."""
    if batch > record.max_batch:
        raise RequestError(
            f"a batch of {batch} is more than the plans were built for, {record.max_batch}: "
            f"use --batch {record.max_batch}, or build with --max-batch {batch}"
        )
    if rows > record.max_rows:
        raise RequestError(
            f"a batch with {rows} distinct conditions is more than the plans were built for, {record.max_rows}: "
            f"use a smaller --batch, or build with --max-rows {rows}"
        )


def check_shape(record: BuildRecord, graph: str, tensor: str, shape: tuple[int, ...]) -> None:
    """One input's shape against its optimisation profile. Raises RequestError."""
    plan = record.plans[graph]  # type: ignore[index]
    limits = plan.profile.get(tensor)
    if limits is None:
        return
    inside = len(shape) == len(limits.min) and all(map(_between, limits.min, shape, limits.max))
    if not inside:
        slots = tensor in ("state", "mix") and shape[1] > limits.max[1]
        remedy = "choose a sampler with fewer state slots (a lower --order, no previews)" if slots else "build again"
        raise RequestError(
            f"{plan.file}: input {tensor} is {list(shape)}, and the plan was built for {limits.min} to {limits.max}: "
            f"{remedy}"
        )


def _between(low: int, value: int, high: int) -> bool:
    return low <= value <= high


def load_plans(record: BuildRecord, files: Mapping[str, HeldFile], gpu: Gpu) -> dict[str, Plan]:
    """Deserialises the plans that `check_plans` let through. Raises EngineError; BundleError when one has changed."""
    plans = {}
    for graph, file in files.items():
        file.check()
        plans[graph] = gpu.deserialize(record, file)
        file.check()
    return plans


class NvidiaGpu:
    """The real thing: cuda.bindings.runtime, and tensorrt or tensorrt_rtx, imported at first use."""

    def __init__(self) -> None:
        self._runtime: Any = None  # cuda.bindings.runtime
        self._loaded: dict[str, Any] = {}  # library -> its runtime object, which must outlive its plans
        self._errors: list[str] = []

    # libraries and the device

    def libraries(self) -> dict[str, str]:
        if self._cuda() is None:
            return {}
        versions = {kind: getattr(_module(name), "__version__", None) for kind, name in MODULES.items()}
        return {kind: str(version) for kind, version in versions.items() if version is not None}

    def devices(self) -> int:
        cuda = self._cuda()
        if cuda is None:
            return 0
        error, count = cuda.cudaGetDeviceCount()
        return 0 if int(error) else int(count)

    def capability(self) -> str:
        attribute = self._cuda().cudaDeviceAttr
        major = self._call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMajor, 0)
        minor = self._call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMinor, 0)
        return f"sm{major}{minor}"

    def name(self) -> str:
        name = self._call("cudaGetDeviceProperties", 0).name
        return name.decode(errors="replace").rstrip("\0") if isinstance(name, bytes) else str(name)

    def deserialize(self, record: BuildRecord, file: HeldFile) -> Plan:
        library, path = record.library, file.path
        trt = _module(MODULES[library])
        if self.devices() < 1 or trt is None:  # a TensorRT runtime without a driver is a pointer to nothing
            raise EngineError(f"{path}: {NAMES[library]} or the GPU is gone")
        if library not in self._loaded:
            self._call("cudaSetDevice", 0)
            self._loaded[library] = trt.Runtime(_logger(trt, self._errors))
        runtime = self._loaded[library]
        if "VERSION_COMPATIBLE" in record.flags and hasattr(runtime, "engine_host_code_allowed"):
            runtime.engine_host_code_allowed = True  # such a plan brings its own runtime
        self._errors.clear()
        with file.map() as data:
            engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            said = self._errors[0][:300] if self._errors else "no reason given"
            raise EngineError(f"{path}: {NAMES[library]} {trt.__version__} cannot load this plan ({said}): build again")
        return _TrtPlan(trt, engine, record.weight_streaming_mb, self._errors)

    # CUDA

    def malloc(self, size: int) -> int:
        return int(self._call("cudaMalloc", size))

    def free(self, pointer: int) -> None:
        self._call("cudaFree", pointer)

    def malloc_host(self, size: int) -> np.ndarray:
        pointer = int(self._call("cudaMallocHost", size))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer))

    def free_host(self, array: np.ndarray) -> None:
        self._call("cudaFreeHost", array.ctypes.data)

    def copy(self, destination: int, source: int, size: int, stream: int) -> None:
        kind = self._cuda().cudaMemcpyKind.cudaMemcpyDefault
        self._call("cudaMemcpyAsync", destination, source, size, kind, stream)

    def stream(self) -> int:
        return int(self._call("cudaStreamCreateWithFlags", 1))  # cudaStreamNonBlocking

    def destroy_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def event(self) -> int:
        return int(self._call("cudaEventCreateWithFlags", 2))  # cudaEventDisableTiming

    def destroy_event(self, event: int) -> None:
        self._call("cudaEventDestroy", event)

    def record(self, event: int, stream: int) -> None:
        self._call("cudaEventRecord", event, stream)

    def done(self, event: int) -> bool:
        cuda = self._cuda()
        (error,) = cuda.cudaEventQuery(event)
        if error == cuda.cudaError_t.cudaErrorNotReady:
            return False
        self._check("cudaEventQuery", error)
        return True

    def begin_capture(self, stream: int) -> None:
        mode = self._cuda().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> int:
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return int(self._call("cudaGraphInstantiate", graph, 0))
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: int, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def _cuda(self) -> Any:
        if self._runtime is None:
            self._runtime = _module("cuda.bindings.runtime") or _module("cuda.cudart")  # the name before 12.6
        return self._runtime

    def _call(self, function: str, *arguments: Any) -> Any:
        """Calls cuda.bindings.runtime.<function>; its result without the status. Raises EngineError."""
        error, *result = getattr(self._cuda(), function)(*arguments)
        self._check(function, error)
        return result[0] if result else None

    def _check(self, function: str, error: Any) -> None:
        if int(error):
            memory = ": use a smaller --batch" if error.name == "cudaErrorMemoryAllocation" else ""
            raise EngineError(f"CUDA: {function} failed with {error.name}{memory}")


class _TrtPlan:
    """An ICudaEngine of either library."""

    def __init__(self, trt: Any, engine: Any, weights_mb: int | None, errors: list[str]) -> None:
        self._trt, self._engine, self._errors = trt, engine, errors
        if weights_mb is not None:  # before any context is made
            engine.weight_streaming_budget_v2 = min(weights_mb << 20, engine.streamable_weights_size)
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self.inputs = frozenset(name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)
        size = getattr(engine, "device_memory_size_v2", None)  # 10.1 and later
        self.scratch_bytes = int(engine.device_memory_size if size is None else size)
        self.capturable = weights_mb is None  # streaming copies from host memory that a graph would not renew

    def context(self, stream: int) -> Context:
        trt, strategy = self._trt, self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if hasattr(self._engine, "create_runtime_config") and hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            # TensorRT-RTX compiles kernels on the device; in the background, a captured graph would keep the slow ones
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context(strategy)
        if context is None:
            raise EngineError(f"TensorRT cannot create an execution context{_said(self._errors)}")
        if context.active_optimization_profile < 0:  # only an engine's first context gets profile 0 by itself
            context.set_optimization_profile_async(0, stream)
        return _TrtContext(context, self._errors)


class _TrtContext:
    """An IExecutionContext of either library."""

    def __init__(self, context: Any, errors: list[str]) -> None:
        self._context, self._errors = context, errors

    def set_memory(self, pointer: int, size: int) -> None:
        if hasattr(self._context, "set_device_memory"):
            self._context.set_device_memory(pointer, size)
        else:
            self._context.device_memory = pointer

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if not self._context.set_input_shape(name, shape):
            raise EngineError(f"TensorRT refuses shape {list(shape)} for input {name}{_said(self._errors)}")

    def set_address(self, name: str, pointer: int) -> None:
        if not self._context.set_tensor_address(name, pointer):
            raise EngineError(f"TensorRT refuses the address of tensor {name}{_said(self._errors)}")

    def enqueue(self, stream: int) -> None:
        if not self._context.execute_async_v3(stream):
            raise EngineError(f"TensorRT cannot enqueue its work{_said(self._errors)}")


def _said(errors: list[str]) -> str:
    return f": {errors[-1][:300]}" if errors else ""


def _module(name: str) -> Any:
    """The module, or None when it is missing or its shared libraries are."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):
        return None


def _logger(trt: Any, errors: list[str]) -> Any:
    """A TensorRT logger that keeps error messages for the exception that follows."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                errors.append(message)

    return Logger()


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
