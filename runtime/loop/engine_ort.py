"""ONNX Runtime as an engine. Inputs and outputs are the caller's own buffers: no copies on the CPU."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle.held_files import HeldGraph
from ..errors import Cancelled, EngineError, first_line
from ..plans.library import first_gpu
from ..processors import thread_count
from .engine import EngineKind, EngineOptions
from .held_model import model_of
from .interruptible import Worker

FULL_NAME = "ExecutionProvider"
PROVIDERS = {  # OpenVINO's is reached by its full name: `openvino` is OpenVINO itself (engine_openvino.py)
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
}
NOT_STARTED = "provider '{}' could not be started ({}): see `ditedge doctor`, or use cpu"
MISSING = "its driver or device is missing"

# x [1, 4] uint8 MatMulInteger w [4, 1] int8, all 127 -> y int32, as an ONNX file. The C++ runtime holds the same bytes.
PROBE_GRAPH = (
    b'\x08\x05:X\n\x18\n\x01x\n\x01w\x12\x01y"\rMatMulInteger\x12\x01g*\x0f\x08\x04\x08\x01\x10\x03*\x04\x7f\x7f\x7f\x7fB\x01w'
    b"Z\x13\n\x01x\x12\x0e\n\x0c\x08\x02\x12\x08\n\x02\x08\x01\n\x02\x08\x04b\x13\n\x01y\x12\x0e\n\x0c\x08\x06\x12\x08\n\x02\x08\x01\n\x02\x08\x01B\x04\n\x00\x10\n"
)
EXACT_SUMS = ("session.x64quantprecision", "1")
M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
LARGE_BLOCK = 4 << 20  # bytes; what is as large is not kept when it is freed


@cache
def integer_sums_saturate() -> bool:
    """Whether ONNX Runtime's u8 x s8 products are wrong on this processor unless EXACT_SUMS is set.

    On x86 without VNNI its kernels add pairs of products in 16 bits, which end at 32767. The library is asked, not the
    processor: 255 * 127 four times over. With VNNI the setting must stay off: it makes right sums 2.5 times slower.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(PROBE_GRAPH, settings, providers=[PROVIDERS["cpu"]])
    (total,) = session.run(None, {"x": np.full((1, 4), 255, np.uint8)})
    return int(total[0, 0]) != 4 * 255 * 127


class OrtEngine:
    """An ONNX graph in an onnxruntime.InferenceSession."""

    def __init__(self, graph: HeldGraph | Path, options: EngineOptions) -> None:
        self._session = open_session(graph, options)
        self.inputs = frozenset(tensor.name for tensor in self._session.get_inputs())
        self._worker = Worker()

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
        cancel: threading.Event | None = None,
    ) -> None:
        binding = self._session.io_binding()
        if not all(array.flags.c_contiguous for array in (*inputs.values(), *outputs.values())):
            raise ValueError("arrays are bound by address: they must be C-contiguous")
        for name, array in inputs.items():
            if name in self.inputs:
                binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        import onnxruntime

        options, session = onnxruntime.RunOptions(), self._session

        def work(_held: object = (inputs, outputs)) -> None:  # also when its caller gave up waiting for it
            session.run_with_iobinding(binding, options)

        try:
            self._worker.run(work, lambda: setattr(options, "terminate", True), cancel)
        except Exception as error:
            if cancel is not None and cancel.is_set():
                raise Cancelled("stopped within a step") from None
            raise EngineError(f"ONNX Runtime failed: {first_line(error)}") from None

    def close(self) -> None:
        self._session = None


def open_session(graph: HeldGraph | Path, options: EngineOptions, more: Mapping[str, str] | None = None) -> Any:
    """An onnxruntime.InferenceSession on the provider of the options, and on no other. Raises EngineError.

    more: options of that provider, by its own names.
    """
    onnxruntime = _onnxruntime()
    settings = session_settings(options)
    settings.enable_cpu_mem_arena = settings.enable_mem_pattern = options.keep_buffers
    if not options.keep_buffers:
        return_large_blocks()
    providers = _providers(options.provider, onnxruntime.get_available_providers(), more or {})
    path = graph if isinstance(graph, Path) else graph.file.path
    # the package prints what it thinks of missing libraries
    with model_of(graph, settings) as model, redirect_stdout(sys.stderr):
        try:
            _preload(options.provider)
            # no second try: the package would print names out of the graph as they are
            session = onnxruntime.InferenceSession(model, settings, providers=providers, enable_fallback=0)
        except Exception as error:  # onnxruntime's own exception types are not public
            raise EngineError(f"{path}: ONNX Runtime cannot load this graph: {first_line(error)}") from None
    check_provider(session, options.provider)
    return session


@cache
def return_large_blocks() -> None:
    """What a graph without kept buffers frees goes back to the system at once: as in runtime/cpp/src/engine_ort.cpp.

    glibc would keep free blocks of up to 32 MB between others: a picture of 1024 px then takes between 1.7 and 3 GB,
    as it happens, instead of 1.5. Whoever set MALLOC_MMAP_THRESHOLD_ is left alone; other C libraries are, too.
    """
    if sys.platform == "linux" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:  # musl has none
            mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise EngineError("onnxruntime is not installed: pip install 'ditedge[cpu]' (or 'ditedge[gpu]')") from None
    except ImportError as error:  # no memory left to map it, a library of the system that is missing
        raise EngineError(f"onnxruntime is installed but cannot be loaded: {first_line(error)}") from None
    return onnxruntime


