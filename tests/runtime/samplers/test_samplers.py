"""Samplers: every program's trajectory against diffusers' own scheduler, in float64, on a fixed analytic network."""

from __future__ import annotations

import doctest
import importlib
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditedge.runtime.errors import ProgramError
from ditedge.runtime.samplers import (
    SAMPLERS,
    Grid,
    ddim,
    ddpm,
    deis,
    dpm_solver,
    euler,
    euler_ancestral,
    flow_grid,
    flow_grid_diffusers,
    flow_heun,
    grid_from_sigmas,
    grid_from_timesteps,
    heun,
    lms,
    sigmas_at,
    step_sigmas,
    timesteps_at,
    unipc,
    with_guidance_interval,
)
from ditedge.runtime.samplers.grid import phi
from ditedge.runtime.samplers.program import Program, check_program
from ditedge.runtime.samplers.schedule import (
    Schedule,
    ScheduleInfo,
    cosine_betas,
    linear_schedule,
    positive_snr,
    scaled_linear_betas,
    schedule_from_betas,
    schedule_from_info,
    zero_terminal_snr,
)
from ditedge.runtime.samplers.settings import SamplerSettings, make_program
from ditedge.runtime.samplers.spacing import exponential_sigmas, karras_sigmas, spaced_timesteps
from tests.conftest import ROOT

pytestmark = pytest.mark.filterwarnings(  # diffusers gives tensors to numpy
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
    "ignore:__array_wrap__ must accept context:DeprecationWarning",
)
SIZE, STEPS, TOLERANCE = 64, (5, 10, 20, 50), 1e-5
LINEAR = linear_schedule()


def network(x: np.ndarray, t: float, prediction: str) -> np.ndarray:
    """A smooth nonlinear denoiser as every prediction type; its own alpha(t) is a plain formula of the timestep."""
    x0 = 0.9 * np.tanh(1.3 * x + 0.4 * math.sin(t / 150)) + 0.1 * np.cos(2 * x)
    alpha = math.exp(-(t + 2) * (t + 2) / 4e5)
    sigma = math.sqrt(1 - alpha * alpha)
    epsilon = (x - alpha * x0) / sigma
    flow = np.sin(x) - x0 + t / 2000
    return {"epsilon": epsilon, "x0": x0, "v": alpha * epsilon - sigma * x0, "flow": flow}[prediction]


