"""DPM-Solver++ and its stochastic form (Lu et al. 2022, "DPM-Solver++: Fast Solver for Guided Sampling")."""

from __future__ import annotations

import math

import numpy as np

from ..errors import ProgramError
from .grid import Grid, phi, program_on_grid
from .program import Program

FEW_STEPS = 15  # lower_order_final acts below this many steps (Lu et al.'s code and diffusers)


def dpm_solver(
    grid: Grid,
    *,
    order: int = 2,
    variant: str = "midpoint",
    stochastic: bool = False,
    lower_order_final: bool = True,
    euler_at_final: bool = False,
    prediction: str = "epsilon",
) -> Program:
    """Multistep DPM-Solver++ of order 1, 2 (algorithm 2) or 3, or SDE-DPM-Solver++ of these orders.

    Order 3 is as diffusers has it: its last term has half the weight that the expansion gives it, so it converges with
    order 2. The SDE's order 3 is the same formula with 2 h; diffusers' has a sign that keeps it from converging.

    variant: how order 2 weighs its difference: "midpoint" or "heun". lower_order_final: under 15 steps, the last step
    has order 1 and the one before at most 2. euler_at_final: order 1 at the last step whatever their number; always so
    when the grid ends at sigma 0. Slots: x and order - 1 earlier x0.
    """
    if order not in (1, 2, 3):
        raise ProgramError(f"order {order} is not 1, 2 or 3")
    if variant not in ("midpoint", "heun"):
        raise ProgramError(f"variant '{variant}' is not midpoint or heun")
    short = lower_order_final and grid.steps < FEW_STEPS
    h, mix = grid.log_snr_steps, np.zeros((grid.steps, order, order + 2))
    for i in range(grid.steps):
        x, *past, x0, noise = np.eye(order + 2)
        to_go = grid.steps - i
        first = to_go == 1 and (short or euler_at_final or grid.sigma[-1] == 0)
        now = 1 if first else min(order, i + 1, 2 if to_go == 2 and short else order)
        step, alpha, sigma = (2 if stochastic else 1) * h[i], grid.alpha[i + 1], grid.sigma[i + 1]
        x_next = sigma / grid.sigma[i] * (math.exp(-h[i]) if stochastic else 1.0) * x
        x_next = x_next + alpha * _integral(step, h[i], h[max(0, i - 2) : i][::-1], [x0, *past], now, variant)
        if stochastic:
            x_next = x_next + sigma * math.sqrt(-math.expm1(-step)) * noise
        mix[i] = [x_next, x0, *past][:order]
    name = f"{'sde-' if stochastic else ''}dpm++{order}" + ("-heun" if variant == "heun" else "")
    return program_on_grid(name, grid, prediction, mix)


def _integral(step: float, h: float, earlier: np.ndarray, x0: list[np.ndarray], order: int, variant: str) -> np.ndarray:
    """The weighted integral of x0 over one step (proposition 4.1), x0 as its Taylor polynomial of this order.

    step: h, or 2 h for the SDE. earlier: the steps before, latest first. x0: this estimate and those before it.
    """
    total = -math.expm1(-step) * x0[0]
    if order == 1:
        return total
    slope = (x0[0] - x0[1]) * (h / earlier[0])  # h times the derivative along lambda
    if order == 2:
        return total + (step * phi(2, -step) if variant == "heun" else -math.expm1(-step) / 2) * slope
    r0, r1 = earlier[0] / h, earlier[1] / h
    slope_before = (x0[1] - x0[2]) / r1
    curve = (slope - slope_before) / (r0 + r1)
    return total + step * phi(2, -step) * (slope + r0 * curve) + step * phi(3, -step) * curve
