"""The C++ loop on CUDA's own runtime library: libditedge as it is shipped, and TensorRT's half of the tests' double.

Steps are copies and a function of the host in a stream (OnCuda in tests/cpp/gpu_double.cpp), so that memory, captures,
replays and events are real. The libraries are those that tests/cpp/plans built here, or that `make gpu-pack` packed.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np

from ditedge.runtime.loop.cuda import load_cudart
from ditedge.runtime.loop.verify import relative_error
from ditedge.runtime.plans.record import RECORD_NAME

from .loop_checks import TOLERANCE, Lab

ROOT = Path(__file__).resolve().parents[2]
LIBRARY, DOUBLE = "libditedge.so", "libditedge-gpu-double.so"
PROGRAM = "ddpm-10"


def libraries() -> Path | None:
    """The folder of both."""
    folders = (ROOT / ".gpu" / "cpp", ROOT / "build" / "cpp")
    return next((folder for folder in folders if (folder / LIBRARY).exists() and (folder / DOUBLE).exists()), None)


def onnxruntime_library() -> Path | None:
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted((Path(spec.origin).parent / "capi").glob("libonnxruntime.so.*"))), None)


def missing() -> str | None:
    """What the check needs and is not here."""
    if libraries() is None:
        return f"{LIBRARY} and {DOUBLE} are not built: pytest tests/cpp/plans, or make gpu-pack, builds them"
    return None if onnxruntime_library() is not None else "the package onnxruntime, with its library, is not installed"


def cpp_loop(lab: Lab) -> str:
    """Captured, replayed and enqueued plainly: equal to the bit, and the latents of PyTorch's loop on the CPU."""
    with lab.subject.reference() as reference:
        expected = lab.subject.sample(reference, PROGRAM)
    folder = lab.subject.folder.parent / "cpp"
    bundle = _with_plans(lab.subject.source, folder)
    sampled = {}
    for way, options in (("captured", {}), ("plain", {"no_cuda_graph": 1})):
        handle = _ditedge()(folder / LIBRARY, bundle, folder / "libnvinfer.so", engine=b"tensorrt", **options)
        given = {"images": False, "program": PROGRAM.encode(), "guidance": 4.0, "batch": 5}
        for run in ("", ", again"):
            sampled[way + run] = handle.generate([9, 0, 3, 3, 5], [1, 2, 3, 4, 5], **given)
        handle.close()
    errors = {way: relative_error(latents, expected) for way, latents in sampled.items()}
    assert max(errors.values()) <= TOLERANCE, f"relative errors {errors}"
    apart = [way for way, latents in sampled.items() if not np.array_equal(latents, sampled["captured"])]
    assert not apart, f"not equal to the captured run: {apart}"
    return f"{PROGRAM} {errors['captured']:.1e}; captured, replayed and plain are equal"


def _ditedge() -> type:
    sys.path.insert(0, str(ROOT / "examples"))
    from capi_ctypes import Ditedge

    return Ditedge


def _with_plans(source: Path, folder: Path) -> Path:
    """A copy of the bundle with plans of the double; both libraries beside it, and the environment that they read."""
    from tests.cpp.plan_text import with_cpp_plans

    built, engine = libraries(), onnxruntime_library()
    assert built is not None and engine is not None, missing()
    folder.mkdir()
    for name, copy in ((LIBRARY, LIBRARY), (DOUBLE, DOUBLE), (DOUBLE, "libnvinfer.so")):  # a copy is another library
        shutil.copy(built / name, folder / copy)
    cudart = _cudart(folder / DOUBLE)
    os.environ |= {"DITEDGE_CUDART": cudart, "DOUBLE_ON_CUDA": cudart, "DITEDGE_ONNXRUNTIME": str(engine)}
    version = ctypes.CDLL(str(folder / "libnvinfer.so")).getInferLibVersion()
    text = f"{version // 10000}.{version // 100 % 100}.{version % 100}"
    bundle = with_cpp_plans(Path(shutil.copytree(source, folder / "bundle")), text)
    record = bundle / "engines" / "tensorrt" / RECORD_NAME
    record.write_text(json.dumps(json.loads(record.read_text()) | {"compute_capabilities": []}))  # any GPU
    return bundle


def _cudart(double: Path) -> str:
    """The real one where the driver runs it, else the double's other half."""
    import torch

    return str(load_cudart()._name) if torch.cuda.is_available() else str(double)
