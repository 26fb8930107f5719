"""ONNX Runtime as an engine. Inputs and outputs are the caller's own buffers: no copies on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
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

# x [1, 4] uint8 MatMulInteger w [4, 1] int8, all 127 -> y int32, as an ONNX file. The C++ runtime holds the same bytes.
PROBE_GRAPH = (
    b'\x08\x05:X\n\x18\n\x01x\n\x01w\x12\x01y"\rMatMulInteger\x12\x01g*\x0f\x08\x04\x08\x01\x10\x03*\x04\x7f\x7f\x7f\x7fB\x01w'
    b"Z\x13\n\x01x\x12\x0e\n\x0c\x08\x02\x12\x08\n\x02\x08\x01\n\x02\x08\x04b\x13\n\x01y\x12\x0e\n\x0c\x08\x06\x12\x08\n\x02\x08\x01\n\x02\x08\x01B\x04\n\x00\x10\n"
)
EXACT_SUMS = ("session.x64quantprecision", "1")


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
        if integer_sums_saturate():
            settings.add_session_config_entry(*EXACT_SUMS)
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
