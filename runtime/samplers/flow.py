"""Flow matching: x = (1 - sigma) x0 + sigma eps, the network a velocity (Lipman et al. 2023; Liu et al. 2023)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ..errors import ProgramError
from .grid import Grid, program_on_grid
from .program import Program


def flow_grid(
    steps: int,
    *,
    shift: float = 1.0,
    sigma_last: float = 0.0,
    timestep_scale: float = 1000.0,
    data_at_one: bool = False,
) -> Grid:
    """Equal steps of sigma from 1 to sigma_last, shifted (Esser et al. 2024, eq. 23), then a step to 0.

    sigma_last: 0 divides [0, 1] evenly; above 0 is the last point evaluated, before shifting.
    What the network is told is timestep_scale sigma (diffusers: 1000), or with data_at_one timestep_scale (1 - sigma)
    (SiT: scale 1, and prediction "flow-to-data").
    """
    if steps < 1:
        raise ProgramError(f"{steps} steps: at least 1")
    if not (shift > 0 and 0 <= sigma_last < 1):
        raise ProgramError(f"shift {shift:g} must be above 0 and sigma_last {sigma_last:g} in [0, 1)")
    sigma = np.linspace(1, sigma_last, steps + (sigma_last == 0))[:steps]
    return flow_grid_from_sigmas(shifted(sigma, shift), timestep_scale=timestep_scale, data_at_one=data_at_one)


def flow_grid_from_sigmas(sigma: np.ndarray, *, timestep_scale: float = 1000.0, data_at_one: bool = False) -> Grid:
    """The grid of sigmas [N] in (0, 1], falling, that ends at 0."""
    full = np.append(np.asarray(sigma, dtype=np.float64), 0.0)
    if np.any(np.diff(full) >= 0) or full[0] > 1:
        raise ProgramError("the sigmas of a flow must fall and lie in (0, 1]")
    time = 1 - full[:-1] if data_at_one else full[:-1]
    return Grid(timestep=timestep_scale * time, alpha=1 - full, sigma=full)


def flow_grid_diffusers(steps: int, *, shift: float = 1.0, trained: int = 1000) -> Grid:
    """FlowMatchEulerDiscreteScheduler's points: it shifts its range once when made, and the points in it once more."""
    first, last = shifted(np.array([1.0, 1 / trained]), shift)
    return flow_grid_from_sigmas(shifted(np.linspace(first, last, steps), shift), timestep_scale=trained)


def flow_grid_dpm(
    steps: int, *, shift: float = 1.0, timestep_scale: float = 1000.0, data_at_one: bool = False, trained: int = 1000
) -> Grid:
    """DPMSolverMultistepScheduler's points with use_flow_sigmas: equal steps from 1 - 1 / trained, shifted, without 0.

    A network that is told 0 .. 1000 is told whole timesteps, cut off, as diffusers does.
    """
    if steps < 1 or not shift > 0:
        raise ProgramError(f"{steps} steps with shift {shift:g}: at least 1, and a shift above 0")
    sigma = shifted(1.0 - np.linspace(1, 1 / trained, steps + 1), shift)[::-1][:-1]
    grid = flow_grid_from_sigmas(sigma, timestep_scale=timestep_scale, data_at_one=data_at_one)
    return replace(grid, timestep=np.floor(sigma * timestep_scale)) if timestep_scale == trained else grid


def shifted(sigma: np.ndarray, shift: float) -> np.ndarray:
    """More points at high noise, for larger images (Esser et al. 2024, eq. 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def flow_heun(grid: Grid, *, prediction: str = "flow") -> Program:
    """Heun's method along sigma: the velocity u = (x - x0) / sigma averaged over both ends; Euler into sigma 0.

    Slot 1 carries x + half of Euler's change.
    """
    if not np.allclose(grid.alpha + grid.sigma, 1, rtol=0, atol=1e-9):
        raise ProgramError("flow-heun needs a flow grid; use heun for diffusion")
    mix, rows = [], []
    for i in range(grid.steps):
        x, start, x0, _ = np.eye(4)
        change = grid.sigma[i + 1] - grid.sigma[i]
        predicted = x + change / grid.sigma[i] * (x - x0)
        rows.append(i)
        if i + 1 == grid.steps:
            mix.append([predicted, np.zeros(4)])
            break
        mix.append([predicted, (x + predicted) / 2])
        rows.append(i + 1)
        mix.append([start + change / grid.sigma[i + 1] / 2 * (x - x0), np.zeros(4)])
    return program_on_grid("flow-heun", grid, prediction, np.array(mix), rows=np.array(rows))


def flow_sde(grid: Grid, *, prediction: str = "flow") -> Program:
    """Euler-Maruyama on SiT's reverse SDE (Ma et al. 2024, section 2.4) with its default diffusion w = sigma.

    dx = (u + w score) dt + sqrt(2 w) dW along t = alpha, u = (x0 - x) / sigma, score = -(x - alpha x0) / sigma^2; the
    last step is the mean alone (last_step "Mean"). Equal steps are SiT's with last_step_size = 1 / N.
    """
    if not np.allclose(grid.alpha + grid.sigma, 1, rtol=0, atol=1e-9):
        raise ProgramError("flow-sde needs a flow grid; use sde-dpm++ for diffusion")
    mix = np.zeros((grid.steps, 1, 3))
    for i in range(grid.steps):
        x, x0, noise = np.eye(3)
        sigma, dt = grid.sigma[i], grid.sigma[i] - grid.sigma[i + 1]
        mean = x + dt / sigma * ((x0 - x) - (x - grid.alpha[i] * x0))
        mix[i, 0] = mean + (math.sqrt(2 * sigma * dt) * noise if i + 1 < grid.steps else 0)
    return program_on_grid("flow-sde", grid, prediction, mix)
