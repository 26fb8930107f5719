"""EDM's preconditioned networks (Karras et al. 2022, section 5 and algorithm 1), with sigma_data 1/2.

Their denoiser D(x; s) = c_skip x + c_out F(c_in x; c_noise) scales x = x0 + s eps by c_in = 1 / sqrt(1/4 + s^2). The
state of a program is what F sees: alpha = c_in, sigma = s c_in. c_skip and c_out are an `x0_from` (grid.py, "edm"),
c_noise = log(s) / 4 is the timestep, and the last point, where s is 0, has alpha 1: the result is x0 itself.
"""

from __future__ import annotations

import numpy as np

from ..errors import ProgramError
from .grid import Grid
from .process import EDM_SIGMAS
from .spacing import karras_sigmas

SIGMA_DATA = 0.5
MOST_STEPS = 1000


def edm_grid(steps: int) -> Grid:
    """Karras et al.'s points from 80 to 0.002 with rho 7, then 0: `edm_sampler`'s of NVlabs/edm."""
    if not 2 <= steps <= MOST_STEPS:
        raise ProgramError(f"steps {steps} is not between 2 and {MOST_STEPS}")
    largest, smallest = EDM_SIGMAS
    return edm_grid_from_sigmas(karras_sigmas(steps, smallest, largest))


def edm_grid_from_sigmas(sigma: np.ndarray) -> Grid:
    """EDM's sigmas [N], falling, then 0."""
    scale = 1 / np.sqrt(SIGMA_DATA**2 + sigma**2)
    return Grid(timestep=np.log(sigma) / 4, alpha=np.append(scale, 1.0), sigma=np.append(sigma * scale, 0.0))
