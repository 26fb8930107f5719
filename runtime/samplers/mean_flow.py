"""Steps of an average velocity: MeanFlow (Geng et al. 2025, arXiv:2505.13447), told how far each goes."""

from __future__ import annotations

from dataclasses import replace

from .distilled import consistency
from .euler import euler
from .grid import Grid
from .program import Program


def mean_flow(grid: Grid, *, prediction: str = "mean-flow") -> Program:
    """x' = x - (t - t') u(x, t, t - t'): eq. 12, Euler's step, but exact where the network is."""
    program = euler(grid, prediction=prediction)
    scale = grid.timestep[0] / grid.sigma[0]
    return replace(program, name=f"mean-flow-{grid.steps}", interval=scale * (grid.sigma[:-1] - grid.sigma[1:]))


def mean_consistency(grid: Grid, *, prediction: str = "mean-flow") -> Program:
    """Every step all the way to an image, x0 = x - t u(x, t, t), then fresh noise of the next level (`consistency`)."""
    program = consistency(grid, prediction=prediction)
    return replace(program, name=f"mean-consistency-{grid.steps}", interval=program.timestep)
