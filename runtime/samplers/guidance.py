"""Guidance only where it helps (Kynkaanniemi et al. 2024, "Applying Guidance in a Limited Interval"), or more and more
towards the data (Gao et al. 2023, MDT).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..errors import ProgramError
from .grid import sigmas_at
from .levels import levels_of_process
from .program import Program
from .schedule import Schedule


def with_guidance_interval(program: Program, low: float, high: float, sigmas: np.ndarray) -> Program:
    """Guides a step only while low < sigma <= high; the others run one evaluation instead of two.

    sigmas [N]: sqrt((1 - abar) / abar) of each step, see `step_sigmas`. DiT-XL/2-512: (0.34, 1.02].
    """
    if not (np.isfinite(low) and 0 <= low < high):
        raise ProgramError(f"guidance interval ({low:g}, {high:g}]: needs 0 <= low < high")
    if np.shape(sigmas) != (program.steps,):
        raise ProgramError(f"{np.size(sigmas)} sigmas for {program.steps} steps")
    inside = (sigmas > low) & (sigmas <= high)
    if not inside.any():
        raise ProgramError(
            f"guidance interval ({low:g}, {high:g}] holds none of this program's sigmas, "
            f"which go from {sigmas.max():.4g} to {sigmas.min():.4g}"
        )
    made = program.made | {"guidance_interval": [low, high]}
    return replace(program, guidance=np.where(inside, program.guidance, 0.0), made=made)


def step_sigmas(schedule: Schedule, program: Program) -> np.ndarray:
    """sigma = sqrt((1 - abar) / abar) of each step, from the timestep its network is told. [N]"""
    return sigmas_at(schedule, program.timestep)


def sigmas_without_betas(program: Program) -> np.ndarray:
    """sigma of each step [N] from what its network is told: the share of noise of a flow, or EDM's sigma."""
    if program.process is None:
        raise ProgramError(f"program '{program.name}' does not say what it was made for, so its noise is not known")
    alpha, sigma = levels_of_process(program.timestep, program.process).T
    return sigma / alpha if program.process.prediction == "edm" else sigma


def with_guidance_power(program: Program, power: float, schedule: Schedule | None) -> Program:
    """MDT's power-cosine: timestep t of T gets the part (1 - cos(pi (1 - t / T)^power)) / 2 of the guidance."""
    if schedule is None:
        raise ProgramError("guidance_power is for diffusion models with betas")
    if not (np.isfinite(power) and power > 0):
        raise ProgramError(f"guidance_power {power:g} must be above 0")
    done = (1 - program.timestep / schedule.steps) ** power
    return replace(program, guidance=program.guidance * (1 - np.cos(np.pi * done)) / 2)


def guidance_interval_from_text(text: str, schedule: Schedule | None) -> tuple[float, float]:
    """LO,HI (sigma = sqrt((1 - abar) / abar); of a flow the share of noise) or tLO,tHI (timesteps, both included) ->
    (low, high] in sigma.
    """
    parts = [part.strip() for part in text.split(",")]
    timesteps = all(part.startswith("t") for part in parts)
    try:
        low, high = (float(part.removeprefix("t") if timesteps else part) for part in parts)
    except ValueError:
        raise ProgramError(f"guidance interval '{text}' is not 'LO,HI' in sigma or 'tLO,tHI' in timesteps") from None
    if not timesteps:
        return low, high
    if schedule is None:
        raise ProgramError(f"guidance interval '{text}': this model has no timesteps of training, give LO,HI in sigma")
    if not 0 <= low <= high <= schedule.steps - 1:
        raise ProgramError(f"guidance interval '{text}': timesteps go from t0 to t{schedule.steps - 1}")
    below = float(sigmas_at(schedule, np.array([low - 0.5]))[0]) if low >= 0.5 else 0.0
    return below, float(sigmas_at(schedule, np.array([high]))[0])
