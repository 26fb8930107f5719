"""A bundle's plans on the double: what the tests of the device loop share."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from ditedge.runtime import EngineOptions, Program, Session, generate
from ditedge.runtime.bundle.open import Bundle
from ditedge.runtime.loop.noise import GivenNoise
from ditedge.runtime.loop.verify import relative_error
from tests.conftest import CASES, GOLDEN, golden_case

TOLERANCE = 1e-5  # float32 against the reference's float32, as on ONNX Runtime: measured at most 2.4e-6


LABELS, SEEDS = [3, 1, 3, 9, 0], [11, 12, 13, 14, 15]

LONG = pytest.param("latent4_learned_sigma", "ddpm250_nocfg", marks=pytest.mark.slow)  # 250 steps
LOOPS = [
    *((case, loop["name"]) for case in CASES for loop in golden_case(case)["loops"] if loop["name"] != "ddpm250_nocfg"),
    LONG,
]


def plans(bundle: Bundle, cuda_graphs: bool = True) -> Session:
    folder = bundle.folder / "engines" / "double"
    return Session(bundle, EngineOptions(plans=folder, cuda_graphs=cuda_graphs))


def latents(bundle: Bundle, session: Session, program: Program, guidance: float = 3.0, **options) -> np.ndarray:
    options = {"labels": LABELS, "seeds": SEEDS, "batch": 8} | options
    return generate(bundle, program=program, guidance=guidance, output="latents", session=session, **options)


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


def check_recorded(session: Session, program: Program, recorded: dict[str, np.ndarray], guidance: float) -> None:
    """Each state of a recorded trajectory where somebody looks, and the last one where nobody does."""
    errors: list[float] = []
    noise = GivenNoise(recorded["z"], recorded["noise"])
    session.latents(
        program, recorded["y"].tolist(), guidance, noise,
        on_step=lambda event: errors.append(relative_error(event.latents, recorded["x"][event.step - 1])),
    )  # fmt: skip
    final = session.latents(program, recorded["y"].tolist(), guidance, noise)
    assert len(errors) == len(recorded["x"]) and max(errors) < TOLERANCE
    assert relative_error(final, recorded["x"][-1]) < TOLERANCE
