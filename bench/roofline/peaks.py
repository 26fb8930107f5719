"""What this machine reaches at best, through the libraries that run the graphs: products by dtype, and memory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ditedge.runtime.loop.engine import EngineOptions
from ditedge.runtime.loop.engine_ort import PROVIDERS, session_settings
from ditedge.runtime.processors import thread_count

from .counts import FLOAT, INTEGER

SHAPES = ((512, 1152, 4608), (512, 4608, 1152), (1024, 1024, 1024))  # M, K, N: DiT-XL's MLP, and a plain one
MEMORY_BYTES = 512 << 20  # far beyond every cache
TRIES, SECONDS = 3, 0.25  # the best of so many, each of so long


def measure_peaks(threads: int, shapes: tuple[tuple[int, int, int], ...] = SHAPES) -> dict[str, float]:
    """Multiply-adds a second by "float32" and "int8" (ONNX Runtime), "torch float32" and "torch bf16"; "memory": bytes
    a second, read."""
    peaks = {name: 0.0 for name in (FLOAT, INTEGER, "torch float32", "torch bf16")}
    with tempfile.TemporaryDirectory() as folder:
        for m, k, n in shapes:
            of = {
                FLOAT: _onnx_product(Path(folder), FLOAT, m, k, n, threads),
                INTEGER: _onnx_product(Path(folder), INTEGER, m, k, n, threads),
                "torch float32": _torch_product("float32", m, k, n, threads),
                "torch bf16": _torch_product("bfloat16", m, k, n, threads),
            }
            for name, work in of.items():
                peaks[name] = max(peaks[name], m * k * n / best(work))
    return peaks | {"memory": MEMORY_BYTES / best(_reading(threads))}


def best(work: Callable[[], Any]) -> float:
    """Seconds of a call, the least of several means."""
    work()
    means = []
    for _ in range(TRIES):
        start, calls = time.perf_counter(), 0
        while time.perf_counter() - start < SECONDS:
            work()
            calls += 1
        means.append((time.perf_counter() - start) / calls)
    return min(means)


def product_model(arithmetic: str, k: int, n: int) -> Any:
    """An ONNX model of one product of an activation [M, k] with a weight [k, n]: MatMul, or MatMulInteger of uint8 and
    int8, as bundles have them."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random, integer = np.random.default_rng(0), arithmetic == INTEGER
    weight = random.integers(-127, 128, (k, n), dtype=np.int8) if integer else random.random((k, n), dtype=np.float32)
    kinds = (TensorProto.UINT8, TensorProto.INT32) if integer else (TensorProto.FLOAT, TensorProto.FLOAT)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger" if integer else "MatMul", ["a", "w"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", kinds[0], ["M", k])],
        [helper.make_tensor_value_info("c", kinds[1], ["M", n])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def _onnx_product(folder: Path, arithmetic: str, m: int, k: int, n: int, threads: int) -> Callable[[], Any]:
    import onnxruntime

    settings = session_settings(EngineOptions(threads=threads))
    data = product_model(arithmetic, k, n).SerializeToString()
    session = onnxruntime.InferenceSession(data, settings, providers=[PROVIDERS["cpu"]])
    a = np.ones((m, k), np.uint8 if arithmetic == INTEGER else np.float32)
    out = np.empty((m, n), np.int32 if arithmetic == INTEGER else np.float32)
    binding = session.io_binding()
    binding.bind_cpu_input("a", a)
    binding.bind_output("c", "cpu", 0, out.dtype, out.shape, out.ctypes.data)
    return lambda _held=(a, out): session.run_with_iobinding(binding)


def _torch_product(dtype: str, m: int, k: int, n: int, threads: int) -> Callable[[], Any]:
    import torch

    torch.set_num_threads(thread_count(threads))
    kind = getattr(torch, dtype)
    a, weight, out = torch.rand(m, k).to(kind), torch.rand(n, k).to(kind), torch.empty(m, n, dtype=kind)
    return lambda: torch.mm(a, weight.T, out=out)


def _reading(threads: int) -> Callable[[], Any]:
    import torch

    torch.set_num_threads(thread_count(threads))
    data = torch.ones(MEMORY_BYTES // 8, dtype=torch.float64)
    return lambda: data.sum()
