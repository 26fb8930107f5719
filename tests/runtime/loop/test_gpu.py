"""What only a GPU can show. `make test-gpu`, which builds the plans first; skipped, with the reason, where there is none.

Plans are those of the demo bundle, build/demo/fashion/engines/*/: see docs/gpu-results.md.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ditedge.runtime import EngineOptions, Session, generate, open_bundle
from ditedge.runtime.loop.engine_trt import NvidiaGpu
from ditedge.runtime.loop.noise import standard_normal
from ditedge.runtime.loop.verify import relative_error, replay
from tests.conftest import ROOT

pytestmark = pytest.mark.gpu
DEMO = ROOT / "build" / "demo" / "fashion"
TENSOR_CORES = 1e-2  # TF32 matrix products keep ten bits of the mantissa; float16 plans, as many
LABELS, SEEDS = [9, 0, 3, 3, 5], [1, 2, 3, 4, 5]


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def plans(request: pytest.FixtureRequest) -> Path:
    """A folder of plans of the demo bundle for the GPU of this machine."""
    gpu, folder = NvidiaGpu(), DEMO / "engines" / request.param
    if request.param not in gpu.libraries():
        pytest.skip(f"{request.param} is not installed")
    if gpu.device() is None:
        pytest.skip("CUDA finds no device")
    if not (folder / "build.json").is_file():
        pytest.skip(f"no plans: python cli.py build --engine {DEMO.relative_to(ROOT)} --target {request.param}")
    return folder


def sample(folder: Path, *, cuda_graphs: bool = True, times: int = 1, **options: object) -> list[np.ndarray]:
    bundle = open_bundle(DEMO)
    options = {"guidance": 4.0, "program": bundle.program(steps=10), "output": "latents"} | options
    with Session(bundle, EngineOptions(plans=folder, cuda_graphs=cuda_graphs)) as session:
        return [generate(bundle, LABELS, SEEDS, session=session, **options) for _ in range(times)]  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [0, 7, 2**40 + 1])
def test_noise_equals_pytorchs_cuda_generator(seed: int) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no CUDA device")
    torch.manual_seed(seed)
    for draw in range(3):
        theirs = torch.randn(4, 32, 32, device="cuda").cpu().numpy().ravel()
        # float32 logarithm and sine on the GPU against float64 here: a few units in the last place of values up to 5
        np.testing.assert_allclose(standard_normal(seed, draw, theirs.size), theirs, atol=5e-6)


@pytest.mark.parametrize("provider", ["cuda", "CUDAExecutionProvider", "tensorrt"])
@pytest.mark.parametrize("case", ["gray1_cfg", "latent4_learned_sigma"])
def test_golden_trajectories_on_onnx_runtimes_providers(golden_bundle, case: str, provider: str) -> None:
    import onnxruntime

    from ditedge.runtime.loop.engine_ort import PROVIDERS

    if NvidiaGpu().device() is None:
        pytest.skip("there is no NVIDIA GPU, or no driver")
    if PROVIDERS.get(provider, provider) not in onnxruntime.get_available_providers():
        pytest.skip(f"this ONNX Runtime has no {provider} provider: pip install 'ditedge[gpu]'")
    with Session(open_bundle(golden_bundle(case)), EngineOptions(provider=provider)) as session:
        for golden in session.bundle.manifest.golden:
            assert replay(session, golden).error.max() < TENSOR_CORES


def test_golden_trajectories_on_plans(plans: Path) -> None:
    with Session(open_bundle(DEMO), EngineOptions(plans=plans)) as session:
        for golden in session.bundle.manifest.golden:
            assert replay(session, golden).error.max() < TENSOR_CORES


def test_latents_equal_onnx_runtimes(plans: Path) -> None:
    bundle = open_bundle(DEMO)
    program = bundle.program(steps=10)
    expected = generate(bundle, LABELS, SEEDS, program=program, guidance=4.0, output="latents")
    (actual,) = sample(plans)
    assert relative_error(actual, expected) < TENSOR_CORES


def test_graph_replays_equal_each_other_and_plain_enqueuing(plans: Path) -> None:
    """The same kernels in the same order on the same numbers: to the bit."""
    captured, replayed = sample(plans, times=2)
    (enqueued,) = sample(plans, cuda_graphs=False)
    assert np.array_equal(captured, replayed) and np.array_equal(captured, enqueued)


def test_progress_does_not_change_the_result(plans: Path) -> None:
    """One graph a step and copies to the host, against one graph of all steps."""
    steps: list[int] = []
    (watched,) = sample(plans, on_step=lambda progress: steps.append(progress.done))
    (plain,) = sample(plans)
    assert steps == list(range(1, 11)) and np.array_equal(watched, plain)


def test_batches_of_several_sizes_and_pictures(plans: Path) -> None:
    """A batch of another size has other kernels: pictures within a few of 255 levels of ONNX Runtime's."""
    bundle = open_bundle(DEMO)
    program = bundle.program(steps=10)
    expected = generate(bundle, LABELS, SEEDS, program=program, guidance=4.0)
    for batch in (1, 2, 5):
        (pictures,) = sample(plans, batch=batch, output="images")
        assert np.abs(pictures.astype(int) - expected).mean() < 1.0


def test_the_benchmark_runs(plans: Path) -> None:
    command = [
        sys.executable,
        ROOT / "bench" / "gpu.py",
        "--engine",
        plans / "dit.plan",
        "--steps",
        "5",
        "--batch",
        "1",
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "| ms per step |" in result.stdout and "dit.plan" in result.stdout
