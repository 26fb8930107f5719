"""Samplers and schedules against diffusers' own, in float64: every program's trajectory on a fixed analytic network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ditedge.runtime.samplers import (
    ddim,
    ddpm,
    deis,
    dpm_solver,
    euler,
    euler_ancestral,
    flow_grid,
    flow_grid_diffusers,
    flow_grid_dpm,
    flow_heun,
    heun,
    lcm,
    lms,
    unipc,
)
from ditedge.runtime.samplers.distilled import distilled_grid
from ditedge.runtime.samplers.program import Program, check_program
from ditedge.runtime.samplers.schedule import ScheduleInfo, schedule_from_info, zero_terminal_snr
from ditedge.runtime.samplers.settings import SamplerSettings, make_program
from ditedge.runtime.samplers.spacing import exponential_sigmas, karras_sigmas
from tests.export.schedulers.by_diffusers import diffusers_trajectory, diffusers_warnings
from tests.runtime.samplers.trajectories import (
    COSINE,
    LINEAR,
    OWN,
    OWN_BETAS,
    SCALED,
    SIZE,
    STEPS,
    TOLERANCE,
    ZERO_SNR,
    from_sigma,
    multistep_grid,
    network,
    noises,
    plain_grid,
    replay,
    sigma_grid,
    spread_grid,
)

pytestmark = diffusers_warnings


ALL, NO_X0 = ("epsilon", "x0", "v"), ("epsilon", "v")


DPM, UNI, DEIS = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"


EULER, ANCESTRAL = "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"


HEUN, LMS, DDIM, DDPM = "HeunDiscreteScheduler", "LMSDiscreteScheduler", "DDIMScheduler", "DDPMScheduler"


B = {"beta_start": 1e-4, "beta_end": 0.02}


def tcd_program(steps: int, prediction: str, eta: float) -> Program:
    return make_program(LINEAR, SamplerSettings("tcd", steps, eta=eta), learned_variance=False, prediction=prediction)


# name, ours(n, prediction), diffusers' class, its config, prediction types, options of its step()
CASES: list[tuple[str, Any, str, dict, tuple[str, ...], dict]] = [
    *(
        (f"dpm++{k}", lambda n, p, k=k: dpm_solver(multistep_grid(LINEAR, n), order=k, prediction=p), DPM, {"solver_order": k}, ALL, {})
        for k in (1, 2, 3)
    ),
    ("dpm++2-heun", lambda n, p: dpm_solver(multistep_grid(LINEAR, n), variant="heun", prediction=p), DPM, {"solver_type": "heun"}, ALL, {}),
    ("dpm++3-no-lower-final", lambda n, p: dpm_solver(multistep_grid(LINEAR, n), order=3, lower_order_final=False, prediction=p),
     DPM, {"solver_order": 3, "lower_order_final": False}, ALL[:1], {}),
    ("dpm++2-sigma-min", lambda n, p: dpm_solver(multistep_grid(LINEAR, n, final="sigma_min"), prediction=p),
     DPM, {"final_sigmas_type": "sigma_min"}, ALL[:1], {}),
    ("dpm++2-euler-final", lambda n, p: dpm_solver(multistep_grid(LINEAR, n, final="sigma_min"), euler_at_final=True, prediction=p),
     DPM, {"final_sigmas_type": "sigma_min", "euler_at_final": True}, ALL[:1], {}),
    ("dpm++2-leading", lambda n, p: dpm_solver(multistep_grid(SCALED, n, spacing="leading", offset=1), prediction=p),
     DPM, {"timestep_spacing": "leading", "steps_offset": 1, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, ALL[:1], {}),
    ("dpm++2-trailing", lambda n, p: dpm_solver(multistep_grid(LINEAR, n, spacing="trailing"), prediction=p),
     DPM, {"timestep_spacing": "trailing"}, ALL[:1], {}),
    ("dpm++2-cosine", lambda n, p: dpm_solver(multistep_grid(COSINE, n), prediction=p), DPM, {"beta_schedule": "squaredcos_cap_v2"}, ALL[:1], {}),
    ("dpm++2-own-betas", lambda n, p: dpm_solver(multistep_grid(OWN, n), prediction=p),
     DPM, {"trained_betas": list(np.linspace(0.0003, 0.03, 1000) ** 1.1)}, ALL[:1], {}),
    ("dpm++2-zero-snr", lambda n, p: dpm_solver(multistep_grid(ZERO_SNR, n), prediction=p), DPM, {"rescale_betas_zero_snr": True}, ("v",), {}),
    ("dpm++2-karras", lambda n, p: dpm_solver(spread_grid(LINEAR, n, kind=karras_sigmas, rounding=np.round), prediction=p),
     DPM, {"use_karras_sigmas": True}, ALL, {}),
    ("dpm++2-exponential", lambda n, p: dpm_solver(spread_grid(LINEAR, n, kind=exponential_sigmas, rounding=np.floor), prediction=p),
     DPM, {"use_exponential_sigmas": True}, ALL[:1], {}),
    *(
        (f"sde-dpm++{k}", lambda n, p, k=k: dpm_solver(multistep_grid(LINEAR, n), order=k, stochastic=True, prediction=p),
         DPM, {"algorithm_type": "sde-dpmsolver++", "solver_order": k}, ALL, {})
        for k in (1, 2)
    ),
    ("sde-dpm++2-heun", lambda n, p: dpm_solver(multistep_grid(LINEAR, n), variant="heun", stochastic=True, prediction=p),
     DPM, {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}, ALL[:1], {}),
    *(
        (f"unipc{k}-bh2", lambda n, p, k=k: unipc(multistep_grid(LINEAR, n), order=k, prediction=p), UNI, {"solver_order": k}, ALL, {})
        for k in (1, 2, 3)
    ),
    *(  # diffusers' bh1 gives nan when it ends at sigma 0
        (f"unipc{k}-bh1", lambda n, p, k=k: unipc(multistep_grid(LINEAR, n, final="sigma_min"), order=k, variant="bh1", prediction=p),
         UNI, {"solver_order": k, "solver_type": "bh1", "final_sigmas_type": "sigma_min"}, ALL, {})
        for k in (1, 2, 3)
    ),
    ("unipc2-sigma-min", lambda n, p: unipc(multistep_grid(LINEAR, n, final="sigma_min"), lower_order_final=False, prediction=p),
     UNI, {"final_sigmas_type": "sigma_min", "lower_order_final": False}, ALL[:1], {}),
    ("unipc3-karras", lambda n, p: unipc(spread_grid(LINEAR, n, kind=karras_sigmas, rounding=np.round), order=3, prediction=p),
     UNI, {"use_karras_sigmas": True, "solver_order": 3}, ALL[:1], {}),
    *(
        (f"deis{k}", lambda n, p, k=k: deis(multistep_grid(LINEAR, n, final="sigma_min"), order=k, prediction=p), DEIS, {"solver_order": k}, ALL, {})
        for k in (1, 2, 3)
    ),
    ("lms4", lambda n, p: from_sigma(lms, sigma_grid(LINEAR, n), prediction=p), LMS, {}, ALL, {}),
    ("lms2", lambda n, p: from_sigma(lms, sigma_grid(LINEAR, n), order=2, prediction=p), LMS, {}, ALL[:1], {"order": 2}),
    ("euler", lambda n, p: from_sigma(euler, sigma_grid(LINEAR, n), prediction=p), EULER, {}, ALL, {}),
    ("euler-leading", lambda n, p: euler(sigma_grid(LINEAR, n, spacing="leading", offset=1), prediction=p),
     EULER, {"timestep_spacing": "leading", "steps_offset": 1}, ALL[:1], {}),
    ("euler-trailing", lambda n, p: from_sigma(euler, sigma_grid(LINEAR, n, spacing="trailing"), prediction=p),
     EULER, {"timestep_spacing": "trailing"}, ALL[:1], {}),
    ("euler-karras", lambda n, p: from_sigma(euler, spread_grid(LINEAR, n, kind=karras_sigmas), prediction=p),
     EULER, {"use_karras_sigmas": True}, ALL[:1], {}),
    ("euler-zero-snr", lambda n, p: from_sigma(euler, sigma_grid(ZERO_SNR, n), prediction=p), EULER, {"rescale_betas_zero_snr": True}, ("v",), {}),
    ("euler-ancestral", lambda n, p: from_sigma(euler_ancestral, sigma_grid(LINEAR, n), prediction=p), ANCESTRAL, {}, NO_X0, {}),
    ("heun", lambda n, p: from_sigma(heun, sigma_grid(LINEAR, n), prediction=p), HEUN, B, ALL, {}),
    ("heun-exponential", lambda n, p: from_sigma(heun, spread_grid(LINEAR, n, kind=exponential_sigmas), prediction=p),
     HEUN, B | {"use_exponential_sigmas": True}, ALL[:1], {}),
    ("ddim", lambda n, p: ddim(plain_grid(LINEAR, n), prediction=p), DDIM, {"clip_sample": False}, ALL, {}),
    ("ddim-eta", lambda n, p: ddim(plain_grid(LINEAR, n), eta=0.7, prediction=p), DDIM, {"clip_sample": False}, ALL[:1], {"eta": 0.7}),
    ("ddim-alpha-not-one", lambda n, p: ddim(plain_grid(LINEAR, n, final="sigma_min"), prediction=p),
     DDIM, {"clip_sample": False, "set_alpha_to_one": False}, ALL[:1], {}),
    ("ddim-zero-snr", lambda n, p: ddim(plain_grid(zero_terminal_snr(LINEAR), n, spacing="trailing"), prediction=p),
     DDIM, {"clip_sample": False, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, ("v",), {}),
    ("ddpm-small", lambda n, p: ddpm(plain_grid(LINEAR, n), prediction=p), DDPM, {"clip_sample": False}, ALL, {}),
    ("ddpm-large", lambda n, p: ddpm(plain_grid(LINEAR, n, spacing="linspace"), variance="fixed-large", prediction=p),
     DDPM, {"clip_sample": False, "variance_type": "fixed_large", "timestep_spacing": "linspace"}, ALL[:1], {}),
    ("lcm", lambda n, p: lcm(distilled_grid(LINEAR, "lcm", n), prediction=p), "LCMScheduler", B | {"beta_schedule": "linear"}, ALL, {}),
    ("lcm-scaled", lambda n, p: lcm(distilled_grid(SCALED, "lcm", n), prediction=p), "LCMScheduler", {}, ALL[:1], {}),
    *(
        (f"tcd-{eta}", lambda n, p, eta=eta: tcd_program(n, p, eta), "TCDScheduler", B | {"beta_schedule": "linear"}, ALL, {"eta": eta})
        for eta in (0.3, 0.0, 1.0)
    ),
    *(
        (f"flow-dpm++{k}", lambda n, p, k=k, shift=shift: dpm_solver(flow_grid_dpm(n, shift=shift), order=k, prediction=p), DPM,
         {"solver_order": k, "use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}, ("flow",), {})
        for k, shift in ((1, 1.0), (2, 3.0), (3, 5.0))
    ),
    ("flow-map-euler", lambda n, p: euler(flow_grid(n, shift=3), prediction=p), "FlowMapEulerDiscreteScheduler", {"shift": 3.0}, ("flow",), {}),
    ("flow-euler", lambda n, p: euler(flow_grid_diffusers(n), prediction=p), "FlowMatchEulerDiscreteScheduler", {}, ("flow",), {}),
    ("flow-euler-shift3", lambda n, p: euler(flow_grid_diffusers(n, shift=3), prediction=p),
     "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, ("flow",), {}),
    ("flow-heun", lambda n, p: flow_heun(flow_grid_diffusers(n)), "FlowMatchHeunDiscreteScheduler", {}, ("flow",), {}),
    ("flow-heun-shift3", lambda n, p: flow_heun(flow_grid_diffusers(n, shift=3)), "FlowMatchHeunDiscreteScheduler", {"shift": 3.0}, ("flow",), {}),
]  # fmt: skip


COMBINATIONS = [
    pytest.param(*case[1:4], steps, prediction, case[5], id=f"{case[0]}-{prediction}-{steps}")
    for case in CASES
    for prediction in case[4]
    for steps in STEPS
]


@pytest.mark.parametrize(("ours", "scheduler", "config", "steps", "prediction", "options"), COMBINATIONS)
def test_trajectory_equals_diffusers(monkeypatch, ours, scheduler, config, steps, prediction, options) -> None:
    program = ours(steps, prediction)
    check_program(program)
    expected = diffusers_trajectory(monkeypatch, scheduler, config, steps, prediction, **options)
    actual = replay(program, prediction)
    assert actual.shape == expected.shape
    error = np.abs(actual - expected).max(axis=1) / np.abs(expected).max(axis=1)
    assert error.max() < TOLERANCE, f"step {error.argmax()}: {error.max():.1e}"


@pytest.mark.parametrize(("ours", "prediction"), [pytest.param(c[1], c[4][0], id=c[0]) for c in CASES])
def test_float32_tables_lose_nothing(ours, prediction: str) -> None:
    """The step graph computes in float32 from float32 tables; 50 steps must stay near the float64 trajectory."""
    program = ours(50, prediction)
    exact, z = replay(program, prediction), noises(51).astype(np.float32)
    x0_from, mix = program.x0_from.astype(np.float32), program.mix.astype(np.float32)
    state = np.zeros((program.slots, SIZE), np.float32)
    state[0] = np.float32(program.init[1]) * z[0]
    for i in range(program.steps):
        output = network(state[0].astype(np.float64), program.timestep[i], prediction).astype(np.float32)
        x0 = x0_from[i, 0] * state[0] + x0_from[i, 1] * output
        noise = np.exp(program.log_sigma[i, 0].astype(np.float32)) * z[min(i + 1, 50)]
        state = mix[i] @ np.stack([*state, x0, noise if program.draws_noise(i) else 0 * noise])
        scale = np.abs(exact[i + 1]).max()
        assert np.abs(state[0] - exact[i + 1]).max() < 2e-5 * scale, i


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"beta_schedule": "linear", "beta_end": 0.012}, {"kind": "linear", "beta_start": 1e-4, "beta_end": 0.012}),
        ({"beta_schedule": "scaled_linear"}, {"kind": "scaled_linear", "beta_start": 1e-4, "beta_end": 0.02}),
        ({"beta_schedule": "squaredcos_cap_v2"}, {"kind": "cosine"}),
        ({"trained_betas": OWN_BETAS}, {"kind": "given", "betas": OWN_BETAS}),
    ],
)
def test_schedules_of_a_manifest_equal_diffusers_and_the_plain_ones(theirs: dict, ours: dict, zero_snr: bool) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch = pytest.importorskip("torch")
    from ditedge.export.truth.reference import trained_alphas_cumprod

    scheduler = diffusers.DDIMScheduler(**theirs, rescale_betas_zero_snr=zero_snr)
    info = ScheduleInfo(**ours, steps=1000, zero_terminal_snr=zero_snr)
    abar = schedule_from_info(info).alphas_cumprod
    # theirs is float32 throughout: abar is good to 1e-6 of 1; relative errors are larger where it is small
    np.testing.assert_allclose(abar, scheduler.alphas_cumprod.numpy(), rtol=0, atol=5e-6)
    plain = trained_alphas_cumprod(info)
    assert plain.dtype == torch.float64
    np.testing.assert_allclose(abar, plain.numpy(), rtol=1e-9, atol=1e-15)
    assert (abar[-1] == 0) == zero_snr
