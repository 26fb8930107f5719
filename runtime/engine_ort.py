"""ONNX Runtime as an engine. Inputs and outputs are the caller's own buffers: no copies on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .engine import EngineOptions
from .errors import EngineError

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
}


class OrtEngine:
    """An ONNX graph in an onnxruntime.InferenceSession."""

    def __init__(self, path: Path, options: EngineOptions) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise EngineError("onnxruntime is not installed: pip install 'ditedge[cpu]' (or 'ditedge[gpu]')") from None
        except ImportError as error:  # no memory left to map it, a library of the system that is missing
            raise EngineError(f"onnxruntime is installed but cannot be loaded: {_first_line(error)}") from None
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.enable_cpu_mem_arena = settings.enable_mem_pattern = options.keep_buffers
        settings.log_severity_level = 3  # errors only: they are raised as well
        provider = _provider(options.provider, onnxruntime.get_available_providers())
        try:
            self._session = onnxruntime.InferenceSession(str(path), settings, providers=provider)
        except Exception as error:  # onnxruntime's own exception types are not public
            raise EngineError(f"{path}: ONNX Runtime cannot load this graph: {_first_line(error)}") from None
        self.inputs = frozenset(tensor.name for tensor in self._session.get_inputs())

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        binding = self._session.io_binding()
        if not all(array.flags.c_contiguous for array in (*inputs.values(), *outputs.values())):
            raise ValueError("arrays are bound by address: they must be C-contiguous")
        for name, array in inputs.items():
            if name in self.inputs:
                binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed: {_first_line(error)}") from None

    def close(self) -> None:
        self._session = None


def _provider(name: str, available: list[str]) -> list[str]:
    """ONNX Runtime's provider names, the wanted one first, the CPU for what it cannot do."""
    wanted = PROVIDERS.get(name, name)
    if wanted not in available:
        have = ", ".join(sorted(short for short, full in PROVIDERS.items() if full in available))
        raise EngineError(f"provider '{name}' is not in this ONNX Runtime, which has: {have}; see `ditedge doctor`")
    return list(dict.fromkeys([wanted, PROVIDERS["cpu"]]))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]
