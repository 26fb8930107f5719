"""The production loop for plans, on the CPU: every CUDA and TensorRT call goes to a strict double (gpu_double.py)."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ditedge.runtime import Cancelled, EngineOptions, Program, Sampler, device_loop, engine_trt, generate, open_bundle
from ditedge.runtime.bundle import Bundle
from ditedge.runtime.programs import with_x0_slot
from ditedge.runtime.sampler import GivenNoise, SeededNoise
from ditedge.runtime.verify import relative_error, replay
from tests.conftest import CASES, GOLDEN, golden_case
from tests.runtime.gpu_double import DoubleError, DoubleGpu, write_plans

TOLERANCE = 1e-5  # float32 against the reference's float32, as on ONNX Runtime: measured at most 2.4e-6
LOOPS = [(case, loop["name"]) for case in CASES for loop in golden_case(case)["loops"]]
LABELS, SEEDS = [3, 1, 3, 9, 0], [11, 12, 13, 14, 15]


@pytest.fixture(scope="session")
def plan_bundle(golden_bundle, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """plan_bundle(case, prediction) -> an opened bundle with engines/double/."""
    folder = tmp_path_factory.mktemp("plans")

    def copy(case: str, prediction: str = "epsilon") -> Bundle:
        out = folder / f"{case}-{prediction}"
        if not out.exists():
            shutil.copytree(golden_bundle(case, prediction), out)
            write_plans(out)
        return open_bundle(out)

    return copy


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> DoubleGpu:
    """What `Sampler` finds instead of a GPU."""
    double = DoubleGpu()
    monkeypatch.setattr(engine_trt, "NvidiaGpu", lambda: double)
    return double


def plans(bundle: Bundle, cuda_graphs: bool = True) -> Sampler:
    folder = bundle.folder / "engines" / "double"
    return Sampler(bundle, EngineOptions(plans=folder, cuda_graphs=cuda_graphs))


def latents(bundle: Bundle, sampler: Sampler, program: Program, guidance: float = 3.0, **options) -> np.ndarray:
    options = {"labels": LABELS, "seeds": SEEDS, "batch": 8} | options
    return generate(bundle, program=program, guidance=guidance, output="latents", sampler=sampler, **options)


def same(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for the rounding of matrix products of other shapes (blocks of steps, threads)."""
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-6 * np.abs(expected).max())


def recorded_program(case: str, name: str, plan_bundle) -> tuple[Bundle, Program, dict[str, np.ndarray], float]:
    loop = next(loop for loop in golden_case(case)["loops"] if loop["name"] == name)
    bundle = plan_bundle(case, "x0" if loop.get("predict_xstart") else "epsilon")
    variance = None
    if loop["loop"] == "ddpm" and not bundle.manifest.model.learned_variance:
        variance = "fixed-small" if loop.get("sigma_small") else "fixed-large"
    eta = loop["eta"] if loop["loop"] == "ddim" else None
    program = bundle.program(
        sampler=loop["loop"], respacing=loop["respacing"], eta=eta, clip_x0=loop["clip"], variance=variance
    )
    return bundle, program, load_file(GOLDEN / case / f"{name}.safetensors"), loop["cfg"] or 1.0


@pytest.mark.parametrize(("case", "name"), LOOPS)
def test_recorded_trajectories(plan_bundle, gpu: DoubleGpu, case: str, name: str) -> None:
    bundle, program, recorded, guidance = recorded_program(case, name, plan_bundle)
    errors: list[float] = []
    noise = GivenNoise(recorded["z"], recorded["noise"])
    with plans(bundle) as sampler:
        sampler.latents(
            program, recorded["y"].tolist(), guidance, noise,
            on_step=lambda event: errors.append(relative_error(event.latents, recorded["x"][event.step - 1])),
        )  # fmt: skip
        final = sampler.latents(program, recorded["y"].tolist(), guidance, noise)  # one graph of all steps
    assert len(errors) == len(recorded["x"]) and max(errors) < TOLERANCE
    assert relative_error(final, recorded["x"][-1]) < TOLERANCE
    assert not gpu.live and not gpu.graphs and not gpu.events and not gpu.streams


def test_verify_replays_on_plans(plan_bundle, gpu: DoubleGpu) -> None:
    with plans(plan_bundle("gray1_cfg")) as sampler:
        results = [replay(sampler, golden) for golden in sampler.bundle.manifest.golden]
    assert results and all(result.passed for result in results)
    assert {path.name for path in gpu.deserialized} == {"conditioner.plan", "dit.plan", "decoder.plan"}
