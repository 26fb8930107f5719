"""The points a sampler visits: spacings of timesteps and of sigma, numpy float64."""

from __future__ import annotations

import math

import numpy as np

from ..errors import ProgramError
from .schedule import TRAINING_STEPS

SPACINGS = ("linspace", "leading", "trailing")
OPTIMISED = "optimised"  # optimised.py: depends on the solver, too


def spaced_timesteps(
    spacing: str,
    steps: int,
    trained: int = TRAINING_STEPS,
    *,
    offset: int = 0,
    skip_last: bool = False,
    rounded: bool = True,
) -> np.ndarray:
    """`steps` of `trained` timesteps, falling, float64 (Lin et al. 2024, table 2).

    spacing: "linspace" (both ends), "leading" (multiples of trained // steps, plus `offset`) or "trailing" (starts at
    trained - 1). skip_last: one more point is laid out and the least noisy one dropped, as diffusers does for
    DPM-Solver, UniPC and DEIS. rounded: to whole timesteps; diffusers' sigma samplers (Euler, Heun, LMS) keep the
    fractions of linspace.
    """
    timesteps: np.ndarray
    if spacing not in SPACINGS:
        raise ProgramError(f"spacing '{spacing}' is not one of {', '.join(SPACINGS)}")
    if not 1 <= steps <= trained:
        raise ProgramError(f"{steps} steps: the schedule has 1 to {trained}")
    points = steps + 1 if skip_last else steps
    if spacing == "linspace":
        timesteps = np.linspace(0, trained - 1, points)
    elif spacing == "leading":
        timesteps = np.arange(points) * float(trained // points)
    else:
        points = steps
        timesteps = np.arange(trained, 0, -trained / steps)[:steps][::-1].round() - 1
    timesteps = timesteps[::-1][:steps]
    timesteps = timesteps.round() if rounded else timesteps
    timesteps = timesteps + (offset if spacing == "leading" else 0)
    if timesteps[0] > trained - 1:
        raise ProgramError(f"offset {offset} moves the first timestep to {timesteps[0]:g}, beyond {trained - 1}")
    return timesteps


def karras_sigmas(steps: int, smallest: float, largest: float, rho: float = 7.0) -> np.ndarray:
    """Karras et al. 2022, eq. 5 without its final 0: ratios sigma / alpha, falling [steps]."""
    ramp = np.linspace(0, 1, steps)
    return (largest ** (1 / rho) + ramp * (smallest ** (1 / rho) - largest ** (1 / rho))) ** rho


def exponential_sigmas(steps: int, smallest: float, largest: float) -> np.ndarray:
    """Equal steps of log SNR (DPM-Solver, Lu et al. 2022): ratios sigma / alpha, falling [steps]."""
    return np.exp(np.linspace(math.log(largest), math.log(smallest), steps))
