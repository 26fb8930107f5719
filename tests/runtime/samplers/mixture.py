"""A denoiser that is known exactly, that of a Gaussian mixture, and what solvers make of it."""

from __future__ import annotations

import numpy as np

from ditedge.runtime.samplers import Grid
from ditedge.runtime.samplers.program import Program

SIZE, KINDS, WIDTH = 64, 8, 0.05  # of the data: a mixture of 8 Gaussians of this variance in 64 dimensions
RNG = np.random.default_rng(0)
CENTRES, START = RNG.standard_normal((KINDS, SIZE)), RNG.standard_normal((200, SIZE))
END = 1e-3  # of their continuous time, where their search ends


def exact_x0(x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    """E[x0 | x] of the mixture, [n, SIZE]."""
    variance = alpha**2 * WIDTH + sigma**2
    logs = -((x[:, None] - alpha * CENTRES) ** 2).sum(-1) / (2 * variance)
    weights = np.exp(logs - logs.max(axis=1, keepdims=True))
    centre = weights / weights.sum(axis=1, keepdims=True) @ CENTRES
    return centre + alpha * WIDTH / variance * (x - alpha * centre)


def sampled(program: Program, grid: Grid) -> np.ndarray:
    """What the program makes of START with the exact denoiser, float64."""
    state = np.zeros((program.slots, *START.shape))
    state[0] = program.init[1] * START
    for i in range(program.steps):
        x0 = exact_x0(state[0], grid.alpha[i], grid.sigma[i])
        state = np.tensordot(program.mix[i][:, :-1], np.concatenate([state, x0[None]]), 1)
    return state[0]


def preserving(times: np.ndarray) -> Grid:
    """Variance-preserving diffusion in continuous time with betas from 0.1 to 20, as they searched on it, to END."""
    every = np.append(times, END)
    alpha = np.exp(-(19.9 * every**2 / 2 + 0.1 * every) / 2)
    return Grid(1000 * times, alpha, np.sqrt(1 - alpha**2))


def distance(found: np.ndarray, reference: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - reference) ** 2)))
