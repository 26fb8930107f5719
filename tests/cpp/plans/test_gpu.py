"""libditedge on a GPU: `make test-gpu` builds the plans first; TENSORRT_ROOT has the headers of this machine's library.

$DITEDGE_TENSORRT and $DITEDGE_CUDART name the libraries where the system does not find them; see docs/gpu-results.md.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from capi_ctypes import Ditedge, DitedgeError

from ditedge.runtime import generate, open_bundle
from ditedge.runtime.loop.engine_trt import NvidiaGpu
from ditedge.runtime.loop.verify import relative_error
from tests.conftest import ROOT
from tests.cpp.support import NO_DEVICE
from tests.runtime.loop.test_gpu import DEMO, LABELS, SEEDS, TENSOR_CORES

pytestmark = pytest.mark.gpu


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def handle(request: pytest.FixtureRequest, built: Path):
    if "TENSORRT_ROOT" not in os.environ:
        pytest.skip("give TENSORRT_ROOT: the headers have to be those of this machine's TensorRT")
    if not (DEMO / "engines" / request.param / "build.json").is_file():
        pytest.skip(f"no plans: python cli.py build --engine {DEMO.relative_to(ROOT)} --target {request.param}")
    try:
        handle = Ditedge(built / "libditedge.so", DEMO, engine=request.param.encode())
    except DitedgeError as error:
        if error.status == NO_DEVICE or "not to be found" in str(error) or "compiled with headers" in str(error):
            pytest.skip(str(error))
        raise
    yield handle
    handle.close()


@pytest.mark.parametrize("program", ["dpm++-20", "ddpm-10"])
def test_latents_are_those_of_onnx_runtime(handle: Ditedge, program: str) -> None:
    bundle = open_bundle(DEMO)
    expected = generate(bundle, LABELS, SEEDS, program=bundle.program(program), output="latents")
    fields = {"images": False, "program": program.encode()}
    first = handle.generate(LABELS, SEEDS, **fields)
    assert relative_error(first, expected) < TENSOR_CORES
    assert np.array_equal(first, handle.generate(LABELS, SEEDS, **fields)), "replayed graphs, the same bits"
    done: list[int] = []
    watched = handle.generate(LABELS, SEEDS, on_progress=lambda p: done.append(p.done), **fields)
    assert np.array_equal(first, watched) and done == list(range(1, len(done) + 1))
    smaller = handle.generate(LABELS, SEEDS, batch=2, **fields)
    assert relative_error(smaller, expected) < TENSOR_CORES


def test_pictures_and_previews(handle: Ditedge) -> None:
    bundle, shown = open_bundle(DEMO), []
    expected = generate(bundle, LABELS, SEEDS)
    images = handle.generate(LABELS, SEEDS)
    # Float32 kernels in another order move a picture's values by less than one in most pixels
    assert np.mean(np.abs(images.astype(int) - expected) <= 2) >= 0.99
    handle.generate(LABELS, SEEDS, preview_every=5, on_preview=lambda step, pictures: shown.append(pictures))
    assert len(shown) == 4 and shown[0].shape == images.shape


def test_latents_of_onnx_runtimes_cuda_provider(built: Path, onnxruntime_library: Path) -> None:
    if NvidiaGpu().device() is None:
        pytest.skip("there is no NVIDIA GPU, or no driver")
    try:
        handle = Ditedge(built / "libditedge.so", DEMO, onnxruntime_library, provider=b"cuda")
    except DitedgeError as error:
        if "is not in this ONNX Runtime" not in str(error):
            raise
        pytest.skip(str(error))
    bundle = open_bundle(DEMO)
    mine = handle.generate(LABELS, SEEDS, images=False, program=b"ddim-10")
    handle.close()
    expected = generate(bundle, LABELS, SEEDS, program=bundle.program("ddim-10"), output="latents")
    assert relative_error(mine, expected) < TENSOR_CORES
