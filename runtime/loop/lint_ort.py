"""Will it be quick on ONNX Runtime? The kernels that it runs for one step of one image, from its own profile."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle.open import Bundle
from ..errors import EngineError, first_line
from ..json_files import read_json
from ..plans.lint import Attention, Lint
from ..replacing import scratch_folder
from .engine import EngineOptions
from .engine_ort import session_settings
from .held_model import model_of
from .int8_kernels import integer_kernels
from .session import Session
from .subjects import any_subject, told_besides
from .tables import step_tables

MAX_PROFILE_BYTES = 64 << 20
PRODUCTS = {"MatMul": "float32", "FusedMatMul": "float32", "Gemm": "float32", "FusedGemm": "float32", "Conv": "float32",
            "FusedConv": "float32", "MatMulIntegerToFloat": "int8", "DynamicQuantizeMatMul": "int8",
            "MatMulInteger": "int8", "QLinearMatMul": "int8", "QGemm": "int8", "MatMulNBits": "int4"}  # fmt: skip
ONE_KERNEL = {"Attention", "MultiHeadAttention", "QAttention"}
COPIES = {"Transpose", "Concat", "Split", "Slice", "Expand", "Gather", "ReorderInput", "ReorderOutput"}
VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Cast"}


def lint_on_onnxruntime(bundle: Bundle) -> Lint:
    """Runs one step of the bundle's default program on the CPU and counts its kernels. Raises EngineError."""
    import onnxruntime

    settings = session_settings(EngineOptions())
    with scratch_folder() as folder:
        settings.enable_profiling, settings.profile_file_prefix = True, str(folder / "step")
        with model_of(bundle.graph("step"), settings) as model:
            try:
                session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
                names = {tensor.name for tensor in session.get_inputs()}
                session.run(None, {name: array for name, array in _one_step(bundle).items() if name in names})
            except Exception as error:  # onnxruntime's own exception types are not public
                raise EngineError(f"{bundle.graph_file('step')}: ONNX Runtime: {first_line(error)}") from None
        events = read_json(Path(session.end_profiling()), MAX_PROFILE_BYTES, EngineError)
    kernels = [event["args"] for event in events if str(event.get("name", "")).endswith("_kernel_time")]
    by = f"ONNX Runtime {onnxruntime.__version__} on this CPU ({integer_kernels().name})"
    return kernel_report(kernels, bundle, by)


def kernel_report(kernels: list[dict[str, Any]], bundle: Bundle, library: str) -> Lint:
    """Counts kernels by what they are. kernels: "op_name", and "output_type_shape" as [{"float": [1, 64]}, ...]."""
    names = [kernel["op_name"] for kernel in kernels]
    fused = sum(name in ONE_KERNEL for name in names)
    why = "" if fused else "ONNX Runtime's CPU kernels compute it in several steps"
    blocks = range(bundle.manifest.model.depth)
    attention = tuple(Attention(f"blocks.{i}.attn", i < fused, why if i >= fused else "") for i in blocks)
    float32 = Counter(
        str(kernel["op_name"]).lower()
        for kernel in kernels
        if kernel["op_name"] not in COPIES | VIEWS and PRODUCTS.get(kernel["op_name"], "float32") == "float32"
        if any("float" in output for output in kernel.get("output_type_shape", ()))
    )
    path, stored = bundle.graph_file("step"), bundle.manifest.graph_bytes("step")
    gemms = Counter(PRODUCTS[name] for name in names if name in PRODUCTS)
    casts, copies = names.count("Cast"), sum(name in COPIES for name in names)
    return Lint("kernels", str(path), stored, library, attention, dict(gemms), casts, copies, dict(float32))


def _one_step(bundle: Bundle) -> dict[str, np.ndarray]:
    """Every input of the step graph: the middle of the default program, one image, guided where the model can be."""
    manifest, program = bundle.manifest, bundle.program()
    subject, away_from, size = any_subject(bundle)
    guidance, besides = told_besides(bundle, manifest.defaults.guidance, size)
    tables = step_tables(program, manifest.model, [subject], guidance, [away_from], besides)
    state = np.zeros((1, program.slots, *manifest.model.latent_shape), np.float32)
    with Session(bundle) as session:
        return session.step_inputs(tables, program.steps // 2, state)
