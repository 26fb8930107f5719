"""What works behind the doubles: ONNX Runtime on one thread. A session holds no state, so equal graphs share one."""

from __future__ import annotations

from functools import lru_cache
from typing import Any


@lru_cache(maxsize=32)
def session_of(graph: bytes) -> Any:
    import onnxruntime  # here: tests/gpu has other plans, and runs where there is none

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
