"""Linear multistep methods on epsilon: LMS (Katherine Crowson, k-diffusion) and DEIS (Zhang & Chen 2023).

With x^ = x / alpha and rho = sigma / alpha the probability flow is dx^ / d rho = epsilon. Both methods integrate the
Lagrange polynomial through the last epsilons: LMS takes it in rho (Adams-Bashforth, unequal steps), DEIS in log rho.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import ProgramError
from .grid import Grid, program_on_grid
from .program import Program

NODES, WEIGHTS = np.polynomial.legendre.leggauss(24)  # exact for LMS; DEIS's integrand is an entire function


def lms(grid: Grid, *, order: int = 4, prediction: str = "epsilon", init_scale: float = 1.0) -> Program:
    """Linear multistep, order 1 to 4 (k-diffusion `sample_lms`). Slots: x and order - 1 earlier epsilons."""
    if order not in (1, 2, 3, 4):
        raise ProgramError(f"order {order} is not 1, 2, 3 or 4")
    orders = np.minimum(order, np.arange(grid.steps) + 1)
    return _adams(f"lms{order}", grid, order, orders, _lms_weights, prediction, init_scale)


def deis(grid: Grid, *, order: int = 2, lower_order_final: bool = True, prediction: str = "epsilon") -> Program:
    """DEIS of order 1 to 3 (Zhang & Chen 2023, section 3), polynomials in log rho (diffusers' "logrho").

    lower_order_final: under 15 steps, the last step has order 1 and the one before at most 2 (diffusers); the last has
    order 1 anyway when the grid ends at sigma 0. Slots: x and order - 1 earlier epsilons.
    """
    if order not in (1, 2, 3):
        raise ProgramError(f"order {order} is not 1, 2 or 3")
    orders = np.minimum(order, np.arange(grid.steps) + 1)
    if lower_order_final and grid.steps < 15:
        orders = np.minimum(orders, grid.steps - np.arange(grid.steps))
    if grid.sigma[-1] == 0:
        orders[-1] = 1
    return _adams(f"deis{order}", grid, order, orders, _deis_weights, prediction, 1.0)


def _adams(
    name: str,
    grid: Grid,
    slots: int,
    orders: np.ndarray,
    weights: Callable[[np.ndarray, float], np.ndarray],
    prediction: str,
    init_scale: float,
) -> Program:
    if np.any(grid.alpha == 0):
        raise ProgramError(f"{name} needs some data at every step: use positive_snr(schedule)")
    rho, mix = grid.ratio, np.zeros((grid.steps, slots, slots + 2))
    for i, order in enumerate(orders):
        x, *past, x0, _ = np.eye(slots + 2)
        epsilon = (x - grid.alpha[i] * x0) / grid.sigma[i]
        if order == 1:  # without the cancellation of the general form near sigma 0
            ratio = grid.sigma[i + 1] / grid.sigma[i]
            x_next = ratio * x + (grid.alpha[i + 1] - grid.alpha[i] * ratio) * x0
        else:
            w = weights(rho[i - order + 1 : i + 1][::-1], rho[i + 1])
            change = sum(weight * slope for weight, slope in zip(w, [epsilon, *past], strict=False))
            x_next = grid.alpha[i + 1] * (x / grid.alpha[i] + change)
        mix[i] = [x_next, epsilon, *past][:slots]
    return program_on_grid(name, grid, prediction, mix, init_scale=init_scale)


def _lms_weights(rho: np.ndarray, end: float) -> np.ndarray:
    """Integrals over rho[0] .. end of the Lagrange polynomials through rho (latest first)."""
    points = rho[0] + (end - rho[0]) * (NODES + 1) / 2
    return _lagrange(rho, points) @ WEIGHTS * (end - rho[0]) / 2


def _deis_weights(rho: np.ndarray, end: float) -> np.ndarray:
    """The same with polynomials in log rho; d rho = rho d log rho."""
    start, stop = np.log(rho[0]), np.log(end)
    points = start + (stop - start) * (NODES + 1) / 2
    return _lagrange(np.log(rho), points) @ (WEIGHTS * np.exp(points)) * (stop - start) / 2


def _lagrange(nodes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """[len(nodes), len(points)]: the polynomial that is 1 at node j and 0 at the others."""
    values = np.ones((len(nodes), len(points)))
    for j, node in enumerate(nodes):
        for other in np.delete(nodes, j):
            values[j] *= (points - other) / (node - other)
    return values
