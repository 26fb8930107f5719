"""Noise schedules and the points a sampler visits: betas, timestep spacings, sigma spacings. numpy float64."""

from __future__ import annotations

import math

import numpy as np

from ..errors import ProgramError
from ..schedule import TRAINING_STEPS, Schedule

SPACINGS = ("linspace", "leading", "trailing")


def linear_betas(start: float = 1e-4, end: float = 0.02, steps: int = TRAINING_STEPS) -> np.ndarray:
    """Ho et al. 2020, section 4."""
    return np.linspace(start, end, steps)


def scaled_linear_betas(start: float = 0.00085, end: float = 0.012, steps: int = TRAINING_STEPS) -> np.ndarray:
    """Linear in sqrt(beta): latent diffusion (Rombach et al. 2022; diffusers)."""
    return np.linspace(math.sqrt(start), math.sqrt(end), steps) ** 2


def cosine_betas(steps: int = TRAINING_STEPS, largest: float = 0.999) -> np.ndarray:
    """Nichol & Dhariwal 2021, eq. 17, s = 0.008 (diffusers' squaredcos_cap_v2)."""
    abar = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - abar[1:] / abar[:-1], largest)


BETAS = {"linear": linear_betas, "scaled_linear": scaled_linear_betas, "squaredcos_cap_v2": cosine_betas}


def schedule_from_betas(betas: np.ndarray) -> Schedule:
    """A schedule from any betas [T], each in (0, 1). Raises ProgramError naming the first that is not."""
    betas = np.asarray(betas, dtype=np.float64)
    if betas.ndim != 1 or betas.size == 0:
        raise ProgramError("betas must be a list of at least one number")
    wrong = np.flatnonzero(~((betas > 0) & (betas < 1)))
    if wrong.size:
        raise ProgramError(f"beta {wrong[0]} is {betas[wrong[0]]:g}, not between 0 and 1")
    return Schedule(np.cumprod(1 - betas))


def zero_terminal_snr(schedule: Schedule, last: float = 2.0**-24) -> Schedule:
    """Lin et al. 2024, algorithm 1: shifts and scales sqrt(abar) so that the last timestep is pure noise.

    last: abar there. Solvers in log SNR need it above 0 (diffusers uses 2^-24); DDIM with v prediction accepts 0.
    """
    root = np.sqrt(schedule.alphas_cumprod)
    abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return Schedule(np.append(abar[:-1], last))


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
