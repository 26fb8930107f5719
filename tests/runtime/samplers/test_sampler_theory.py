"""Samplers against theory: known images, plain loops, orders of convergence, and settings that make no sense."""

from __future__ import annotations

import math
from itertools import pairwise

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
    flow_grid,
    flow_heun,
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
from ditedge.runtime.samplers.program import check_program
from ditedge.runtime.samplers.schedule import (
    ScheduleInfo,
    schedule_from_betas,
    schedule_from_info,
    zero_terminal_snr,
)
from ditedge.runtime.samplers.settings import SamplerSettings, make_program
from ditedge.runtime.samplers.spacing import spaced_timesteps
from tests.runtime.samplers.trajectories import (
    LINEAR,
    from_sigma,
    multistep_grid,
    noises,
    plain_grid,
    sigma_grid,
)

# Euler-Maruyama is right only in the limit of many steps; LCM keeps a little of x; DMD takes one step; the searched ones
# have their own numbers of steps (test_searched.py).
EXACT = sorted(set(SAMPLERS) - {"flow-sde", "lcm", "dmd", "searched", "flow-searched"})


@settings(deadline=None, max_examples=60)
@given(steps=st.integers(1, 60), name=st.sampled_from(EXACT), final=st.sampled_from(["zero", "sigma_min"]))
def test_a_known_image_is_reached_along_the_forward_process(steps: int, name: str, final: str) -> None:
    """If x0 is always c, x is alpha c + sigma z at every point: exactly without noise, in mean and variance with it."""
    if name == "ddpm" and final == "sigma_min":
        return
    flow = name.startswith(("flow", "mean"))
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


@pytest.mark.parametrize(
    "sampler", [name for name in SAMPLERS if not name.startswith(("flow", "edm", "mean")) and name != "dmd"]
)
def test_every_sampler_takes_zero_terminal_snr(sampler: str) -> None:
    info = ScheduleInfo(kind="linear", beta_start=1e-4, beta_end=0.02, steps=1000, zero_terminal_snr=True)
    settings = SamplerSettings(sampler, steps=10, guidance_interval=(0.3, 5.0))
    program = make_program(schedule_from_info(info), settings, learned_variance=True, prediction="v")
    for table in (program.mix, program.x0_from, program.log_sigma, program.init):
        assert np.isfinite(table).all()
    assert 0 < program.guidance.sum() < program.steps
    with pytest.raises(ProgramError, match="epsilon says nothing"):
        make_program(schedule_from_info(info), SamplerSettings("ddim", steps=10), learned_variance=True)


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
