"""Plans for the double of CUDA and TensorRT (gpu_double.cpp): a text that names the ONNX file which does the arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.doubles.gpu_double import SCRATCH_BYTES
from tests.doubles.plans import Library, write_plans


def plan_text(source: Path, graph: str, tensors: dict, profile: dict, one_image: dict, further: list) -> bytes:
    plan = {"onnx": str(source), "graph": graph, "info": tensors, "profile": profile, "one_image": one_image}
    text = json.loads((source.parent / "manifest.json").read_text()).get("text") or {"factor": 1}
    return json.dumps(plan | {"further": further, "factor": text["factor"], "scratch": SCRATCH_BYTES[graph]}).encode()


def with_cpp_plans(bundle: Path, version: str, library: str = "tensorrt", **sizes: Any) -> Path:
    """The bundle, with engines/`library`/ as TensorRT `version` would build it. sizes: of `write_plans`."""
    write_plans(bundle, library=Library(library, version, plan_text), **sizes)
    return bundle
