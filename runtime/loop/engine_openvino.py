"""OpenVINO as an engine: Intel's own runtime on the CPU. Inputs and outputs are the caller's own buffers: no copies."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Mapping
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle.held_files import HeldGraph
from ..bundle.onnx_weights import weights_in_memory
from ..errors import Cancelled, DitedgeError, EngineError
from ..processors import thread_count
from .engine import EngineKind, EngineOptions
from .interruptible import Worker

PRECISIONS = {"openvino": "f32", "openvino-bf16": "bf16"}  # of its arithmetic, by provider
INSTALL = "pip install 'ditedge[openvino]'"
TELEMETRY = "openvino_telemetry"


def load_openvino() -> Any:
    """The package `openvino`. Raises EngineError.

    Importing it sends an event to Google Analytics and writes ~/intel, unless its telemetry package is missing: so it
    is, meanwhile. Whoever imported OpenVINO before has decided otherwise.
    """
    missing = TELEMETRY not in sys.modules
    if missing:
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # an import of it fails
    try:
        return importlib.import_module("openvino")
    except ModuleNotFoundError:
        raise EngineError(f"openvino is not installed: {INSTALL}") from None
    except ImportError as error:
        raise EngineError(f"openvino is installed but cannot be loaded: {_reason(error)}") from None
    finally:
        if missing:
            del sys.modules[TELEMETRY]


@cache
def _core() -> Any:
    return load_openvino().Core()


@cache
def _reader() -> Any:
    """OpenVINO's reader of ONNX, and not those of six other formats that it would try on a file."""
    return load_openvino().frontend.FrontEndManager().load_by_framework("onnx")


def refusal(provider: str) -> str:
    """Why this machine cannot run the provider; empty when it can."""
    try:
        abilities = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except EngineError as error:
        return str(error)
    except RuntimeError as error:
        return f"OpenVINO has no plugin for this processor: {_reason(error)}"
    if provider == "openvino-bf16" and "BF16" not in abilities:
        return "this processor has no bfloat16 arithmetic: use openvino"
    return ""


class OpenVinoEngine:
    """An ONNX graph, compiled for the CPU. Any batch size: what a shape needs is compiled at its first run."""

    def __init__(self, graph: HeldGraph | Path, options: EngineOptions) -> None:
        path = graph if isinstance(graph, Path) else graph.file.path
        self._library = load_openvino()
        if why := refusal(options.provider):
            raise EngineError(f"provider '{options.provider}': {why}")
        self._weights: list[np.ndarray] = []  # the compiled graph reads on in them
        try:
            model = self._read(graph)
            _refuse_scales_of_tokens(model, path)
            self._compiled = _core().compile_model(model, "CPU", _settings(options))
        except DitedgeError:
            raise
        except Exception as error:  # its reader has exception types of its own
            raise EngineError(f"{path}: OpenVINO cannot load this graph: {_reason(error)}") from None
        self._request, self._keep = self._compiled.create_infer_request(), options.keep_buffers
        self.inputs = frozenset(tensor.any_name for tensor in self._compiled.inputs)
        self._worker = Worker()

    def _read(self, graph: HeldGraph | Path) -> Any:
        """The model, out of the files that were hashed. Raises BundleError when they are not the same any more."""
        if isinstance(graph, Path):
            return _model(str(graph))
        graph.check()
        if not graph.external:
            model = _model(graph.file.alias() or BytesIO(graph.file.map()))
        else:
            held = {name: np.array(np.frombuffer(file.map(), np.uint8)) for name, file in graph.external.items()}
            self._weights = [*held.values()]
            places = {name: (array.ctypes.data, array.size) for name, array in held.items()}
            model = _model(BytesIO(weights_in_memory(bytes(graph.file.map()), places, graph.file.path)))
        graph.check()
        return model

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
        cancel: threading.Event | None = None,
    ) -> None:
        arrays = {name: _writeable(array) for name, array in inputs.items() if name in self.inputs} | dict(outputs)
        if not all(array.flags.c_contiguous for array in arrays.values()):
            raise ValueError("arrays are bound by address: they must be C-contiguous")
        if missing := self.inputs - arrays.keys():  # it would read the buffer of another run
            raise EngineError(f"input '{min(missing)}' of the graph was not given")
        request = self._request

        def work() -> None:  # holds the arrays, also when its caller gave up waiting for it
            for name, array in arrays.items():
                request.set_tensor(name, self._library.Tensor(array, shared_memory=True))
            request.start_async()
            request.wait()
            for name, array in outputs.items():
                if (found := tuple(request.get_tensor(name).shape)) != array.shape:
                    raise ValueError(f"output '{name}' is {list(found)}, expected {list(array.shape)}")

        try:
            self._worker.run(work, request.cancel, cancel)
        except Exception as error:
            if cancel is not None and cancel.is_set():
                raise Cancelled("stopped within a step") from None
            raise EngineError(f"OpenVINO failed: {_reason(error)}") from None
        if not self._keep:
            self._compiled.release_memory()

    def close(self) -> None:
        self._request = self._compiled = None
        self._weights.clear()


def _model(source: str | BytesIO) -> Any:
    """Of a file or its bytes, with weights in memory of its own: what becomes of the file later changes nothing."""
    return _reader().convert(_reader().load(source, enable_mmap=False))


def _writeable(array: np.ndarray) -> np.ndarray:
    """OpenVINO shares no others, although it only reads its inputs."""
    return array if array.flags.writeable else array.copy()


def _settings(options: EngineOptions) -> dict[str, Any]:
    """Of one compiled graph: one run at a time, on threads that are not tied to processors that others use, too."""
    return {
        # its own choice is bfloat16 wherever there is any
        "INFERENCE_PRECISION_HINT": "f32" if options.exact else PRECISIONS[options.provider],
        "EXECUTION_MODE_HINT": "ACCURACY",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # its own choice rounds activations beside weights in 8 bits
        "INFERENCE_NUM_THREADS": thread_count(options.threads),
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }


def _refuse_scales_of_tokens(model: Any, path: Path) -> None:
    """Raises EngineError for QuantizeLinear with a computed scale for each row, as `quantize` writes for ONNX Runtime.

    OpenVINO 2026.4 loses the axis: it fails, or takes them for scales of columns where there are as many.
    """
    for node in model.get_ops():
        limits = node.inputs()[1:] if node.get_type_name() == "FakeQuantize" else []
        if any(limit.get_partial_shape().is_dynamic for limit in limits):
            raise EngineError(
                f"{path}: int8 with a scale for each token, which OpenVINO cannot run: use --provider cpu, "
                "or a bundle made by `ditedge quantize --form tensorrt`"
            )


def _reason(error: Exception) -> str:
    """What OpenVINO says, in one line of bounded length, without the lines that name its own source files."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from ", "Check '"))]
    return " ".join(told or lines)[:300] or type(error).__name__


OPENVINO = EngineKind(
    packages={"openvino": ("runs bundles on CPUs through OpenVINO", INSTALL)},
    providers={
        "openvino": "OpenVINO on the CPU, in float32",
        "openvino-bf16": "OpenVINO on the CPU, in bfloat16",
    },
    open=OpenVinoEngine,
    refusal=refusal,
)
