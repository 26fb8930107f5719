"""Noise schedules and their respacing, in float64 (facebookresearch/DiT `diffusion/`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import ProgramError

TRAINING_STEPS = 1000


@dataclass(frozen=True)
class Schedule:
    """The forward process a model was trained with: q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I)."""

    alphas_cumprod: np.ndarray  # [T] float64, abar_t

    @property
    def steps(self) -> int:
        """T: the number of timesteps the model was trained with."""
        return len(self.alphas_cumprod)


def linear_schedule(beta_start: float = 1e-4, beta_end: float = 0.02, steps: int = TRAINING_STEPS) -> Schedule:
    """DDPM's schedule (Ho et al. 2020, section 4): betas equally spaced from `beta_start` to `beta_end`."""
    return Schedule(np.cumprod(1.0 - np.linspace(beta_start, beta_end, steps, dtype=np.float64)))


def respaced_timesteps(respacing: str, steps: int = TRAINING_STEPS) -> np.ndarray:
    """The timesteps a respacing keeps, in sampling order (falling), int64.

    respacing: "N" (N steps, ends included), "a,b,c" (equal sections of the schedule with a, b and c steps; the first
    section is the least noisy), or "ddimN" (the DDIM paper's stride; N must be reachable by an integer stride).
    Follows `space_timesteps` in facebookresearch/DiT `diffusion/respace.py`, rounding half to even included.
    Raises ProgramError naming the value.
    """
    if respacing.startswith("ddim"):
        return _ddim_timesteps(_positive(respacing[4:], respacing), steps)[::-1].copy()
    counts = [_positive(part, respacing) for part in respacing.split(",")]
    size, extra = divmod(steps, len(counts))
    kept: list[int] = []
    start = 0
    for section, count in enumerate(counts):
        length = size + (1 if section < extra else 0)
        if count > length:
            raise ProgramError(f"respacing '{respacing}' asks for {count} steps of a section that has {length}")
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        position = 0.0
        for _ in range(count):
            kept.append(start + round(position))
            position += stride
        start += length
    return np.array(sorted(set(kept), reverse=True), dtype=np.int64)


def _ddim_timesteps(count: int, steps: int) -> np.ndarray:
    for stride in range(1, steps):
        if len(range(0, steps, stride)) == count:
            return np.arange(0, steps, stride, dtype=np.int64)
    raise ProgramError(f"respacing 'ddim{count}': no integer stride takes {count} of {steps} steps; use '{count}'")


def _positive(text: str, respacing: str) -> int:
    if not (text.isascii() and text.strip().isdigit() and int(text) > 0):
        raise ProgramError(f"respacing '{respacing}' is not 'N', 'a,b,c' or 'ddimN' with numbers of at least 1")
    return int(text)
