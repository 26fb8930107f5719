"""Does a program land on the noise levels that its network is told? Tried on a denoiser that is never wrong.

A probed program does what its scheduler does, faults included. If the data is one known image, the exact estimate of x0
is that image whatever the network sees, and whatever the step's length: so a sampler without fault, of any order, takes
alpha image + sigma noise to the next level's alpha and sigma exactly. (Data of a width, such as N(0, c^2), would show
the error of long steps as well, which is no fault.) What is off here shows a network that is told one noise level and
given another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...runtime.samplers.levels import levels_of_process
from ...runtime.samplers.process import LEAST
from ...runtime.samplers.program import Program

WARN_ABOVE = 0.01  # of a level's own size: rounding timesteps to integers stays below half of it


@dataclass(frozen=True)
class Landing:
    """Where a program is farthest from the noise level that its network is told."""

    error: float  # distance in (alpha, sigma), relative to the level's own size
    evaluation: int  # counted from 0
    told: tuple[float, float]  # alpha, sigma
    actual: tuple[float, float]


def worst_landing(program: Program) -> Landing | None:
    """The worst of all evaluations after the first, float64; None where nothing says what noise a timestep means.

    Noise of the larger of DDPM's two variances ("fixed_large") is exact for data of unit variance and too much for one
    image: there only alpha is compared.
    """
    if program.process is None:
        return None
    told, seen = levels_of_process(program.timestep, program.process), np.empty((program.steps, 2))
    state = np.zeros((program.slots, 2 + program.steps))  # in units of: the image, the first noise, each step's noise
    state[0, :2] = told[0]
    for i in range(program.steps):
        seen[i] = state[0, 0], np.linalg.norm(state[0, 1:])
        image, noise = np.zeros((2, state.shape[1]))
        image[0], noise[2 + i] = 1.0, np.exp(program.log_sigma[i] @ [1.0, -1.0])  # v = -1: an image that is known
        state = program.mix[i] @ np.stack([*state, image, noise])
    difference = seen - told
    if str(program.made.get("scheduler", {}).get("variance_type")).startswith("fixed_large"):
        difference[:, 1] = 0.0
    error = np.linalg.norm(difference, axis=1) / np.linalg.norm(told, axis=1)
    worst = int(np.argmax(error))
    return Landing(float(error[worst]), worst, tuple(told[worst].tolist()), tuple(seen[worst].tolist()))


def warning_of(program: Program) -> str | None:
    """One sentence where an exact denoiser would be off its noise levels by more than a percent, or cannot be tried."""
    found = worst_landing(program)
    if found is None:
        return f"{program.name} was not tried on an exact denoiser: what noise its timesteps mean is not known"
    if found.error <= WARN_ABOVE:
        return None
    ratio = (found.actual[1] / max(found.actual[0], LEAST)) / (found.told[1] / max(found.told[0], LEAST))
    return (
        f"{program.name} repeats a fault of its scheduler: even an exact denoiser leaves the noise levels that it is "
        f"told, by up to {100 * found.error:.1f} % (evaluation {found.evaluation + 1} of {program.steps}, timestep "
        f"{program.timestep[found.evaluation]:g}: the noise is {ratio:.2f} times what it says)"
    )
