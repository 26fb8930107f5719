"""Probing: diffusers schedulers become tables with the fewest slots, and those that no table can hold are refused."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")

from ditedge.export.schedulers.probe import program_from_scheduler, read_scheduler_program
from ditedge.runtime.errors import ProgramError
from ditedge.runtime.samplers import (
    ddim,
    ddpm,
    deis,
    dpm_solver,
    euler,
    euler_ancestral,
    flow_grid_diffusers,
    flow_heun,
    grid_from_timesteps,
    heun,
    lms,
    unipc,
)
from ditedge.runtime.samplers.program import NO_BOUND, Program, read_program, write_program
from ditedge.runtime.samplers.schedule import linear_schedule
from ditedge.runtime.samplers.spacing import spaced_timesteps

pytestmark = pytest.mark.filterwarnings(  # diffusers gives tensors to numpy
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
    "ignore:__array_wrap__ must accept context:DeprecationWarning",
)
LINEAR, N = linear_schedule(), 12
DPM, UNIPC, DEIS = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"
FREE = {"clip_sample": False}

# class, config, options of step(), slots. `program_from_scheduler` proves each on random histories before it returns.
LINEAR_SCHEDULERS: list[tuple[str, dict[str, Any], dict[str, Any], int]] = [
    ("DDIMScheduler", FREE, {}, 1),
    ("DDIMScheduler", FREE, {"eta": 0.5}, 1),
    ("DDIMScheduler", {}, {"use_clipped_model_output": True}, 1),
    ("DDIMParallelScheduler", FREE, {}, 1),
    ("CogVideoXDDIMScheduler", FREE, {}, 1),
    ("DDPMScheduler", {}, {}, 1),
    ("DDPMScheduler", {"variance_type": "learned_range"}, {}, 1),
    ("DDPMParallelScheduler", {}, {}, 1),
    ("UnCLIPScheduler", {}, {}, 1),
    ("LCMScheduler", FREE, {}, 1),
    ("TCDScheduler", FREE, {}, 1),
    ("EulerDiscreteScheduler", {}, {}, 1),
    ("EulerAncestralDiscreteScheduler", {}, {}, 1),
    ("EDMEulerScheduler", {}, {}, 1),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, {}, 1),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, {}, 1),
    ("FlowMatchLCMScheduler", {}, {}, 1),
    ("FlowMatchHeunDiscreteScheduler", {}, {}, 2),
    ("HeunDiscreteScheduler", {"clip_sample": True}, {}, 2),
    ("KDPM2DiscreteScheduler", {}, {}, 2),
    ("KDPM2AncestralDiscreteScheduler", {}, {}, 2),
    (DPM, {"solver_order": 1}, {}, 1),
    (DPM, {"solver_order": 2, "use_karras_sigmas": True}, {}, 2),
    (DPM, {"solver_order": 3}, {}, 3),
    (DPM, {"algorithm_type": "sde-dpmsolver++", "variance_type": "learned_range"}, {}, 2),
    ("DPMSolverSinglestepScheduler", {"solver_order": 2}, {}, 2),
    ("EDMDPMSolverMultistepScheduler", {}, {}, 2),
    (DEIS, {"solver_order": 2}, {}, 2),
    (DEIS, {"solver_order": 3}, {}, 3),
    (UNIPC, {"solver_order": 2}, {}, 3),
    (UNIPC, {"solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"}, {}, 4),
    (UNIPC, {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}, {}, 3),
    ("SASolverScheduler", {}, {}, 3),
    ("LMSDiscreteScheduler", {}, {}, 4),
    ("IPNDMScheduler", {}, {}, 4),
    ("PNDMScheduler", {"skip_prk_steps": True}, {}, 4),
    ("PNDMScheduler", {}, {}, 5),
]
REFUSED = [
    ("DDIMScheduler", {}, {}, "goes on with the unclamped prediction"),
    ("CogVideoXDDIMScheduler", {"rescale_betas_zero_snr": False}, {}, "goes on with the unclamped prediction"),
    ("DDIMScheduler", {"thresholding": True}, {}, "quantile of its own pixels"),
    (DPM, {"thresholding": True}, {}, "quantile of its own pixels"),
    ("CMStochasticIterativeScheduler", {}, {}, "not linear"),  # clamps, under another name
    ("DDPMScheduler", {"variance_type": "learned"}, {}, r"not sqrt\(v\)"),
    ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, {}, "image size"),
    ("RePaintScheduler", {}, {}, "cannot be probed: TypeError"),  # needs an image and a mask
    ("DDIMScheduler", FREE, {"eta": 2.0}, "not finite"),  # more noise than a step has
    ("LCMScheduler", FREE | {"original_inference_steps": 5}, {}, "cannot be probed: ValueError"),
    ("NoSuchScheduler", {}, {}, "not a scheduler of diffusers"),
    (DPM, {"prediction_type": ["epsilon"]}, {}, "cannot be probed"),
    ("DDIMScheduler", {"clip_sample": True, "clip_sample_range": "wide"}, {}, "cannot be probed"),
    ("DiTPipeline", {}, {}, "not a scheduler of diffusers"),
]


@pytest.mark.parametrize(("name", "config", "options", "slots"), LINEAR_SCHEDULERS)
def test_linear_schedulers_become_tables(name: str, config: dict, options: dict, slots: int, tmp_path) -> None:
    program = program_from_scheduler({"_class_name": name, **config}, N, **options)
    assert program.slots == slots
    assert np.abs(program.mix).max() < 100  # slots of about unit size; Heun itself divides by its last sigmas
    write_program(program, tmp_path / "program.json")
    assert read_program(tmp_path / "program.json").made == program.made


@pytest.mark.parametrize(("name", "config", "options", "reason"), REFUSED)
def test_what_no_table_can_hold_is_refused_with_the_reason(name: str, config: dict, options: dict, reason: str) -> None:
    with pytest.raises(ProgramError, match=reason):
        program_from_scheduler({"_class_name": name, **config}, N, **options)


def test_settings_that_diffusers_does_not_know_are_not_printed() -> None:
    seen: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = seen.append  # type: ignore[method-assign]
    logging.getLogger("diffusers").addHandler(handler)
    try:
        program_from_scheduler({"_class_name": DPM, "\x1b[2J": 1}, N)
    finally:
        logging.getLogger("diffusers").removeHandler(handler)
    assert not seen and logging.root.manager.disable == 0


def trajectory(program: Program) -> np.ndarray:
    """The contract of docs/format.md's step graph in float64, with a nonlinear network and a learned variance. [N + 1, 32]"""
    z, *noise = np.random.default_rng(3).standard_normal((program.steps + 1, 32))
    state = np.zeros((program.slots, 32))
    state[0] = program.init[1] * z
    seen = [state[0]]
    for i, (a, b) in enumerate(program.x0_from):
        output = np.sin(1.3 * state[0] + program.timestep[i] / 300) + 0.2 * state[0]
        x0 = np.clip(a * state[0] + b * output, -program.x0_bound, program.x0_bound)
        sigma = np.exp(program.log_sigma[i, 0] + program.log_sigma[i, 1] * np.cos(state[0]))
        state = program.mix[i] @ np.stack([*state, x0, sigma * noise[i]])
        seen.append(state[0])
    return np.array(seen)


