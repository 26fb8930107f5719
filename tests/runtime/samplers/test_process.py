"""What a program was made for, against what the model is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ditedge.cli import main
from ditedge.runtime import Program, generate, open_bundle
from ditedge.runtime.errors import ProgramError, RequestError
from ditedge.runtime.samplers.process import process_without_betas, same_schedule
from ditedge.runtime.samplers.program import read_program, write_program
from ditedge.runtime.samplers.schedule import ScheduleInfo, cosine_betas, linear_betas, schedule_from_info
from ditedge.runtime.samplers.settings import SamplerSettings, make_program

LINEAR = {"kind": "linear", "beta_start": 1e-4, "beta_end": 0.02, "steps": 1000}


def given(betas: np.ndarray) -> dict:
    return {"kind": "given", "betas": betas.tolist(), "steps": len(betas)}


def program(prediction: str = "epsilon", **betas: object) -> Program:
    """DDIM of 3 steps on LINEAR, or on what `betas` change of it."""
    schedule = schedule_from_info(ScheduleInfo.model_validate(LINEAR | betas))
    return make_program(schedule, SamplerSettings("ddim", 3), learned_variance=False, prediction=prediction)


def flow(timestep_range: tuple[float, float] = (0.0, 1.0)) -> Program:
    settings = SamplerSettings("flow-euler", 3)
    flow = {"prediction": "flow-to-data", "timestep_range": timestep_range}
    return make_program(None, settings, learned_variance=False, **flow)


FOREIGN = {
    "v": (program("v"), "made for a prediction of v; this model has a prediction of epsilon"),
    "last beta": (program(beta_end=0.0201), "linear betas from 0.0001 to 0.0201 over 1000 timesteps; this model has "),
    "kind": (program(kind="scaled_linear"), "made for scaled_linear betas"),
    "steps": (program(steps=4000), "timesteps from 3999 .* this model has timesteps from 999"),
    "zero terminal SNR": (program("v", zero_terminal_snr=True), "rescaled to zero terminal SNR"),
    "given": (
        program(**given(np.linspace(2e-4, 0.02, 1000)), beta_start=None, beta_end=None),
        "given betas from 0.0002",
    ),
    "flow": (flow(), "made for a prediction of flow-to-data .* a flow, which has no betas"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_program_for_another_model_is_refused_with_both_values(golden_bundle, tmp_path: Path, name: str) -> None:
    foreign, sentence = FOREIGN[name]
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    with pytest.raises(RequestError, match=sentence):
        generate(bundle, [1], [0], program=foreign)
    assert generate(bundle, [1], [0], program=foreign, force_program=True).shape == (1, 8, 8, 1)
    assert generate(bundle, [1], [0], program=replace(foreign, process=None)).shape == (1, 8, 8, 1)  # not known
    write_program(foreign, tmp_path / "p.json")
    arguments = ["run", "--engine", str(bundle.folder), "--program", str(tmp_path / "p.json"), "--class", "1",
                 "-o", str(tmp_path / "a.png")]  # fmt: skip
    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code == 2 and "--force-program" in refused.stderr and not (tmp_path / "a.png").exists()
    assert CliRunner().invoke(main, [*arguments, "--force-program"]).exit_code == 0


@pytest.mark.parametrize("foreign", [program(), flow((1.0, 0.0)), flow((1000.0, 0.0))])
def test_a_flow_refuses_diffusion_and_other_timesteps(golden_bundle, foreign: Program) -> None:
    bundle = open_bundle(golden_bundle("gray1_cfg", prediction="flow-to-data"))
    with pytest.raises(RequestError, match="this model has "):
        generate(bundle, [1], [0], program=foreign)


@pytest.mark.parametrize("flow", [False, True])
def test_a_models_own_programs_pass(golden_bundle, tmp_path: Path, flow: bool) -> None:
    bundle = open_bundle(golden_bundle("gray1_cfg", **({"prediction": "flow-to-data"} if flow else {})))
    for own in (bundle.program(), bundle.program(steps=3)):
        assert own.process is not None
        write_program(own, tmp_path / "p.json")
        again = read_program(tmp_path / "p.json")
        assert again.process == own.process
        generate(bundle, [1], [0], program=again)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (given(linear_betas()), True),
        (given(linear_betas().astype(np.float32)), True),
        (LINEAR | {"beta_end": 0.0201}, False),
        (LINEAR | {"beta_start": 1.02e-4}, False),
        (LINEAR | {"zero_terminal_snr": True}, False),
        ({"kind": "cosine", "steps": 1000}, False),
        (given(cosine_betas()), False),
        (given(linear_betas()[:999]), False),
        (None, False),
    ],
)
def test_schedules_are_compared_by_their_noise(other: dict | None, same: bool) -> None:
    a, b = ScheduleInfo.model_validate(LINEAR), None if other is None else ScheduleInfo.model_validate(other)
    assert same_schedule(a, b) == same_schedule(b, a) == same
    assert same_schedule(b, b)


def test_betas_that_went_through_float32_products_are_the_same() -> None:
    """What a checkpoint with only `alphas_cumprod` in float32 gives: 1e-4 is one part in 1,700 off there."""
    abar = np.cumprod(1 - linear_betas().astype(np.float32), dtype=np.float32).astype(np.float64)
    betas = 1 - abar / np.append(1.0, abar[:-1])
    assert same_schedule(ScheduleInfo.model_validate(LINEAR), ScheduleInfo.model_validate(given(betas)))


@pytest.mark.parametrize(
    ("process", "place"),
    [
        ("epsilon", "process"),
        ({"prediction": "noise"}, "process.prediction"),
        ({"timestep_range": [1, 2, 3]}, "process.timestep_range"),
        ({"timestep_range": [float("nan"), 0]}, "process.timestep_range: a number that is not finite"),
        ({"schedule": {"kind": "linear", "steps": 10**9}}, "process.schedule"),
        ({"schedule": {"kind": "given", "steps": 100_001, "betas": [0.5] * 100_001}}, "process.schedule"),
    ],
)
def test_a_malformed_process_is_refused(tmp_path: Path, process: object, place: str) -> None:
    path = tmp_path / "p.json"
    write_program(replace(program(), process=process_without_betas("flow", (1000.0, 0.0))), path)
    data = json.loads(path.read_text())
    data["process"] = data["process"] | process if isinstance(process, dict) else process
    path.write_text(json.dumps(data))
    with pytest.raises(ProgramError, match=rf"p\.json: {place}"):
        read_program(path)
