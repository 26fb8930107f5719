"""The C++ runtime, built once a session into build/; what is missing for it is a reason to skip."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
Build = Callable[..., Path]


def need(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"the C++ runtime is not tested: {tool} is not installed")


@pytest.fixture(scope="session")
def headers() -> Path:
    need("cmake", "c++")
    folder = ROOT / "build" / "cpp-headers"
    fetched = subprocess.run([ROOT / "tools" / "fetch_cpp_headers.sh", folder], capture_output=True, text=True)
    if fetched.returncode:
        pytest.skip(f"the C++ runtime is not tested: its headers cannot be fetched: {fetched.stderr.strip()[-200:]}")
    return folder


@pytest.fixture(scope="session")
def build(headers: Path) -> Build:
    """build(name, *cmake options) -> the folder build/`name`, up to date."""

    def made(name: str, *options: str) -> Path:
        folder = ROOT / "build" / name
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        fresh = [] if (folder / "CMakeCache.txt").exists() else generator
        configure = ["cmake", "-S", ROOT / "runtime" / "cpp", "-B", folder, *fresh, f"-DDITEDGE_HEADERS={headers}"]
        for command in (
            [*configure, "-DCMAKE_BUILD_TYPE=Release", *options],
            ["cmake", "--build", folder, "--parallel", "2"],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return folder

    return made


@pytest.fixture(scope="session")
def gpu_headers() -> Path:
    """TensorRT's and CUDA's headers, and the real libcudart."""
    folder = ROOT / "build" / "gpu-headers"
    fetched = subprocess.run(
        [ROOT / "tools" / "fetch_gpu_headers.sh", sys.executable, folder], capture_output=True, text=True
    )
    if fetched.returncode:
        pytest.skip(
            f"the engine for plans is not tested: its headers cannot be fetched: {fetched.stderr.strip()[-200:]}"
        )
    return folder


@pytest.fixture(scope="session")
def with_plans(gpu_headers: Path) -> list[str]:
    """CMake options: the engine for plans, and the double of its libraries."""
    return [f"-DTENSORRT_ROOT={gpu_headers / 'tensorrt'}", f"-DCUDA_ROOT={gpu_headers / 'cuda'}", "-DDITEDGE_TESTS=ON"]


@pytest.fixture(scope="session")
def built(build: Build, with_plans: list[str]) -> Path:
    return build("cpp", *with_plans)


@pytest.fixture(scope="session")
def onnxruntime_library() -> Path:
    spec = importlib.util.find_spec("onnxruntime")
    assert spec is not None and spec.origin is not None
    found = sorted((Path(spec.origin).parent / "capi").glob("libonnxruntime.so.*"))
    if not found:
        pytest.skip("this onnxruntime package has no libonnxruntime.so")
    return found[0]