def grid(*, spacing: str = "linspace", skip_last: bool = False, rounded: bool = True, final: str = "zero"):
    return grid_from_timesteps(LINEAR, spaced_timesteps(spacing, N, skip_last=skip_last, rounded=rounded), final=final)


MULTISTEP, SIGMA = {"skip_last": True}, {"rounded": False}
PAIRS: list[tuple[Any, str, dict[str, Any]]] = [
    (lambda: ddim(grid(spacing="leading")), "DDIMScheduler", FREE),
    (lambda: ddim(grid(spacing="leading"), prediction="v"), "DDIMScheduler", FREE | {"prediction_type": "v_prediction"}),
    (lambda: ddpm(grid_from_timesteps(LINEAR, spaced_timesteps("leading", N)), variance="learned"),
     "DDPMScheduler", FREE | {"variance_type": "learned_range"}),
    (lambda: replace(ddpm(grid_from_timesteps(LINEAR, spaced_timesteps("leading", N))), x0_bound=1.0),
     "DDPMScheduler", {}),
    (lambda: dpm_solver(grid(**MULTISTEP)), DPM, {}),
    (lambda: dpm_solver(grid(**MULTISTEP), order=3, prediction="x0"), DPM, {"solver_order": 3, "prediction_type": "sample"}),
    (lambda: dpm_solver(grid(**MULTISTEP), stochastic=True), DPM, {"algorithm_type": "sde-dpmsolver++"}),
    (lambda: unipc(grid(**MULTISTEP)), UNIPC, {}),
    (lambda: unipc(grid(**MULTISTEP), order=3), UNIPC, {"solver_order": 3}),
    (lambda: deis(grid(**MULTISTEP, final="sigma_min"), order=3), DEIS, {"solver_order": 3}),
    (lambda: euler(grid(**SIGMA), init_scale=grid(**SIGMA).sigma[0]), "EulerDiscreteScheduler", {}),
    (lambda: euler_ancestral(grid(**SIGMA), init_scale=grid(**SIGMA).sigma[0]), "EulerAncestralDiscreteScheduler", {}),
    (lambda: heun(grid(**SIGMA), init_scale=grid(**SIGMA).sigma[0]), "HeunDiscreteScheduler", {"beta_start": 1e-4, "beta_end": 0.02}),
    (lambda: lms(grid(**SIGMA), init_scale=grid(**SIGMA).sigma[0]), "LMSDiscreteScheduler", {}),
    (lambda: euler(flow_grid_diffusers(N, shift=3), prediction="flow"), "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    (lambda: flow_heun(flow_grid_diffusers(N)), "FlowMatchHeunDiscreteScheduler", {}),
]  # fmt: skip


@pytest.mark.parametrize(("ours", "name", "config"), [pytest.param(*p, id=f"{p[1]}-{i}") for i, p in enumerate(PAIRS)])
def test_ready_made_and_probed_programs_agree(ours, name: str, config: dict) -> None:
    made, probed = ours(), program_from_scheduler({"_class_name": name, **config}, N)
    assert made.slots == probed.slots  # the ready-made tables have no slot too many
    assert made.x0_bound == probed.x0_bound
    np.testing.assert_allclose(probed.x0_from, made.x0_from, rtol=1e-9, atol=1e-12)
    expected = trajectory(made)
    np.testing.assert_allclose(trajectory(probed), expected, rtol=0, atol=1e-9 * np.abs(expected).max())


def test_clip_range_becomes_the_bound() -> None:
    program = program_from_scheduler({"_class_name": "DDPMScheduler", "clip_sample_range": 2.5}, 5)
    assert program.x0_bound == 2.5
    assert program_from_scheduler({"_class_name": "DDPMScheduler", **FREE}, 5).x0_bound == NO_BOUND


def test_diffusers_is_left_as_it_was() -> None:
    import diffusers.schedulers.scheduling_ddpm as module
    import torch

    before = dict(vars(module))
    program_from_scheduler({"_class_name": "DDPMScheduler"}, 5)
    assert module.torch is torch and dict(vars(module)) == before


def test_hundred_steps_keep_the_rank() -> None:
    assert program_from_scheduler({"_class_name": UNIPC, "solver_order": 3}, 100).slots == 4


PLAIN = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"} | FREE


@pytest.mark.parametrize(
    ("name", "config", "prediction", "noise", "words"),
    [
        ("DDIMScheduler", {}, "epsilon", 999.0, {"kind": "linear", "beta_end": 0.02}),
        ("DDIMScheduler", {"prediction_type": "v_prediction"}, "v", 999.0, {"kind": "linear"}),
        ("DDPMScheduler", {"prediction_type": "sample"}, "x0", 999.0, {"kind": "linear"}),
        ("DDIMScheduler", {"num_train_timesteps": 4000, "beta_end": 5e-3}, "epsilon", 3999.0, {"steps": 4000}),
        ("DDIMScheduler", {"beta_schedule": "squaredcos_cap_v2"}, "epsilon", 999.0, {"kind": "cosine"}),
        (UNIPC, {"trained_betas": [0.01] * 1000}, "epsilon", 999.0, {"kind": "given", "betas": [0.01] * 1000}),
        ("DDIMScheduler", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
                           "timestep_spacing": "trailing"}, "v", 999.0, {"zero_terminal_snr": True}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, "flow", 1000.0, None),
        (DPM, {"prediction_type": "flow_prediction", "use_flow_sigmas": True}, "flow", 1000.0, None),
    ],
)  # fmt: skip
def test_a_program_says_what_the_scheduler_takes_for_granted(
    name: str, config: dict[str, Any], prediction: str, noise: float, words: dict[str, Any] | None
) -> None:
    process = program_from_scheduler({"_class_name": name} | PLAIN | config, N).process
    assert process is not None
    assert (process.prediction, process.timestep_range) == (prediction, (noise, 0.0))
    if words is None:
        assert process.schedule is None
    else:
        assert process.schedule is not None
        assert {key: getattr(process.schedule, key) for key in words} == words


