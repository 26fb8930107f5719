"""Programs whose steps differ, on plans: guidance that ramps, and what only ONNX graphs can do."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ditedge.runtime import EngineOptions, Session, generate, open_bundle
from ditedge.runtime.bundle.open import Bundle
from ditedge.runtime.errors import RequestError
from ditedge.runtime.loop import engine_trt
from tests.doubles.gpu_double import DoubleGpu
from tests.doubles.plans import write_plans
from tests.second_step import with_half_step

RAMP = np.maximum(0, np.linspace(-0.5, 1.5, 6))


@pytest.fixture
def bundle(golden_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """With a second step graph, and plans of a double of a GPU."""
    folder = Path(shutil.copytree(golden_bundle("gray1_cfg"), tmp_path / "bundle"))
    with_half_step(folder)
    write_plans(folder)
    double = DoubleGpu()
    monkeypatch.setattr(engine_trt, "NvidiaGpu", lambda: double)
    return open_bundle(folder)


def on_plans(bundle: Bundle) -> Session:
    return Session(bundle, EngineOptions(plans=bundle.folder / "engines" / "double"))


def test_a_ramp_of_guidance_equals_onnx_runtime(bundle: Bundle) -> None:
    """Twice: graphs are captured, then replayed with the tables of another ramp."""
    program = replace(bundle.program(sampler="dpm++", steps=6), guidance=RAMP)
    other = replace(program, guidance=RAMP**2)
    with on_plans(bundle) as device, Session(bundle) as host:
        made = []
        for ramp in (program, other, program):
            actual, expected = (
                generate(bundle, [3, 1], [5, 6], program=ramp, guidance=4.0, output="latents", session=session)
                for session in (device, host)
            )
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-6 * np.abs(expected).max())
            made.append(expected)
    assert np.abs(made[0] - made[1]).max() > 1e-3


def test_what_plans_cannot_do_is_refused(bundle: Bundle) -> None:
    program = bundle.program(steps=3)
    half = replace(program, graph=("step", "step", "step-half"))
    with on_plans(bundle) as session:
        run = session.start(program, 1, 2)
        with pytest.raises(RequestError, match="plans run whole programs: sample step by step with"):
            session.advance([run])
        for call in (
            lambda: session.start(half, 1, 2),
            lambda: generate(bundle, [1], [2], program=half, output="latents", session=session),
        ):
            with pytest.raises(RequestError, match="runs graph 'step-half', and plans have 'step' alone"):
                call()
