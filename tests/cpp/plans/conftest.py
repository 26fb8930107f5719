"""A bundle with plans of the double, and libditedge on that double of TensorRT and CUDA."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from capi_ctypes import Ditedge

from tests.cpp.plan_text import with_cpp_plans
from tests.cpp.plans.support import Double


@pytest.fixture
def double(built: Path, gpu_headers, onnxruntime_library: Path, monkeypatch: pytest.MonkeyPatch):
    path = built / "libditedge-gpu-double.so"
    monkeypatch.setenv("DITEDGE_CUDART", str(path))
    monkeypatch.setenv("DITEDGE_ONNXRUNTIME", str(onnxruntime_library))
    double = Double(path)
    double.reset()
    yield double
    report = double.report
    assert report["broken"] == ""
    assert [report[kind] for kind in ("live", "graphs", "events", "streams")] == [0, 0, 0, 0], (
        "not everything was freed"
    )


@pytest.fixture(scope="session")
def plan_bundle(golden_bundle, tensorrt_version: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """plan_bundle(case, prediction, **sizes of write_plans) -> a bundle with engines/tensorrt/."""
    root = tmp_path_factory.mktemp("cpp-plans")

    def make(case: str, prediction: str = "epsilon", **sizes: int) -> Path:
        out = root / "-".join([case, prediction, *(f"{k}{v}" for k, v in sizes.items())])
        if not out.exists():
            shutil.copytree(golden_bundle(case, prediction), out)
            with_cpp_plans(out, tensorrt_version, **sizes)
        return out

    return make


@pytest.fixture
def opened(built: Path, double: Double):
    handles: list[Ditedge] = []

    def make(bundle: Path, library: Path | None = None, **options: object) -> Ditedge:
        library = library or built / "libditedge.so"
        handles.append(Ditedge(library, bundle, double.path, **{"engine": b"tensorrt", **options}))
        return handles[-1]

    yield make
    for handle in handles:
        handle.close()
