"""How much data and noise a program's slot 0 holds before each of its steps, and after the last."""

from __future__ import annotations

import numpy as np

from ..errors import ProgramError
from .edm import SIGMA_DATA
from .process import LEAST, ProcessInfo
from .program import Program
from .schedule import schedule_from_info


def levels_of_program(program: Program) -> np.ndarray:
    """(alpha, sigma) of slot 0, [N + 1, 2] float64: before step i, and last what is left in the end, (1, 0).

    Read off how the program itself understands the network's answer. Raises ProgramError where nothing says what the
    network predicts.
    """
    if program.process is None:
        raise ProgramError(f"program '{program.name}' does not say what it was made for, so its noise is not known")
    prediction, (a, b) = program.process.prediction, program.x0_from.T
    if prediction == "epsilon":  # x0 = (x - sigma eps) / alpha
        before = np.stack([1 / a, -b / a], axis=1)
    elif prediction == "v":  # x0 = (alpha x - sigma v) / (alpha^2 + sigma^2)
        before = np.stack([a, -b], axis=1) / (a**2 + b**2)[:, None]
    elif prediction in ("flow", "flow-to-data", "mean-flow"):  # x0 = x -+ sigma v
        before = np.stack([1 - np.abs(b), np.abs(b)], axis=1)
    else:
        before = levels_of_process(program.timestep, program.process)
    return np.append(before, [[1.0, 0.0]], axis=0)


def levels_of_process(timestep: np.ndarray, process: ProcessInfo) -> np.ndarray:
    """(alpha, sigma) that a network trained on this process understands by timesteps [N]. [N, 2] float64

    Between two timesteps of training the logarithm of the SNR is interpolated, as Karras's and diffusers' sigmas are.
    """
    if process.prediction == "edm":  # edm.py
        ratio = np.exp(4 * timestep)
        return np.stack([np.ones_like(ratio), ratio], axis=1) / np.hypot(SIGMA_DATA, ratio)[:, None]
    if process.schedule is None:
        noise, data = process.timestep_range
        share = (timestep - data) / (noise - data)
        return np.stack([1 - share, share], axis=1)
    abar = np.clip(schedule_from_info(process.schedule).alphas_cumprod, LEAST, 1 - LEAST)
    log_snr = np.interp(timestep, np.arange(len(abar)), np.log(abar / (1 - abar)))
    alpha = np.sqrt(1 / (1 + np.exp(-log_snr)))
    return np.stack([alpha, np.sqrt(1 - alpha**2)], axis=1)
