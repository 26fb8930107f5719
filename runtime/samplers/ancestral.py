"""DDPM and DDIM: the samplers that diffusion models are trained with."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ..errors import ProgramError
from .grid import Grid, program_on_grid
from .program import Program

VARIANCES = ("learned", "fixed-small", "fixed-large")


def ddpm(grid: Grid, *, variance: str = "fixed-small", prediction: str = "epsilon") -> Program:
    """Ancestral sampling (Ho et al. 2020, algorithm 2) on respaced betas.

    variance: "learned" interpolates log variances with the network's v (Nichol & Dhariwal 2021, eq. 15);
    "fixed-small" is the posterior variance, "fixed-large" beta.
    """
    if variance not in VARIANCES:
        raise ProgramError(f"variance '{variance}' is not one of {', '.join(VARIANCES)}")
    if grid.sigma[-1] > 0:
        raise ProgramError("DDPM ends without noise: use final 'zero'")
    abar, previous = _variance_preserving(grid)
    beta = 1 - abar / previous
    posterior = beta * (1 - previous) / (1 - abar)
    floor = posterior[-2] if len(posterior) > 1 else beta[-1]  # the last step's posterior is 0: use its neighbour's
    log_posterior = np.log(np.append(posterior[:-1], floor))
    if variance == "learned":
        low, high = log_posterior, np.log(beta)
        log_sigma = np.stack([(high + low) / 4, (high - low) / 4], axis=1)
    else:
        log_variance = log_posterior if variance == "fixed-small" else np.log(np.append(beta[:-1], floor))
        log_sigma = np.stack([log_variance / 2, np.zeros_like(log_variance)], axis=1)
    mix = np.zeros((grid.steps, 1, 3))
    mix[:, 0, 0] = (1 - previous) * np.sqrt(abar / previous) / (1 - abar)
    mix[:, 0, 1] = beta * np.sqrt(previous) / (1 - abar)
    mix[:-1, 0, 2] = 1.0  # no noise at the last step
    return replace(program_on_grid("ddpm", grid, prediction, mix), log_sigma=log_sigma)


def ddim(grid: Grid, *, eta: float = 0.0, prediction: str = "epsilon") -> Program:
    """DDIM (Song et al. 2021, eq. 12); epsilon is derived again from the (clipped) x0. eta 0 is deterministic.

    A grid that ends above sigma 0 is diffusers' set_alpha_to_one=False.
    """
    if not (math.isfinite(eta) and eta >= 0):
        raise ProgramError(f"eta {eta} is not a finite number of at least 0")
    abar, previous = _variance_preserving(grid)
    sigma = eta * np.sqrt((1 - previous) / (1 - abar)) * np.sqrt(1 - abar / previous)
    direction = 1 - previous - sigma**2
    if np.any(direction < -1e-12):
        raise ProgramError(f"eta {eta} asks for more noise than a step has: use a value of at most 1")
    epsilon_weight = np.sqrt(np.maximum(direction, 0))
    mix = np.zeros((grid.steps, 1, 3))
    mix[:, 0, 0] = epsilon_weight / np.sqrt(1 - abar)
    mix[:, 0, 1] = np.sqrt(previous) - epsilon_weight * np.sqrt(abar / (1 - abar))
    mix[:, 0, 2] = sigma > 0
    log_sigma = np.zeros((grid.steps, 2))
    log_sigma[sigma > 0, 0] = np.log(sigma[sigma > 0])
    return replace(program_on_grid("ddim", grid, prediction, mix), log_sigma=log_sigma)


def _variance_preserving(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """abar at each step, and at the step it leads to, [N] each."""
    if not np.allclose(grid.alpha**2 + grid.sigma**2, 1, rtol=0, atol=1e-9):
        raise ProgramError("DDPM and DDIM need a variance-preserving grid; use euler for flow matching")
    abar = grid.alpha**2
    return abar[:-1], abar[1:]
