"""The C++ runtime, built once a session into build/; what is missing for it is a reason to skip."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from capi_ctypes import Ditedge

from ditedge.runtime import open_bundle
from ditedge.runtime.bundle.open import Bundle
from ditedge.runtime.loop.prompts import prompt_of_ids, write_prompt
from ditedge.runtime.loop.session import Session
from tests.conftest import BUNDLES, PIXART, PROCESSORS, ROOT
from tests.cpp.support import BOOT, Later

Build = Callable[..., Path]
QUICK = ("-DCMAKE_BUILD_TYPE=Quick", "-DCMAKE_CXX_FLAGS_QUICK=-O1 -DNDEBUG")


def need(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"the C++ runtime is not tested: {tool} is not installed")


@contextmanager
def alone() -> Iterator[None]:
    """One process at a time in build/: tests may run in several."""
    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build" / ".tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _everywhere() -> None:
    """A compiler takes every processor: the other process of the tests waits for it."""
    if PROCESSORS:
        os.sched_setaffinity(0, PROCESSORS)


@pytest.fixture(scope="session")
def headers() -> Path:
    need("cmake", "c++")
    folder = ROOT / "build" / "cpp-headers"
    with alone():
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
            with alone():
                done = subprocess.run(command, capture_output=True, text=True, preexec_fn=_everywhere)
            assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return folder

    return made


@pytest.fixture(scope="session")
def gpu_headers() -> tuple[Path, Path]:
    """Folders of TensorRT's and CUDA's headers: $TENSORRT_ROOT and $CUDA_ROOT, else fetched ones."""
    if "TENSORRT_ROOT" in os.environ:
        return Path(os.environ["TENSORRT_ROOT"]), Path(os.environ.get("CUDA_ROOT", "/usr/local/cuda"))
    folder, script = ROOT / "build" / "gpu-headers", ROOT / "tools" / "fetch_gpu_headers.sh"
    with alone():
        fetched = subprocess.run([script, sys.executable, folder], capture_output=True, text=True)
    if fetched.returncode:
        reason = fetched.stderr.strip()[-200:]
        pytest.skip(f"the engine for plans is not tested: its headers cannot be fetched: {reason}")
    return folder / "tensorrt", folder / "cuda"


@pytest.fixture(scope="session")
def tensorrt_version(gpu_headers: tuple[Path, Path]) -> str:
    """ "10.14.1": of the headers, and so of the double."""
    (header,) = {path.resolve() for path in gpu_headers[0].rglob("NvInferVersion.h")}
    names = (rf"(?:TRT_{part}_ENTERPRISE|NV_TENSORRT_{part})" for part in ("MAJOR", "MINOR", "PATCH"))
    return ".".join(re.search(rf"#define {name} (\d+)", header.read_text())[1] for name in names)  # type: ignore[index]


@pytest.fixture(scope="session")
def with_plans(request: pytest.FixtureRequest) -> list[str]:
    """CMake options: the engine for plans and the double of its libraries, where there are headers for them."""
    try:
        tensorrt, cuda = request.getfixturevalue("gpu_headers")
    except pytest.skip.Exception:  # what runs on ONNX Runtime is tested all the same
        return ["-DTENSORRT_ROOT=", "-DDITEDGE_TESTS=ON"]
    return [f"-DTENSORRT_ROOT={tensorrt}", f"-DCUDA_ROOT={cuda}", "-DDITEDGE_TESTS=ON"]


@pytest.fixture(scope="session")
def built(build: Build, with_plans: list[str]) -> Path:
    """Half optimised (a third of the time; its arithmetic is ONNX Runtime's), 20 files at once (half of that).

    `make cpp` compiles anew, each file alone.
    """
    return build("cpp", *with_plans, *QUICK, "-DCMAKE_UNITY_BUILD=ON", "-DCMAKE_UNITY_BUILD_BATCH_SIZE=20")


@pytest.fixture(scope="session")
def onnxruntime_library() -> Path:
    spec = importlib.util.find_spec("onnxruntime")
    assert spec is not None and spec.origin is not None
    found = sorted((Path(spec.origin).parent / "capi").glob("libonnxruntime.so.*"))
    if not found:
        pytest.skip("this onnxruntime package has no libonnxruntime.so")
    return found[0]


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """One that takes prompts."""
    return open_bundle(BUNDLES / PIXART)


@pytest.fixture(scope="session")
def recorded(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its prompt BOOT, as `ditedge encode` records it."""
    path = tmp_path_factory.mktemp("recorded") / "boot.safetensors"
    with Session(bundle) as session:
        rows = session.encode(prompt_of_ids(BOOT))
    write_prompt(path, None, rows, bundle.manifest.text.encoder_sha256)  # type: ignore[union-attr]
    return path


@pytest.fixture
def opened(built: Path, onnxruntime_library: Path):
    handles: list[Ditedge] = []

    def make(bundle: Path) -> Ditedge:
        handles.append(Ditedge(built / "libditedge.so", bundle, onnxruntime_library, threads=2))
        return handles[-1]

    yield make
    for handle in handles:
        handle.close()


@pytest.fixture
def later(built: Path):
    handles: list[Later] = []

    def make(bundle: Path | str, check_hashes: int = 1) -> Later:
        handles.append(Later(built / "libditedge.so", bundle, check_hashes))
        return handles[-1]

    yield make
    for handle in handles:
        handle.close()
