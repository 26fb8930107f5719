"""The solvers of "Differentiable Solver Search" (Wang et al., ICML 2025, arXiv 2505.21114), by its equation 19.

Their released sampler of diffusion models steps twice in each loop and is not what the paper says; this is the paper's.
"""

from __future__ import annotations

import numpy as np

from ..errors import ProgramError
from .flow import flow_grid_from_sigmas
from .grid import Grid, grid_from_timesteps, program_on_grid
from .program import Program
from .schedule import Schedule
from .searched_tables import DIFFUSION, FLOW, Table

FIRST = 0.999  # of the time [0, 1], where their search on diffusion begins


def searched_grid(schedule: Schedule, steps: int) -> Grid:
    """The published times on a model's own schedule, fractions of timesteps included, and a last step to sigma 0."""
    taken, _ = _table(DIFFUSION, steps)
    times = FIRST - np.cumsum([0.0, *taken[:-1]])
    return grid_from_timesteps(schedule, np.minimum(schedule.steps * times, schedule.steps - 1))


def flow_searched_grid(steps: int, *, timestep_scale: float = 1000.0, data_at_one: bool = False) -> Grid:
    """The published times of a flow, ending at the data."""
    taken, _ = _table(FLOW, steps)
    sigma = 1 - np.cumsum([0.0, *taken[:-1]])
    return flow_grid_from_sigmas(sigma, timestep_scale=timestep_scale, data_at_one=data_at_one)


def searched(grid: Grid, *, prediction: str = "epsilon") -> Program:
    """x' = sigma'/sigma x + sigma' (w' - w) sum_j c_j x0_j with w = alpha / sigma (eq. 19). Slots: x and earlier x0."""
    mix, weights = _empty(DIFFUSION, grid)
    for i in range(grid.steps):
        x, *past, x0, _ = np.eye(mix.shape[2])
        ratio = grid.sigma[i + 1] / grid.sigma[i]
        estimate = _weighted(weights[i], x0, past)
        mix[i] = [ratio * x + (grid.alpha[i + 1] - ratio * grid.alpha[i]) * estimate, x0, *past][: len(mix[i])]
    return program_on_grid("searched", grid, prediction, mix)


def flow_searched(grid: Grid, *, prediction: str = "flow") -> Program:
    """x' = x + (sigma - sigma') sum_j c_j v_j, v = (x0 - x) / sigma the velocity. Slots: x and earlier velocities."""
    mix, weights = _empty(FLOW, grid)
    for i in range(grid.steps):
        x, *past, x0, _ = np.eye(mix.shape[2])
        velocity = (x0 - x) / grid.sigma[i]
        change = (grid.sigma[i] - grid.sigma[i + 1]) * _weighted(weights[i], velocity, past)
        mix[i] = [x + change, velocity, *past][: len(mix[i])]
    return program_on_grid("flow-searched", grid, prediction, mix)


def _table(tables: dict[int, Table], steps: int | None) -> Table:
    if steps not in tables:
        raise ProgramError(f"{steps} steps were not searched: give one of {', '.join(map(str, tables))}")
    return tables[steps]


def _empty(tables: dict[int, Table], grid: Grid) -> tuple[np.ndarray, tuple[tuple[float, ...], ...]]:
    """The mix to fill, with as many slots as the farthest estimate that is used again asks for, and the weights."""
    _, weights = _table(tables, grid.steps)
    farthest = max((i - j for i, row in enumerate(weights) for j, weight in enumerate(row) if weight), default=0)
    return np.zeros((grid.steps, 1 + farthest, 3 + farthest)), weights


def _weighted(weights: tuple[float, ...], now: np.ndarray, past: list[np.ndarray]) -> np.ndarray:
    """past: latest first, as the slots hold them; weights: earliest first, as published."""
    total = (1 - sum(weights)) * now
    for weight, earlier in zip(reversed(weights), past, strict=False):
        total = total + weight * earlier
    return total
