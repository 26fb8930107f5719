"""What steps cost, on a clock of the test's own."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ditedge.calibration.pool import pool_of
from ditedge.calibration.tune import costs
from ditedge.calibration.tune.costs import measured_costs
from ditedge.runtime import EngineOptions, Session, open_bundle
from ditedge.runtime.loop import engine_trt
from ditedge.runtime.samplers.program import Program
from tests.doubles.gpu_double import DoubleGpu
from tests.doubles.plans import write_plans

BESIDES, EVALUATION = 3.0, 2.0  # seconds of a run


def stop_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run takes BESIDES, and EVALUATION for every forward pass; nothing else takes time."""
    clock, real = SimpleNamespace(now=0.0), Session.latents
    monkeypatch.setattr(costs, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def latents(session: Session, program: Program, *arguments: object) -> np.ndarray:
        clock.now += BESIDES + EVALUATION * (program.steps + np.count_nonzero(program.guidance))
        return real(session, program, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Session, "latents", latents)


def test_a_step_on_a_device_is_its_share_of_a_run_there(
    golden_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a step of the ONNX graph on the host, which no program of a search runs then."""
    folder = Path(shutil.copytree(golden_bundle("gray1_cfg"), tmp_path / "bundle"))
    write_plans(folder)
    monkeypatch.setattr(engine_trt, "NvidiaGpu", DoubleGpu)
    monkeypatch.setattr(Session, "engine", lambda *_: pytest.fail("the host's engine was asked"))
    stop_the_clock(monkeypatch)
    bundle = open_bundle(folder)
    steps = bundle.program().steps
    with Session(bundle, EngineOptions(plans=folder / "engines" / "double")) as session:
        found = measured_costs(session, pool_of(bundle))
    own = BESIDES / steps
    assert (found.one, found.two) == pytest.approx((EVALUATION + own, 2 * EVALUATION + own))
    assert found.rest == pytest.approx(0.0, abs=1e-9)


def test_a_default_that_is_not_guided_in_the_middle_does_not_hide_what_guidance_costs(
    golden_bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    program = bundle.program(steps=5)
    late = replace(program, guidance=np.array([1.0, 1.0, 0.0, 0.0, 0.0]))
    monkeypatch.setattr(type(bundle), "program", lambda *_: late)
    evaluations: list[int] = []
    real = Session.step_inputs

    def step_inputs(*arguments: object) -> dict[str, np.ndarray]:
        inputs = real(*arguments)  # type: ignore[arg-type]
        evaluations.append(len(inputs["sample"]))
        return inputs

    monkeypatch.setattr(Session, "step_inputs", step_inputs)
    with Session(bundle) as session:
        measured_costs(session, pool_of(bundle))
    assert evaluations == [1, 2]