def noises(count: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((count, SIZE))


def replay(program: Program, prediction: str) -> np.ndarray:
    """The contract of docs/format.md's step graph in float64: what the network sees before every step, and the sample. [N+1, SIZE]"""
    z, *noise = noises(program.steps + 1)
    state = np.zeros((program.slots, SIZE))
    state[0] = program.init[1] * z
    seen = [state[0]]
    for i in range(program.steps):
        (a, b), k0 = program.x0_from[i], program.log_sigma[i, 0]
        x0 = np.clip(
            a * state[0] + b * network(state[0], program.timestep[i], prediction), -program.x0_bound, program.x0_bound
        )
        state = program.mix[i] @ np.stack([*state, x0, np.exp(k0) * noise[i]])
        seen.append(state[0])
    return np.array(seen)


class Wide:
    """torch or numpy with float32 spelled float64: diffusers' schedulers hard-code float32."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, "float64" if name == "float32" else name)


def diffusers_trajectory(
    monkeypatch: pytest.MonkeyPatch, scheduler: str, config: dict, steps: int, prediction: str, **step_options
) -> np.ndarray:
    """The same by diffusers. [N+1, SIZE]"""
    pytest.importorskip("diffusers")
    import diffusers
    import torch

    cls = getattr(diffusers, scheduler)
    module = importlib.import_module(cls.__module__)
    monkeypatch.setattr(module, "torch", Wide(torch))
    monkeypatch.setattr(module, "np", Wide(np))
    drawn: list[int] = []
    if hasattr(module, "randn_tensor"):  # step i draws row i + 1 of the same noise
        draw = lambda *_, **__: torch.from_numpy(noises(len(made.timesteps) + 1)[1 + drawn[-1]][None, :, None])  # noqa: E731
        monkeypatch.setattr(module, "randn_tensor", draw)
    if prediction != "flow":
        config = config | {"prediction_type": {"x0": "sample", "v": "v_prediction"}.get(prediction, prediction)}
    made = cls(**config)
    made.set_timesteps(steps)
    x = (
        torch.from_numpy(noises(1)[0][None, :, None]) * made.init_noise_sigma
        if hasattr(made, "init_noise_sigma")
        else (torch.from_numpy(noises(1)[0][None, :, None]))
    )
    seen = []
    for i, t in enumerate(made.timesteps):
        drawn.append(i)
        scaled = made.scale_model_input(x, t) if hasattr(made, "scale_model_input") else x
        seen.append(scaled.numpy().ravel())
        output = torch.from_numpy(network(seen[-1], float(t), prediction)[None, :, None])
        x = made.step(output, t, x, return_dict=False, **step_options)[0]
    assert x.dtype == torch.float64
    return np.array([*seen, x.numpy().ravel()])


def multistep_grid(
    schedule: Schedule, n: int, *, spacing: str = "linspace", final: str = "zero", offset: int = 0
) -> Grid:
    return grid_from_timesteps(schedule, spaced_timesteps(spacing, n, skip_last=True, offset=offset), final=final)


def sigma_grid(schedule: Schedule, n: int, *, spacing: str = "linspace", final: str = "zero", offset: int = 0) -> Grid:
    return grid_from_timesteps(schedule, spaced_timesteps(spacing, n, rounded=False, offset=offset), final=final)


def plain_grid(schedule: Schedule, n: int, *, spacing: str = "leading", final: str = "zero", offset: int = 0) -> Grid:
    return grid_from_timesteps(schedule, spaced_timesteps(spacing, n, offset=offset), final=final)


def spread_grid(schedule: Schedule, n: int, *, kind, rounding=np.asarray) -> Grid:
    """Karras or exponential sigmas. Some of diffusers' schedulers round their timesteps, some cut them off."""
    sigma = sigmas_at(schedule, np.array([0, schedule.steps - 1]))
    sigmas = kind(n, sigma[0], sigma[1])
    timesteps = timesteps_at(schedule, sigmas)
    return grid_from_sigmas(schedule, sigmas, rounding(timesteps))


def from_sigma(sampler, grid: Grid, **options) -> Program:
    """As diffusers starts its sigma samplers with linspace and trailing spacing."""
    return sampler(grid, init_scale=grid.sigma[0], **options)


SCALED = schedule_from_betas(scaled_linear_betas())
COSINE = schedule_from_betas(cosine_betas())
OWN_BETAS = [float(beta) for beta in np.linspace(0.0003, 0.03, 1000) ** 1.1]
OWN = schedule_from_betas(np.array(OWN_BETAS))
ZERO_SNR = positive_snr(zero_terminal_snr(LINEAR))
ALL, NO_X0 = ("epsilon", "x0", "v"), ("epsilon", "v")
DPM, UNI, DEIS = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"
EULER, ANCESTRAL = "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"
HEUN, LMS, DDIM, DDPM = "HeunDiscreteScheduler", "LMSDiscreteScheduler", "DDIMScheduler", "DDPMScheduler"
B = {"beta_start": 1e-4, "beta_end": 0.02}

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


EXACT = sorted(set(SAMPLERS) - {"flow-sde"})  # Euler-Maruyama is right only in the limit of many steps


@settings(deadline=None, max_examples=60)
@given(steps=st.integers(1, 60), name=st.sampled_from(EXACT), final=st.sampled_from(["zero", "sigma_min"]))
def test_a_known_image_is_reached_along_the_forward_process(steps: int, name: str, final: str) -> None:
    """If x0 is always c, x is alpha c + sigma z at every point: exactly without noise, in mean and variance with it."""
    if name == "ddpm" and final == "sigma_min":
        return
    flow = name.startswith("flow")
    grid = flow_grid(steps, sigma_last=0.01) if flow else multistep_grid(LINEAR, steps, final=final)
    program = SAMPLERS[name](grid)
    check_program(program)
    c, noise_power = 0.7, np.zeros(program.slots)  # state as (data, initial noise) coordinates, and drawn noise apart
    state = np.zeros((program.slots, 2))
    state[0] = grid.alpha[0] * c, grid.sigma[0]
    for i in range(program.steps):
        row = program.mix[i]
        sigma = math.exp(program.log_sigma[i, 0])
        noise_power = row[:, :-2] ** 2 @ noise_power + (row[:, -1] * sigma) ** 2  # exact for one slot only
        state = row[:, :-1] @ np.stack([*state, np.array([c, 0.0])])
    assert state[0, 0] == pytest.approx(grid.alpha[-1] * c, abs=1e-9)
    if not program.mix[:, :, -1].any():
        assert state[0, 1] == pytest.approx(grid.sigma[-1], abs=1e-9)
    elif program.slots == 1:
        assert state[0, 1] ** 2 + noise_power[0] == pytest.approx(grid.sigma[-1] ** 2, abs=1e-9)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: dpm_solver(multistep_grid(LINEAR, 5), order=4), "order 4"),
        (lambda: dpm_solver(multistep_grid(LINEAR, 5), variant="bh2"), "variant 'bh2'"),
        (lambda: dpm_solver(multistep_grid(LINEAR, 5), prediction="noise"), "prediction 'noise'"),
        (lambda: unipc(multistep_grid(LINEAR, 5), order=0), "order 0"),
        (lambda: unipc(multistep_grid(LINEAR, 5), variant="heun"), "variant 'heun'"),
        (lambda: unipc(multistep_grid(LINEAR, 5), lower_order_final=False), "lower_order_final"),
        (lambda: deis(multistep_grid(LINEAR, 5), order=4), "order 4"),
        (lambda: lms(multistep_grid(LINEAR, 5), order=5), "order 5"),
        (lambda: ddpm(multistep_grid(LINEAR, 5, final="sigma_min")), "final 'zero'"),
        (lambda: ddim(flow_grid(5), prediction="flow"), "variance-preserving"),
        (lambda: flow_heun(multistep_grid(LINEAR, 5)), "flow grid"),
        (lambda: euler(plain_grid(zero_terminal_snr(LINEAR), 5, spacing="trailing")), "use v"),
        (lambda: unipc(plain_grid(zero_terminal_snr(LINEAR), 5, spacing="trailing")), "positive_snr"),
        (lambda: heun(flow_grid(5), prediction="flow"), "positive_snr"),
        (lambda: lms(flow_grid(5), prediction="flow"), "positive_snr"),
        (lambda: multistep_grid(LINEAR, 5, final="one"), "final 'one'"),
        (lambda: grid_from_timesteps(LINEAR, np.array([5.0, 9.0])), "must fall"),
        (lambda: grid_from_timesteps(LINEAR, np.array([1000.0])), "between 0 and 999"),
        (lambda: unipc(plain_grid(LINEAR, 5, final="sigma_min"), lower_order_final=False), "same noise"),
        (lambda: spaced_timesteps("even", 5), "spacing 'even'"),
        (lambda: spaced_timesteps("leading", 1001), "1001 steps"),
        (lambda: spaced_timesteps("leading", 1000, offset=1), "offset 1"),
        (lambda: schedule_from_betas(np.array([0.1, 1.5])), "beta 1 is 1.5"),
        (lambda: flow_grid(0), "0 steps"),
        (lambda: flow_grid(3, shift=-1.0), "shift -1"),
        (lambda: with_guidance_interval(ddim(plain_grid(LINEAR, 5)), 2.0, 1.0, np.ones(5)), "low < high"),
        (lambda: with_guidance_interval(ddim(plain_grid(LINEAR, 5)), 1.0, 2.0, np.ones(4)), "4 sigmas for 5"),
        (lambda: with_guidance_interval(ddim(plain_grid(LINEAR, 5)), 2.0, 3.0, np.ones(5)), "holds none"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_named(make, complaint: str) -> None:
    with pytest.raises(ProgramError, match=complaint):
        make()


def test_guidance_interval_of_the_paper() -> None:
    """(0.34, 1.02] on the linear schedule is t of about 100 to 261."""
    program = ddim(grid_from_timesteps(LINEAR, np.arange(999, -1, -1)))
    guided = with_guidance_interval(program, 0.34, 1.02, step_sigmas(LINEAR, program))
    inside = guided.timestep[guided.guidance != 0]
    assert (inside.min(), inside.max()) == (pytest.approx(100, abs=2), pytest.approx(261, abs=2))
    assert inside.size == inside.max() - inside.min() + 1
    fractional = from_sigma(heun, sigma_grid(LINEAR, 20))
    sigmas = step_sigmas(LINEAR, fractional)
    assert sigmas.shape == (39,) and np.all(np.diff(sigmas) <= 0)
    np.testing.assert_allclose(timesteps_at(LINEAR, sigmas_at(LINEAR, np.array([3.0, 500.0]))), [3, 500], rtol=1e-12)


def test_sit_euler_is_the_plain_loop() -> None:
    """SiT: t from 0 (noise) to 1 (data), the network is dx / dt, x += dt v."""
    program = euler(flow_grid(7, shift=1.5, timestep_scale=1.0, data_at_one=True), prediction="flow-to-data")
    times = np.append(program.timestep, 1.0)
    x = noises(1)[0]
    seen = [x]
    for t, following in pairwise(times):
        x = x + (following - t) * np.sin(x + t)
        seen.append(x)
    state = noises(1)[0]
    for i, (a, b) in enumerate(program.x0_from):
        state = program.mix[i, 0, :2] @ np.stack([state, a * state + b * np.sin(state + program.timestep[i])])
        np.testing.assert_allclose(state, seen[i + 1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("sampler", "options", "order"),
    [
        (euler, {}, 1),
        (dpm_solver, {"order": 1}, 1),
        (dpm_solver, {"order": 2}, 2),
        (dpm_solver, {"order": 2, "variant": "heun"}, 2),
        (dpm_solver, {"order": 3}, 2),  # as published: see its docstring
        (unipc, {"order": 1, "lower_order_final": False}, 2),  # the corrector adds one
        (unipc, {"order": 2, "lower_order_final": False}, 3),
        (unipc, {"order": 3, "lower_order_final": False}, 4),
        (deis, {"order": 2}, 2),
        (deis, {"order": 3}, 3),
        (heun, {}, 2),
        (lms, {"order": 3}, 3),
        (lms, {"order": 4}, 4),
    ],
)
def test_order_of_convergence(sampler, options: dict, order: int) -> None:
    """Against the exact solution for Gaussian data of variance 1/4, where x0 is linear in x. No reference code."""

    def error(steps: int) -> float:
        ratio = np.exp(-np.linspace(-3, 2, steps + 1))
        alpha, sigma = 1 / np.hypot(1, ratio), ratio / np.hypot(1, ratio)
        grid = Grid(np.arange(steps, 0, -1.0), alpha, sigma)
        program = sampler(grid, prediction="x0", **options)
        level = {t: i for i, t in enumerate(grid.timestep)}
        state = np.eye(program.slots)[0]
        for t, mix in zip(program.timestep, program.mix, strict=True):
            a, s = alpha[level[t]], sigma[level[t]]
            state = mix[:, :-1] @ np.append(state, a * state[0] / (a * a + 4 * s * s))
        size = np.hypot(alpha / 2, sigma)  # standard deviation of x: the flow keeps x / size
        return abs(state[0] - size[-1] / size[0])

    assert math.log2(error(40) / error(80)) > order - 0.4


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_phi_is_one_function_on_both_sides_of_its_switch(k: int) -> None:
    below, above = phi(k, -0.5 + 1e-12), phi(k, -0.5 - 1e-12)
    assert below == pytest.approx(above, rel=1e-10)
    integral = np.mean([math.exp(-3 * (1 - s)) * s ** (k - 1) for s in (np.arange(20000) + 0.5) / 20000])
    assert phi(k, -3.0) == pytest.approx(integral / math.factorial(k - 1), rel=1e-6)  # its definition as an integral


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


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if not name.startswith("flow")])
def test_every_sampler_takes_zero_terminal_snr(sampler: str) -> None:
    info = ScheduleInfo(kind="linear", beta_start=1e-4, beta_end=0.02, steps=1000, zero_terminal_snr=True)
    settings = SamplerSettings(sampler, steps=10, guidance_interval=(0.3, 5.0))
    program = make_program(schedule_from_info(info), settings, learned_variance=True, prediction="v")
    for table in (program.mix, program.x0_from, program.log_sigma, program.init):
        assert np.isfinite(table).all()
    assert 0 < program.guidance.sum() < program.steps
    with pytest.raises(ProgramError, match="epsilon says nothing"):
        make_program(schedule_from_info(info), SamplerSettings("ddim", steps=10), learned_variance=True)


