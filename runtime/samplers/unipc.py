"""UniPC (Zhao et al. 2023, "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models")."""

from __future__ import annotations

import math

import numpy as np

from ..errors import ProgramError
from .grid import Grid, phi, program_on_grid
from .program import Program


def unipc(
    grid: Grid, *, order: int = 2, variant: str = "bh2", lower_order_final: bool = True, prediction: str = "epsilon"
) -> Program:
    """UniP and UniC of order 1, 2 or 3 in x0 form (algorithms 1 and 2, data prediction); variant: B(h), section 3.

    The corrector of a point needs the network's value there, so it costs no evaluation: it acts one step late. Slot 0
    is the predicted x that the network sees, slot 1 the part of the corrected x that is known before the network has
    seen it, and the others are order - 1 earlier x0.
    """
    if order not in (1, 2, 3):
        raise ProgramError(f"order {order} is not 1, 2 or 3")
    if variant not in ("bh1", "bh2"):
        raise ProgramError(f"variant '{variant}' is not bh1 or bh2")
    if not lower_order_final and order > 1 and grid.sigma[-1] == 0:
        raise ProgramError("UniPC needs lower_order_final when it ends at sigma 0: its last log SNR step is infinite")
    if np.any(grid.alpha == 0):
        raise ProgramError("UniPC needs some data at every step: use positive_snr(schedule)")
    h, slots = grid.log_snr_steps, order + 1
    mix, correction = np.zeros((grid.steps, slots, slots + 2)), 0.0
    for i in range(grid.steps):
        x, known, *past, x0, _ = np.eye(slots + 2)
        if i > 0:
            x = known + correction * x0
        now = min(order, i + 1, grid.steps - i if lower_order_final else order)
        weights = _Weights(h[i], h[max(0, i - 2) : i][::-1], now, variant)
        base = grid.sigma[i + 1] / grid.sigma[i] * x - grid.alpha[i + 1] * math.expm1(-h[i]) * x0
        slopes = [(m - x0) / r for m, r in zip(past, weights.nodes, strict=False)]
        x_next, known_next, correction = base, base, 0.0
        if i + 1 < grid.steps or grid.sigma[-1] > 0:
            scale = -grid.alpha[i + 1] * weights.scale
            x_next = base + scale * sum(w * s for w, s in zip(weights.predict, slopes, strict=False))
            correction = scale * weights.correct[-1]
            known_next = base + scale * sum(w * s for w, s in zip(weights.correct[:-1], slopes, strict=False))
            known_next = known_next - correction * x0
        mix[i] = [x_next, known_next, x0, *past][:slots]
    return program_on_grid(f"unipc{order}-{variant}", grid, prediction, mix)


class _Weights:
    """Theorem 3.1: nodes r_m of earlier points, and the predictor's and corrector's weights for B(h) = scale."""

    def __init__(self, h: float, earlier: np.ndarray, order: int, variant: str) -> None:
        self.nodes = [-math.fsum(earlier[: m + 1]) / h for m in range(order - 1)]
        self.predict: np.ndarray = np.zeros(0)
        self.correct: np.ndarray = np.full(1, 0.5)  # order 1 is the trapezoid (a_1 = 1/2)
        if math.isinf(h):
            return
        self.scale = -h if variant == "bh1" else math.expm1(-h)
        if order == 1:
            return
        nodes = np.array([*self.nodes, 1.0])
        powers = nodes ** np.arange(order)[:, None]
        targets = np.array([math.factorial(k) * -h * phi(k + 1, -h) / self.scale for k in range(1, order + 1)])
        self.correct = np.linalg.solve(powers, targets)
        self.predict = np.full(1, 0.5) if order == 2 else np.linalg.solve(powers[:-1, :-1], targets[:-1])