def test_what_a_class_does_to_its_betas_unsaid_is_seen() -> None:
    """CogVideoX's schedulers shift the SNR by a factor of 3 that has nothing to do with `beta_schedule`."""
    process = program_from_scheduler({"_class_name": "CogVideoXDDIMScheduler"} | PLAIN, N).process
    assert process is not None and process.schedule is not None and process.schedule.kind == "given"
    assert process.schedule.betas is not None and process.schedule.betas[0] == pytest.approx(3e-4, rel=1e-3)


def test_a_scheduler_with_another_noise_process_says_nothing() -> None:
    assert program_from_scheduler({"_class_name": "EDMEulerScheduler"}, N).process is None


def test_a_config_that_holds_minus_infinity(tmp_path: Path) -> None:
    """diffusers writes it for DPM-Solver++, where JSON has no number for it."""
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler()
    scheduler.save_pretrained(tmp_path)
    assert '"lambda_min_clipped": -Infinity' in (tmp_path / "scheduler_config.json").read_text()
    found = read_scheduler_program(tmp_path, 6, {})
    whole = program_from_scheduler({**scheduler.config, "_class_name": "DPMSolverMultistepScheduler"}, 6)
    np.testing.assert_array_equal(found.mix, whole.mix)
    np.testing.assert_array_equal(found.timestep, whole.timestep)
