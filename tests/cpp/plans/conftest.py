"""A bundle with plans of the double, and libditedge on that double of TensorRT and CUDA."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from capi_ctypes import Ditedge

from tests.conftest import ROOT
from tests.cpp.conftest import QUICK, Build
from tests.cpp.plan_text import with_cpp_plans
from tests.cpp.plans.support import Double

SOURCES = ("device_engine.cpp", "device_loop.cpp", "device_run.cpp", "device_steps.cpp", "engine_ort_cuda.cpp")
HEADERS = ("device.hpp", "device_engine.hpp", "device_memory.hpp", "device_run.hpp", "device_steps.hpp")


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


@pytest.fixture
def mutant(build: Build, with_plans: list[str], tmp_path: Path) -> Callable[..., Path]:
    """mutant((before, after), ...) -> libditedge.so with those texts of one of the loop's files replaced."""
    built = build("cpp-mutants", *with_plans, *QUICK)  # an object of each file

    def make(*changes: tuple[str, str]) -> Path:
        folder = ROOT / "runtime" / "cpp" / "src"
        texts = {name: (folder / name).read_text() for name in (*SOURCES, *HEADERS)}
        (changed,) = {name for name, text in texts.items() for before, _ in changes if before in text}
        for before, after in changes:
            assert texts[changed].count(before) == 1, f"{before!r} is not in the loop once"
            texts[changed] = texts[changed].replace(before, after)
        for name, text in texts.items():
            (tmp_path / name).write_text(text)
        stale = SOURCES if changed in HEADERS else (changed,)
        commands = {Path(entry["file"]): entry for entry in json.loads((built / "compile_commands.json").read_text())}
        for name in stale:
            words = shlex.split(commands[folder / name]["command"])
            words[words.index("-o") + 1] = str(tmp_path / f"{name}.o")
            words[words.index("-c") + 1] = str(tmp_path / name)
            words = [word for word in words if word not in ("-O1", "-Werror", "-Winvalid-pch")] + ["-O0"]
            subprocess.run(words, cwd=built, check=True, capture_output=True)
        objects = [*(built / "CMakeFiles" / "ditedge.dir" / "src").glob("*.o")]
        kept = [path for path in objects if path.name.removesuffix(".o") not in stale]
        library = tmp_path / "mutant.so"
        subprocess.run(
            ["c++", "-shared", "-o", library, *kept, *(tmp_path / f"{name}.o" for name in stale), "-ldl", "-pthread"],
            check=True,
        )
        return library

    return make
