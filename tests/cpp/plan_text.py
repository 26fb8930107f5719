"""Plans for the double of CUDA and TensorRT (gpu_double.cpp): a text that names the ONNX file which does the arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

from tests.runtime.gpu_double import write_plans

VERSION = "10.14.1.48"  # of the headers that tools/fetch_gpu_headers.sh brings


def plan_text(source: Path, graph: str, tensors: dict, profile: dict) -> bytes:
    scratch = {"conditioner": 1000, "step": 5000, "decoder": 3000}[graph]
    plan = {"onnx": str(source), "graph": graph, "info": tensors, "profile": profile, "scratch": scratch}
    return json.dumps(plan).encode()


def with_cpp_plans(bundle: Path, **sizes: int) -> Path:
    """The bundle, with engines/tensorrt/. sizes: of `write_plans`."""
    write_plans(bundle, target="tensorrt", library=("tensorrt", VERSION), as_plan=plan_text, **sizes)
    return bundle
