"""Samplers of distilled models, which need one to eight evaluations: LCM, TCD, SCM and DMD."""

from __future__ import annotations

import math

import numpy as np

from ..errors import ProgramError
from .grid import Grid, grid_from_timesteps, program_on_grid
from .program import Program
from .schedule import Schedule

SKIP = 50  # timesteps that LCM and TCD models were distilled on (`original_inference_steps`)
TIMESTEP_SCALING, SIGMA_DATA = 10.0, 0.5  # of LCM's boundary condition (Luo et al. 2023, section 4.1; diffusers)
DMD_TIMESTEP = 400  # what PixArt-alpha-DMD's generator is told, whose input is pure noise all the same
SCM_START, SCM_BETWEEN = 1.57080, 1.3  # angles: SANA-Sprint's first one, and the second of two steps
TCD_GAMMA = 0.3


def distilled_timesteps(steps: int, trained: int) -> np.ndarray:
    """`steps` of the 50 timesteps that a model was distilled on, evenly, most noise first [N]."""
    if not 1 <= steps <= min(SKIP, trained):
        raise ProgramError(f"{steps} steps: a distilled model takes 1 to {min(SKIP, trained)}")
    known = np.arange(SKIP, 0, -1) * (trained // SKIP) - 1
    return known[np.floor(np.linspace(0, SKIP, steps, endpoint=False)).astype(np.int64)]


def lcm(grid: Grid, *, prediction: str = "epsilon") -> Program:
    """Multistep latent consistency sampling (Luo et al. 2023, "Latent Consistency Models", algorithm 3).

    f(x, t) = c_skip x + c_out x0, the scalings of its discrete boundary condition; then fresh noise of the next level.
    """
    scaled = grid.timestep * TIMESTEP_SCALING
    skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    out = scaled / np.sqrt(scaled**2 + SIGMA_DATA**2)
    mix = np.stack([grid.alpha[1:] * skip, grid.alpha[1:] * out, grid.sigma[1:]], axis=1)[:, None]
    return program_on_grid("lcm", grid, prediction, mix)


def tcd(grid: Grid, *, stops: np.ndarray | None = None, prediction: str = "epsilon") -> Program:
    """Strategic stochastic sampling (Zheng et al. 2024, "Trajectory Consistency Distillation", algorithm 4).

    A step goes along the trajectory to a point below the next one, then up to that by noise. stops: alpha and sigma of
    those points [N, 2] (`tcd_stops`); None: no noise, each is the next point itself.
    """
    mix = np.zeros((grid.steps, 1, 3))
    for i in range(grid.steps):
        x, x0, noise = np.eye(3)
        alpha, sigma = (grid.alpha[i + 1], grid.sigma[i + 1]) if stops is None else stops[i]
        stop = alpha * x0 + sigma * (x - grid.alpha[i] * x0) / grid.sigma[i]
        kept = grid.alpha[i + 1] / alpha
        mix[i, 0] = kept * stop + math.sqrt(max(0.0, 1 - kept**2)) * noise
    return program_on_grid("tcd", grid, prediction, mix)


def tcd_stops(schedule: Schedule, timesteps: np.ndarray, gamma: float) -> np.ndarray:
    """(alpha, sigma) [N, 2] at (1 - gamma) times the next timestep, cut to whole ones; the last is the timestep 0."""
    if not 0 <= gamma <= 1:
        raise ProgramError(f"eta {gamma} of tcd is not between 0 (no noise) and 1")
    below = np.floor((1 - gamma) * np.append(timesteps[1:], 0)).astype(np.int64)
    abar = schedule.alphas_cumprod[below]
    return np.stack([np.sqrt(abar), np.sqrt(1 - abar)], axis=1)


def consistency(grid: Grid, *, prediction: str = "flow") -> Program:
    """Multistep consistency sampling (Song et al. 2023, algorithm 1): x' = alpha' x0 + sigma' noise."""
    mix = np.stack([np.zeros(grid.steps), grid.alpha[1:], grid.sigma[1:]], axis=1)[:, None]
    return program_on_grid("consistency", grid, prediction, mix, init_scale=grid.sigma[0])


def scm_grid(steps: int, timestep_scale: float = 1.0) -> Grid:
    """Where SANA-Sprint evaluates (Chen et al. 2025, "SANA-Sprint", section 3.1): equal angles t, of two steps its own.

    TrigFlow has x = cos(t) x0 + sin(t) eps. Divided by cos(t) + sin(t), as its network sees it, that is a flow's x at
    sigma = sin / (cos + sin), and what the network says of it is the flow's velocity. The first angle is 4e-6
    more than pi / 2, as in diffusers' SCMScheduler.
    """
    if steps < 1:
        raise ProgramError(f"{steps} steps: at least 1")
    angle = np.array([SCM_START, SCM_BETWEEN, 0.0]) if steps == 2 else np.linspace(SCM_START, 0, steps + 1)
    total = np.cos(angle) + np.sin(angle)
    sigma = np.sin(angle) / total
    return Grid(timestep=timestep_scale * sigma[:-1], alpha=np.cos(angle) / total, sigma=sigma)


def dmd(grid: Grid, *, prediction: str = "epsilon") -> Program:
    """One-step distribution matching distillation (Yin et al. 2024): the x0 estimate of noise, told one timestep."""
    if grid.steps != 1:
        raise ProgramError(f"dmd takes one step, not {grid.steps}")
    return program_on_grid("dmd", grid, prediction, np.array([[[0.0, grid.alpha[1], grid.sigma[1]]]]))


def distilled_grid(schedule: Schedule, sampler: str, steps: int) -> Grid:
    """The points of "lcm", "tcd" (which ends at the first timestep of training) or "dmd"."""
    if sampler == "dmd":
        if steps != 1:
            raise ProgramError(f"dmd takes one step: give steps 1, not {steps}")
        return grid_from_timesteps(schedule, np.array([min(DMD_TIMESTEP, schedule.steps - 1)]))
    timesteps = distilled_timesteps(steps, schedule.steps)
    return grid_from_timesteps(schedule, timesteps, final="sigma_min" if sampler == "tcd" else "zero")
