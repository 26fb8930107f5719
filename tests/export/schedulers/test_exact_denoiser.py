"""Probed programs on a denoiser that is never wrong: which schedulers miss the noise levels that they tell."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("diffusers")

from ditedge.cli import main
from ditedge.export.schedulers.exact_denoiser import WARN_ABOVE, warning_of, worst_landing
from ditedge.export.schedulers.probe import program_from_scheduler
from ditedge.runtime.errors import ProgramError
from ditedge.runtime.samplers.process import process_of_schedule, process_without_betas
from ditedge.runtime.samplers.schedule import linear_schedule
from ditedge.runtime.samplers.settings import SamplerSettings, make_program
from tests.export.schedulers.test_probe import pytestmark  # noqa: F401  # diffusers' own warnings

FREE = {"clip_sample": False}


def probed(name: str, steps: int = 20, **config):
    return program_from_scheduler({"_class_name": f"{name}Scheduler", **config}, steps)


@pytest.mark.parametrize(("steps", "percent"), [(12, 6.57), (20, 3.56), (50, 1.39)])
def test_ddim_with_linspace_spacing_is_found(steps: int, percent: float) -> None:
    """By hand: from timestep t it aims at t - 1000 // N, where the next timestep it tells is t - 999 / (N - 1)."""
    program = probed("DDIM", steps, **FREE, timestep_spacing="linspace")
    abar = linear_schedule().alphas_cumprod
    told = program.timestep.astype(int)
    alpha, sigma = np.sqrt(abar[told[0]]), np.sqrt(1 - abar[told[0]])
    errors = []
    for t, following in zip(told, told[1:], strict=False):
        aim, now, then = abar[t - 1000 // steps], abar[t], abar[following]
        image, noise = (alpha - np.sqrt(now)) / np.sqrt(1 - now), sigma / np.sqrt(1 - now)  # what it takes for noise
        alpha, sigma = np.sqrt(aim) + np.sqrt(1 - aim) * image, np.sqrt(1 - aim) * noise
        errors.append(np.hypot(alpha - np.sqrt(then), sigma - np.sqrt(1 - then)))
    found = worst_landing(program)
    assert found is not None and 100 * found.error == pytest.approx(percent, abs=0.01)
    assert found.error == pytest.approx(max(errors), rel=1e-9) and found.evaluation == 1 + np.argmax(errors)
    warning = warning_of(program)
    assert warning is not None and f"up to {percent:.1f} %" in warning


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DDIM", FREE),
        ("DDIM", FREE | {"timestep_spacing": "trailing"}),
        ("DDIM", FREE | {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
        ("DDPM", FREE | {"timestep_spacing": "linspace"}),
        ("DDPM", FREE | {"variance_type": "learned_range"}),
        ("DDPM", FREE | {"variance_type": "fixed_large"}),
        ("DPMSolverMultistep", {"solver_order": 3}),
        ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}),
        ("DPMSolverMultistep", {"use_karras_sigmas": True}),
        ("UniPCMultistep", {}),
        ("DEISMultistep", {}),
        ("EulerDiscrete", {"timestep_spacing": "linspace"}),
        ("EulerAncestralDiscrete", {}),
        ("HeunDiscrete", {}),
        ("KDPM2AncestralDiscrete", {}),
        ("PNDM", {"timestep_spacing": "leading"}),
        ("TCD", FREE),
        ("FlowMatchEulerDiscrete", {"shift": 3.0}),
        ("FlowMatchHeunDiscrete", {}),
    ],
)  # fmt: skip
def test_schedulers_without_that_fault_pass(name: str, config: dict) -> None:
    program = probed(name, **config)
    found = worst_landing(program)
    assert found is not None and found.error < 3e-3 and warning_of(program) is None


def test_other_faults_are_found() -> None:
    assert worst_landing(probed("PNDM", timestep_spacing="linspace")).error > WARN_ABOVE
    assert worst_landing(probed("UnCLIP")).error > 1  # steps by one timestep without its pipeline
    program = probed("DDPM", **FREE)
    late = replace(program, timestep=program.timestep - np.arange(20) % 2 * 9)  # the network is told something else
    assert warning_of(program) is None and "DDPM-20" in (warning_of(late) or "")
    noisy = replace(program, mix=program.mix * np.array([1.0, 1.0, 1.1]))  # one slot: too much fresh noise in each step
    assert "the noise is 1.10 times" in (warning_of(noisy) or "")
    assert "not tried" in (warning_of(probed("IPNDM")) or "")


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm++", "unipc", "heun"])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_our_own_samplers_land_with_every_spacing(sampler: str, spacing: str) -> None:
    schedule = linear_schedule()
    variance = {"variance": "fixed-small"} if sampler == "ddpm" else {}  # the one that is exact for a known image
    settings = SamplerSettings(sampler=sampler, steps=20, spacing=spacing, **variance)
    program = make_program(schedule, settings, learned_variance=False, prediction="epsilon")
    found = worst_landing(replace(program, process=process_of_schedule(schedule, "epsilon")))
    assert found is not None and found.error < 5e-3


def test_a_flow_lands(tmp_path: Path) -> None:
    settings = SamplerSettings(sampler="flow-euler", steps=10)
    program = make_program(None, settings, learned_variance=False, prediction="flow-to-data", timestep_range=(0.0, 1.0))
    found = worst_landing(replace(program, process=process_without_betas("flow-to-data", (0.0, 1.0))))
    assert found is not None and found.error < 1e-12


def test_the_command_warns_and_takes_a_pipeline(tmp_path: Path) -> None:
    folder = tmp_path / "pipe" / "scheduler"
    folder.mkdir(parents=True)
    config = {"_class_name": "DDIMScheduler", **FREE, "timestep_spacing": "linspace"}
    (folder / "scheduler_config.json").write_text(json.dumps(config))
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    for source in (folder, tmp_path / "pipe", tmp_path / "pipe" / "model_index.json"):
        command = ["schedule", "--from", str(source), "--steps", "20", "-o", str(tmp_path / "p.json")]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0 and "up to 3.6 % (evaluation 16 of 20, timestep 210" in result.output
    (folder / "scheduler_config.json").write_text(json.dumps(config | {"timestep_spacing": "leading"}))
    assert "warning" not in CliRunner().invoke(main, command).output


@pytest.mark.parametrize(
    "change",
    [{"num_train_timesteps": 10**11}, {"trained_betas": [0.1] * 100_001}, {"original_inference_steps": 10**300}],
)
def test_sizes_are_bounded_before_diffusers_builds_them(change: dict) -> None:
    with pytest.raises(ProgramError, match=f"'{next(iter(change))}' has the size .* at most 100000"):
        probed("LCM", **change)
