"""Noise schedules (betas of training) and their respacing, in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from ..errors import ProgramError
from ..fields import Strict

TRAINING_STEPS = 1000
MAX_STEPS = 100_000

Beta = Annotated[float, Field(gt=0, lt=1)]


class ScheduleInfo(Strict):
    """The betas a diffusion model was trained with, over `steps` timesteps.

    linear: equal steps of beta, scaled_linear: of sqrt(beta), both from beta_start to beta_end; cosine: Nichol &
    Dhariwal 2021, eq. 17, at most 0.999; given: `betas`. zero_terminal_snr: rescaled by Lin et al. 2024, algorithm 1.
    """

    kind: Literal["linear", "scaled_linear", "cosine", "given"]
    beta_start: Beta | None = None
    beta_end: Beta | None = None
    betas: Annotated[list[Beta], Field(max_length=MAX_STEPS)] | None = None
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)]
    zero_terminal_snr: bool = False

    @model_validator(mode="after")
    def _check(self) -> ScheduleInfo:
        has_ends = (self.beta_start is not None, self.beta_end is not None)
        if has_ends != (self.kind in ("linear", "scaled_linear"),) * 2:
            raise ValueError("beta_start and beta_end belong to linear and scaled_linear betas, and only to them")
        if (self.betas is not None) != (self.kind == "given"):
            raise ValueError("betas are listed for kind 'given', and only for it")
        if self.betas is not None and len(self.betas) != self.steps:
            raise ValueError(f"{len(self.betas)} betas for {self.steps} steps")
        return self


@dataclass(frozen=True)
class Schedule:
    """The forward process a model was trained with: q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I)."""

    alphas_cumprod: np.ndarray  # [T] float64, abar_t
    info: ScheduleInfo | None = None  # how a manifest says it; None: nobody said

    @property
    def steps(self) -> int:
        """T: the number of timesteps the model was trained with."""
        return len(self.alphas_cumprod)


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


def schedule_from_betas(betas: np.ndarray) -> Schedule:
    """A schedule from any betas [T], each in (0, 1). Raises ProgramError naming the first that is not."""
    betas = np.asarray(betas, dtype=np.float64)
    if betas.ndim != 1 or betas.size == 0:
        raise ProgramError("betas must be a list of at least one number")
    wrong = np.flatnonzero(~((betas > 0) & (betas < 1)))
    if wrong.size:
        raise ProgramError(f"beta {wrong[0]} is {betas[wrong[0]]:g}, not between 0 and 1")
    return Schedule(np.cumprod(1 - betas))


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """Lin et al. 2024, algorithm 1: shifts and scales sqrt(abar) so that the last timestep is pure noise, abar 0."""
    root = np.sqrt(schedule.alphas_cumprod)
    return Schedule(((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2)


def positive_snr(schedule: Schedule) -> Schedule:
    """The schedule with its last abar above 0, as solvers in log SNR need it: 2^-24 there, as in diffusers."""
    abar = schedule.alphas_cumprod
    return replace(schedule, alphas_cumprod=np.append(abar[:-1], max(abar[-1], 2.0**-24)))


def linear_schedule(beta_start: float = 1e-4, beta_end: float = 0.02, steps: int = TRAINING_STEPS) -> Schedule:
    """The schedule of DDPM and of facebookresearch/DiT."""
    return schedule_from_info(ScheduleInfo(kind="linear", beta_start=beta_start, beta_end=beta_end, steps=steps))


def schedule_from_info(info: ScheduleInfo) -> Schedule:
    """The schedule that a manifest describes. With zero terminal SNR its last abar is 0: see `positive_snr`."""
    if info.kind == "given":
        schedule = schedule_from_betas(np.array(info.betas))
    elif info.kind == "cosine":
        schedule = schedule_from_betas(cosine_betas(info.steps))
    else:
        assert info.beta_start is not None and info.beta_end is not None  # ScheduleInfo checks it
        betas = {"linear": linear_betas, "scaled_linear": scaled_linear_betas}[info.kind]
        schedule = schedule_from_betas(betas(info.beta_start, info.beta_end, info.steps))
    return replace(zero_terminal_snr(schedule) if info.zero_terminal_snr else schedule, info=info)


def respaced_timesteps(respacing: str, steps: int = TRAINING_STEPS) -> np.ndarray:
    """The timesteps a respacing keeps, in sampling order (falling), int64.

    respacing: "N" (N steps, ends included), "a,b,c" (equal sections of the schedule with a, b and c steps; the first
    section is the least noisy), or "ddimN" (the DDIM paper's stride; N must be reachable by an integer stride), or
    "ddimN+K", which is K timesteps later.
    Follows `space_timesteps` in facebookresearch/DiT `diffusion/respace.py`, rounding half to even included.
    Raises ProgramError naming the value.
    """
    if respacing.startswith("ddim"):
        strided, plus, offset = respacing[4:].partition("+")
        later = _positive(offset, respacing) if plus else 0
        timesteps = _ddim_timesteps(_positive(strided, respacing), steps)[::-1] + later
        if timesteps[0] >= steps:
            raise ProgramError(f"respacing '{respacing}' begins at {timesteps[0]}, beyond {steps - 1}")
        return timesteps
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
    if not (text.isascii() and text.strip().isdigit() and len(text) < 10 and int(text) > 0):
        raise ProgramError(
            f"respacing '{respacing}' is not 'N', 'a,b,c', 'ddimN' or 'ddimN+K' with numbers of at least 1"
        )
    return int(text)