def session_settings(options: EngineOptions) -> Any:
    """SessionOptions for whatever opens a graph: threads held to the processors at hand, exact sums, quiet."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = thread_count(options.threads), 1
    for pool in ("intra_op", "inter_op"):
        settings.add_session_config_entry(f"session.{pool}.allow_spinning", "1" if options.spin else "0")
    settings.log_severity_level = 4  # errors are raised: the log would say them with names out of the graph as they are
    if options.share_weights:  # no copy of each in the order in which its kernel reads it
        settings.add_session_config_entry("session.disable_prepacking", "1")
    if not options.fused:
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if integer_sums_saturate():
        settings.add_session_config_entry(*EXACT_SUMS)
    if options.provider != "cpu":
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return settings


def check_provider(session: Any, name: str) -> None:
    """Asks a session what it runs on. Raises EngineError when that is not the provider `name`, or none of the nodes is.

    ONNX Runtime falls back to the CPU without a word when a provider's libraries are missing. That some nodes are on
    the CPU is by design: those that compute shapes, and those that the provider has no kernel for.
    """
    wanted = PROVIDERS.get(name, name)
    if wanted == PROVIDERS["cpu"]:
        return
    if wanted not in session.get_providers():
        raise EngineError(NOT_STARTED.format(name, library_refusal(wanted) or MISSING))
    try:
        parts = session.get_provider_graph_assignment_info()
    except Exception:  # before ONNX Runtime 1.24, and builds that do not record it
        return
    if parts and wanted not in {part.ep_name for part in parts}:
        raise EngineError(f"provider '{name}' takes no node of this graph, so all of it would run on the CPU: use cpu")


def library_refusal(provider: str) -> str:
    """Why the library of a provider that comes as one cannot be loaded; empty when it can, and for the others."""
    import onnxruntime

    stem = provider.removesuffix(FULL_NAME).lower()
    if stem not in ("cuda", "tensorrt", "openvino"):
        return ""
    name = f"onnxruntime_providers_{stem}.dll" if sys.platform == "win32" else f"libonnxruntime_providers_{stem}.so"
    library = Path(onnxruntime.__file__).parent / "capi" / name
    if not library.is_file():
        return f"this ONNX Runtime comes without {name}"
    try:
        with redirect_stdout(sys.stderr):
            _preload(stem)
        ctypes.CDLL(str(library))
    except OSError as error:
        return first_line(error)
    return ""


def _preload(name: str) -> None:
    """CUDA's and cuDNN's libraries from NVIDIA's Python packages, where no search path leads to them."""
    import onnxruntime

    if name.removesuffix(FULL_NAME).lower() in ("cuda", "tensorrt") and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()


def check_can_start(name: str) -> None:
    """Raises EngineError for a provider that this ONNX Runtime lacks, or whose libraries or device are missing."""
    wanted = PROVIDERS.get(name, name)
    _providers(name, _onnxruntime().get_available_providers())
    reason = library_refusal(wanted) or ("" if first_gpu() is not None else MISSING)
    if reason:
        raise EngineError(NOT_STARTED.format(name, reason))


def _providers(name: str, available: list[str], more: Mapping[str, str] | None = None) -> list[Any]:
    """ONNX Runtime's provider names, the wanted one first, the CPU for what it cannot do."""
    wanted = PROVIDERS.get(name, name)
    if wanted not in available:
        have = ", ".join(sorted(short for short, full in PROVIDERS.items() if full in available))
        raise EngineError(f"provider '{name}' is not in this ONNX Runtime, which has: {have}; see `ditedge doctor`")
    if wanted == PROVIDERS["cuda"]:  # TensorFloat-32 has 10 bits: a float32 graph is to be one
        return [(wanted, {"use_tf32": "0", **(more or {})}), PROVIDERS["cpu"]]
    return list(dict.fromkeys([wanted, PROVIDERS["cpu"]]))


def refusal(provider: str) -> str:
    """Why this ONNX Runtime cannot run the provider; empty when it can."""
    try:
        import onnxruntime
    except ImportError as error:
        return f"onnxruntime cannot be loaded: {first_line(error)}"
    wanted = PROVIDERS.get(provider, provider)
    if wanted not in onnxruntime.get_available_providers():
        return "needs an ONNX Runtime build that has it"
    return library_refusal(wanted)


ONNX_RUNTIME = EngineKind(
    packages={
        "onnxruntime": ("runs bundles on the CPU", "pip install 'ditedge[cpu]'"),
        "onnxruntime-gpu": ("runs bundles on NVIDIA GPUs through ONNX Runtime", "pip install 'ditedge[gpu]'"),
    },
    providers={short: f"ONNX Runtime's {full}" for short, full in PROVIDERS.items()},
    open=OrtEngine,
    refusal=refusal,
    more=FULL_NAME,
)
