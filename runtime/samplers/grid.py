"""Where a sampler evaluates the network, and the arithmetic that every sampler shares.

A forward process mixes data and unit noise, x_t = alpha_t x0 + sigma_t eps. A `Grid` is that process at the N points a
sampler visits and at the point where it ends. Variance-preserving diffusion has alpha^2 + sigma^2 = 1, flow matching
alpha + sigma = 1; no sampler needs to know which. Samplers that the literature writes for x / alpha (Euler, Heun and
LMS in "sigma" form) are the same formulas with `ratio` = sigma / alpha.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..errors import ProgramError
from .program import Program
from .schedule import Schedule

FINALS = ("zero", "sigma_min")
PREDICTIONS = ("epsilon", "x0", "v", "flow", "flow-to-data", "mean-flow", "edm")


@dataclass(frozen=True)
class Grid:
    """The forward process where a sampler evaluates it, most noise first."""

    timestep: np.ndarray  # [N] what the network is told
    alpha: np.ndarray  # [N + 1] weight of the data; the last entry is where the sampler ends
    sigma: np.ndarray  # [N + 1] weight of the noise, falling

    @property
    def steps(self) -> int:
        """N: points at which the network is evaluated."""
        return len(self.timestep)

    @property
    def ratio(self) -> np.ndarray:
        """sigma / alpha, [N + 1]: the sigma of Karras et al. 2022; infinite where there is no data left."""
        with np.errstate(divide="ignore"):
            return self.sigma / self.alpha

    @property
    def log_snr_steps(self) -> np.ndarray:
        """h_i = lambda_{i+1} - lambda_i, [N], lambda = log(alpha / sigma) as in DPM-Solver; infinite into sigma 0."""
        with np.errstate(divide="ignore"):
            steps = -np.diff(np.log(self.ratio))
        if np.any(steps <= 0):
            raise ProgramError("two points of the grid have the same noise: use fewer steps, or final 'zero'")
        return steps


def grid_from_timesteps(schedule: Schedule, timesteps: np.ndarray, *, final: str = "zero") -> Grid:
    """A grid on a trained schedule. Between two timesteps of training the ratio sigma / alpha is interpolated.

    final: "zero" ends without noise, "sigma_min" at the schedule's first timestep (diffusers' final_sigmas_type, and
    DDIM's set_alpha_to_one=False).
    """
    timesteps = np.asarray(timesteps, dtype=np.float64)
    if timesteps.size == 0 or timesteps.min() < 0 or timesteps.max() > schedule.steps - 1:
        raise ProgramError(f"timesteps are not between 0 and {schedule.steps - 1}")
    if np.all(timesteps == np.floor(timesteps)):
        abar = schedule.alphas_cumprod[timesteps.astype(np.int64)]
        return _grid(timesteps, np.sqrt(abar), np.sqrt(1 - abar), schedule, final)
    return grid_from_sigmas(schedule, sigmas_at(schedule, timesteps), timesteps, final=final)


def grid_from_sigmas(schedule: Schedule, sigmas: np.ndarray, timesteps: np.ndarray, *, final: str = "zero") -> Grid:
    """A variance-preserving grid from ratios sigma / alpha [N] (Karras or exponential spacing) and their timesteps."""
    alpha = 1 / np.sqrt(1 + sigmas**2)
    return _grid(np.asarray(timesteps, dtype=np.float64), alpha, sigmas * alpha, schedule, final)


def _grid(timesteps: np.ndarray, alpha: np.ndarray, sigma: np.ndarray, schedule: Schedule, final: str) -> Grid:
    if final not in FINALS:
        raise ProgramError(f"final '{final}' is not one of {', '.join(FINALS)}")
    last = 1.0 if final == "zero" else float(schedule.alphas_cumprod[0])
    grid = Grid(timesteps, np.append(alpha, math.sqrt(last)), np.append(sigma, math.sqrt(1 - last)))
    if np.any(grid.ratio[1:] > grid.ratio[:-1]) or np.any(grid.ratio[:-1] <= 0):
        raise ProgramError("the noise of a sampler must fall from step to step, and stay above 0 until the last")
    return grid


def begun_within(grid: Grid, strength: float) -> Grid:
    """The last part of a grid, for a latent that is noised to its first point: `strength` of the steps, rounded down.

    As diffusers' image-to-image pipelines have it (`get_timesteps`). Raises ProgramError where no step is left.
    """
    if not 0 < strength <= 1:
        raise ProgramError(f"strength {strength:g} is not above 0 and at most 1")
    steps = min(int(grid.steps * strength), grid.steps)
    if steps == 0:
        raise ProgramError(f"strength {strength:g} of {grid.steps} steps leaves none: at least {1 / grid.steps:.3g}")
    first = grid.steps - steps
    return Grid(grid.timestep[first:], grid.alpha[first:], grid.sigma[first:])


def sigmas_at(schedule: Schedule, timesteps: np.ndarray) -> np.ndarray:
    """sqrt((1 - abar) / abar) at timesteps that may lie between two of training: linear in sigma, like k-diffusion."""
    with np.errstate(divide="ignore"):
        sigmas = np.sqrt((1 - schedule.alphas_cumprod) / schedule.alphas_cumprod)
    timesteps = np.asarray(timesteps, dtype=np.float64)
    if np.all(timesteps == np.floor(timesteps)):
        return sigmas[timesteps.astype(np.int64)]
    return np.interp(timesteps, np.arange(schedule.steps), sigmas)


def timesteps_at(schedule: Schedule, sigmas: np.ndarray) -> np.ndarray:
    """The inverse of `sigmas_at`, linear in log sigma (k-diffusion `sigma_to_t`), held inside the schedule."""
    return np.interp(np.log(sigmas), np.log(sigmas_at(schedule, np.arange(schedule.steps))), np.arange(schedule.steps))


def x0_from(grid: Grid, prediction: str) -> np.ndarray:
    """(a, b) with x0 = a x + b pred, [N, 2].

    epsilon: the noise. x0: the data. v = alpha eps - sigma x0 (Salimans & Ho 2022, appendix D). flow = eps - x0 (SD3,
    diffusers) and flow-to-data = x0 - eps (SiT: time runs from noise to data): the velocity of flow matching; mean-flow
    is read as flow: the x0 that a step of this velocity all the way would reach.
    edm: what c_skip and c_out make of it (edm.py), on whose grids (sigma_data alpha)^2 + sigma^2 = 1.
    """
    alpha, sigma = grid.alpha[:-1], grid.sigma[:-1]
    one, zero = np.ones_like(alpha), np.zeros_like(alpha)
    if prediction == "epsilon":
        if np.any(alpha == 0):
            raise ProgramError("epsilon says nothing about x0 where no data is left (zero terminal SNR): use v")
        return np.stack([1 / alpha, -sigma / alpha], axis=1)
    if prediction == "x0":
        return np.stack([zero, one], axis=1)
    if prediction == "v":
        scale = alpha**2 + sigma**2
        return np.stack([alpha / scale, -sigma / scale], axis=1)
    if prediction in ("flow", "flow-to-data", "mean-flow"):
        sign = -1.0 if prediction == "flow-to-data" else 1.0
        return np.stack([one, -sign * sigma], axis=1) / (alpha + sigma)[:, None]
    if prediction == "edm":
        data = np.sqrt(1 - sigma**2)  # sigma_data alpha
        return np.stack([data**2 / alpha, sigma * data / alpha], axis=1)
    raise ProgramError(f"prediction '{prediction}' is not one of {', '.join(PREDICTIONS)}")


def program_on_grid(
    name: str, grid: Grid, prediction: str, mix: np.ndarray, *, init_scale: float = 1.0, rows: np.ndarray | None = None
) -> Program:
    """A program whose step r evaluates grid point rows[r] (None: each point once)."""
    rows = np.arange(grid.steps) if rows is None else rows
    return Program(
        name=f"{name}-{grid.steps}",
        timestep=grid.timestep[rows],
        x0_from=x0_from(grid, prediction)[rows],
        log_sigma=np.zeros((len(rows), 2)),
        mix=mix,
        guidance=np.ones(len(rows)),
        init=(0.0, init_scale),
        made={"sampler": name, "steps": grid.steps, "prediction": prediction},
    )


def phi(k: int, z: float) -> float:
    """phi_k(z) of exponential integrators: phi_1 = (e^z - 1) / z, phi_{k+1} = (phi_k - 1 / k!) / z."""
    if abs(z) < 0.5:  # the recursion loses digits here, the series none
        return math.fsum(z**j / math.factorial(j + k) for j in range(16))
    value = math.expm1(z) / z
    for j in range(1, k):
        value = (value - 1 / math.factorial(j)) / z
    return value
