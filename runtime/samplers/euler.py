"""Euler, Euler ancestral and Heun (Karras et al. 2022; Crowson's k-diffusion), on scaled latents.

The literature steps x^ = x / alpha along rho = sigma / alpha; here slot 0 holds x = alpha x^, which is what the network
sees. `init_scale`: the size of the first x. Pure noise at the first point is 1; diffusers' linspace and trailing
spacings start at sigma_0 instead (leave the data's share out), so give grid.sigma[0] to match them.
"""

from __future__ import annotations

import math

import numpy as np

from ..errors import ProgramError
from .grid import Grid, program_on_grid
from .program import Program


def euler(grid: Grid, *, prediction: str = "epsilon", init_scale: float = 1.0) -> Program:
    """Euler's method: Karras et al. 2022, algorithm 1 without its correction; on a flow grid the flow's own Euler.

    Both are x' = (sigma' / sigma) x + (alpha' - alpha sigma' / sigma) x0, which is also DDIM.
    """
    mix = np.zeros((grid.steps, 1, 3))
    mix[:, 0, 0] = grid.sigma[1:] / grid.sigma[:-1]
    mix[:, 0, 1] = grid.alpha[1:] - grid.alpha[:-1] * mix[:, 0, 0]
    return program_on_grid("euler", grid, prediction, mix, init_scale=init_scale)


def euler_ancestral(grid: Grid, *, prediction: str = "epsilon", init_scale: float = 1.0) -> Program:
    """Euler to rho_down, then noise rho_up (k-diffusion `sample_euler_ancestral`, eta 1): rho_down = rho'^2 / rho."""
    mix = np.zeros((grid.steps, 1, 3))
    for i in range(grid.steps):
        x, x0, noise = np.eye(3)
        q = grid.ratio[i + 1] / grid.ratio[i]
        down, up = q * q, grid.sigma[i + 1] * math.sqrt((1 - q) * (1 + q))
        x_scale = grid.sigma[i + 1] / grid.sigma[i] * q  # alpha' rho_down / (alpha rho), finite at zero SNR too
        mix[i, 0] = x_scale * x + grid.alpha[i + 1] * (1 - down) * x0 + up * noise
    return program_on_grid("euler-ancestral", grid, prediction, mix, init_scale=init_scale)


def heun(grid: Grid, *, prediction: str = "epsilon", init_scale: float = 1.0) -> Program:
    """Heun's method along rho (Karras et al. 2022, algorithm 1): two evaluations a step, one in the last into sigma 0.

    Slot 1 carries x^ + half of Euler's change between the two, scaled to the next point: all that the second needs.
    """
    if np.any(grid.alpha == 0):
        raise ProgramError("heun needs some data at every step: use positive_snr(schedule)")
    mix, rows = [], []
    for i in range(grid.steps):
        x, start, x0, _ = np.eye(4)
        ratio = grid.sigma[i + 1] / grid.sigma[i]
        predicted = ratio * x + (grid.alpha[i + 1] - grid.alpha[i] * ratio) * x0
        rows.append(i)
        if i + 1 == grid.steps:
            mix.append([predicted, np.zeros(4)])
            break
        kept = grid.alpha[i + 1] / grid.alpha[i] * x
        mix.append([predicted, (kept + predicted) / 2])
        half = (1 - grid.ratio[i] / grid.ratio[i + 1]) / 2  # alpha' (rho' - rho) / (2 sigma')
        rows.append(i + 1)
        mix.append([start + half * (x - grid.alpha[i + 1] * x0), np.zeros(4)])
    return program_on_grid("heun", grid, prediction, np.array(mix), init_scale=init_scale, rows=np.array(rows))
