"""libditedge compiled with headers that are TensorRT-RTX's as far as it uses them (rtx_headers.py), over the double."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from capi_ctypes import Ditedge

from ditedge.runtime import open_bundle
from ditedge.runtime.loop.verify import relative_error
from tests.conftest import ROOT
from tests.cpp.conftest import Build
from tests.cpp.plan_text import with_cpp_plans
from tests.cpp.plans.support import LABELS, SEEDS, Double
from tests.cpp.plans.test_loop import by_python
from tests.cpp.rtx_headers import made
from tests.cpp.support import TOLERANCE

pytestmark = pytest.mark.slow
Sampled = Callable[[], tuple[np.ndarray, list[str]]]


@pytest.fixture(scope="module")
def library(build: Build, gpu_headers: tuple[Path, Path]) -> Path:
    """The folder build/cpp-rtx."""
    headers = ROOT / "build" / "rtx-headers"
    made(gpu_headers[0], headers)
    return build("cpp-rtx", f"-DTENSORRT_ROOT={headers}", f"-DCUDA_ROOT={gpu_headers[1]}", "-DDITEDGE_TESTS=ON")


@pytest.fixture
def double(library: Path, onnxruntime_library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Double]:
    path = library / "libditedge-gpu-double.so"
    monkeypatch.setenv("DITEDGE_CUDART", str(path))
    monkeypatch.setenv("DITEDGE_ONNXRUNTIME", str(onnxruntime_library))
    double = Double(path)
    double.reset()
    yield double
    assert double.report["broken"] == "" and double.report["live"] == 0


@pytest.fixture
def bundle(golden_bundle, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(golden_bundle("gray1_cfg"), tmp_path / "b"))
    return with_cpp_plans(folder, "1.7.1", library="tensorrt-rtx")


@pytest.fixture
def sampled(library: Path, double: Double, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sampled:
    """A start: latents, and the session's warnings."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def start() -> tuple[np.ndarray, list[str]]:
        handle = Ditedge(library / "libditedge.so", bundle, double.path, engine=b"tensorrt-rtx")
        try:
            return handle.generate(LABELS, SEEDS, images=False, program=b"ddim-25"), handle.warnings()
        finally:
            handle.close()

    return start


def test_kernels_are_compiled_once_for_all_starts(
    sampled: Sampled, double: Double, bundle: Path, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    first, said = sampled()
    assert relative_error(first, by_python(open_bundle(bundle))) < TOLERANCE and said == []
    assert double.report["counts"]["compile"] == 2  # conditioner, step
    assert double.report["counts"]["asked"] == double.report["counts"]["capture"] == 1
    assert np.array_equal(sampled()[0], first) and double.report["counts"]["compile"] == 2
    folder = tmp_path / "cache" / "ditedge" / "kernels"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before
    for file in folder.iterdir():  # of another driver
        file.write_bytes(file.read_bytes().replace(b"580", b"570"))
    sampled()
    assert double.report["counts"]["compile"] == 4
    sampled()
    assert double.report["counts"]["compile"] == 4


@pytest.mark.parametrize("spoil", ["open to others", "a link", "a file that others write to"])
def test_kernels_that_others_could_have_written_are_not_loaded(
    sampled: Sampled, double: Double, tmp_path: Path, spoil: str
) -> None:
    sampled()
    folder = tmp_path / "cache" / "ditedge" / "kernels"
    if spoil == "open to others":
        folder.chmod(0o777)
    elif spoil == "a link":
        folder.symlink_to(folder.rename(tmp_path / "elsewhere"))
    for file in folder.iterdir() if spoil == "a file that others write to" else ():
        file.chmod(0o666)
    _, said = sampled()
    assert double.report["counts"]["compile"] == 4
    assert [f"{folder} is not a folder of this user alone" in text for text in said] == [True] * (spoil[:6] != "a file")


def test_it_is_asked_before_a_capture(sampled: Sampled, double: Double) -> None:
    expected, _ = sampled()
    double.c.double_not_capturable()
    mine, (said,) = sampled()
    assert (
        np.array_equal(mine, expected)
        and "cannot be captured as a CUDA graph: " in said
        and "(TensorRT says so)" in said
    )
    assert double.report["counts"]["asked"] == 2 and double.report["counts"]["capture"] == 1