def test_the_page_on_adding_a_sampler_runs() -> None:
    page = ROOT / "docs" / "adding-a-sampler.md"
    result = doctest.testfile(str(page), module_relative=False)
    assert result.attempted > 5 and result.failed == 0


def test_flow_sde_is_sits_euler_maruyama() -> None:
    """SiT's transport/integrators.py with sample.py's defaults (linear path, diffusion "sigma", last step "Mean")."""
    n, last = 25, 0.04
    program = SAMPLERS["flow-sde"](flow_grid(n, timestep_scale=1, data_at_one=True), prediction="flow-to-data")

    def velocity(x: np.ndarray, t: float) -> np.ndarray:
        return np.sin(x) - 0.3 * x + t

    def drift(x: np.ndarray, t: float) -> np.ndarray:
        v = velocity(x, t)
        variance = (1 - t) ** 2 + t * (1 - t)
        return v + (1 - t) * (t * v - x) / variance

    times = np.linspace(0, 1 - last, n)
    dt = times[1] - times[0]
    x, *noise = noises(n + 1)
    state = x[None]
    for i, t in enumerate(times[:-1]):
        x = x + drift(x, t) * dt + math.sqrt(2 * (1 - t)) * noise[i] * math.sqrt(dt)
    x = x + drift(x, times[-1]) * last
    for i in range(n):
        a, b = program.x0_from[i]
        x0 = a * state[0] + b * velocity(state[0], program.timestep[i])
        state = program.mix[i] @ np.stack([*state, x0, noise[i]])
    np.testing.assert_allclose(state[0], x, rtol=1e-10)
