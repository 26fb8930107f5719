"""What a sampler makes of a fixed analytic network, by our table, in float64."""

from __future__ import annotations

import math

import numpy as np

from ditedge.runtime.samplers import (
    Grid,
    grid_from_sigmas,
    grid_from_timesteps,
    sigmas_at,
    timesteps_at,
)
from ditedge.runtime.samplers.program import Program
from ditedge.runtime.samplers.schedule import (
    Schedule,
    cosine_betas,
    linear_schedule,
    positive_snr,
    scaled_linear_betas,
    schedule_from_betas,
    zero_terminal_snr,
)
from ditedge.runtime.samplers.spacing import spaced_timesteps

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


def replay(program: Program, prediction: str, image: np.ndarray | None = None) -> np.ndarray:
    """The contract of docs/format.md's step graph in float64: what the network sees before every step, and the sample. [N+1, SIZE]"""
    z, *noise = noises(program.steps + 1)
    state = np.zeros((program.slots, SIZE))
    state[0] = program.init[1] * z + (0 if image is None else program.init[0] * image)
    seen = [state[0]]
    for i in range(program.steps):
        (a, b), k0 = program.x0_from[i], program.log_sigma[i, 0]
        x0 = np.clip(
            a * state[0] + b * network(state[0], program.timestep[i], prediction), -program.x0_bound, program.x0_bound
        )
        state = program.mix[i] @ np.stack([*state, x0, np.exp(k0) * noise[i]])
        seen.append(state[0])
    return np.array(seen)


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
