"""From the settings of a command line to a program: which points, which sampler, where to guide."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..errors import ProgramError
from ..programs import Program
from ..schedule import Schedule, respaced_timesteps
from . import SAMPLERS
from .grid import Grid, grid_from_sigmas, grid_from_timesteps, sigmas_at, timesteps_at
from .guidance import step_sigmas, with_guidance_interval
from .spacing import exponential_sigmas, karras_sigmas, spaced_timesteps

SIGMAS = {"karras": karras_sigmas, "exponential": exponential_sigmas}
REFERENCE = ("ddpm", "ddim")  # spaced as facebookresearch/DiT does, unless told otherwise; the others as their papers
OPTIONS = {  # which sampler takes which option
    "eta": ("ddim",),
    "variance": ("ddpm",),
    "order": ("dpm++", "sde-dpm++", "unipc", "deis", "lms"),
}


@dataclass(frozen=True)
class SamplerSettings:
    """What a user may decide about a program; None means the sampler's own default."""

    sampler: str
    steps: int | None = None  # points at which the network is evaluated (Heun evaluates it twice at all but one)
    respacing: str | None = None  # "N", "a,b,c" or "ddimN" instead of steps
    spacing: str | None = None  # "linspace", "leading" or "trailing" timesteps
    sigmas: str | None = None  # "karras" or "exponential" spacing of sigma instead of timesteps
    order: int | None = None
    eta: float | None = None
    variance: str | None = None
    clip_x0: bool = False  # clamp the x0 estimate to [-1, 1]
    guidance_interval: tuple[float, float] | None = None  # guide only while low < sigma <= high


def make_program(
    schedule: Schedule, settings: SamplerSettings, *, learned_variance: bool, prediction: str = "epsilon"
) -> Program:
    """A program from settings, on a model's schedule. Raises ProgramError naming the setting that does not fit."""
    name = settings.sampler
    if name not in SAMPLERS or name.startswith("flow"):
        choices = [known for known in SAMPLERS if not known.startswith("flow")]
        raise ProgramError(f"sampler '{name}' is not one of {', '.join(choices)}")
    options = {key: value for key in OPTIONS if (value := getattr(settings, key)) is not None}
    for key in options:
        if name not in OPTIONS[key]:
            raise ProgramError(f"{key} is a setting of {', '.join(OPTIONS[key])}; {name} has none")
    if options.get("variance") == "learned" and not learned_variance:
        raise ProgramError("variance 'learned': this model did not learn one; use fixed-small or fixed-large")
    if name == "ddpm":
        options.setdefault("variance", "learned" if learned_variance else "fixed-large")
    program = SAMPLERS[name](_grid(schedule, settings), prediction=prediction, **options)
    made = {key: value for key, value in asdict(settings).items() if value is not None} | options
    program = replace(program, name=_name(settings), made=made | {"prediction": prediction})
    if settings.clip_x0:
        program = replace(program, x0_bound=1.0)
    if settings.guidance_interval is not None:
        low, high = settings.guidance_interval
        program = with_guidance_interval(program, low, high, step_sigmas(schedule, program))
    return program


def settings_from_made(made: dict[str, Any]) -> SamplerSettings:
    """The settings that a program was made from. Raises ProgramError when they are not such settings."""
    try:
        settings = SamplerSettings(**{key: value for key, value in made.items() if key != "prediction"})
    except TypeError:
        raise ProgramError("this program was not made from sampler settings, so it cannot be made again") from None
    interval = settings.guidance_interval
    return replace(settings, guidance_interval=(interval[0], interval[1]) if interval else None)


def guidance_interval_from_text(text: str, schedule: Schedule) -> tuple[float, float]:
    """LO,HI (sigma = sqrt((1 - abar) / abar)) or tLO,tHI (timesteps, both included) -> (low, high] in sigma."""
    parts = [part.strip() for part in text.split(",")]
    timesteps = all(part.startswith("t") for part in parts)
    try:
        low, high = (float(part.removeprefix("t") if timesteps else part) for part in parts)
    except ValueError:
        raise ProgramError(f"guidance interval '{text}' is not 'LO,HI' in sigma or 'tLO,tHI' in timesteps") from None
    if not timesteps:
        return low, high
    if not 0 <= low <= high <= schedule.steps - 1:
        raise ProgramError(f"guidance interval '{text}': timesteps go from t0 to t{schedule.steps - 1}")
    below = float(sigmas_at(schedule, np.array([low - 0.5]))[0]) if low >= 0.5 else 0.0
    return below, float(sigmas_at(schedule, np.array([high]))[0])


def _grid(schedule: Schedule, settings: SamplerSettings) -> Grid:
    """The points a sampler visits."""
    given = [key for key in ("respacing", "spacing", "sigmas") if getattr(settings, key) is not None]
    if len(given) > 1:
        raise ProgramError(f"{' and '.join(given)} both say where the steps lie: give one of them")
    if (settings.steps is None) == (settings.respacing is None):
        raise ProgramError("steps and respacing both say how many steps to take: give one of them")
    if settings.respacing is not None:
        return grid_from_timesteps(schedule, respaced_timesteps(settings.respacing, schedule.steps))
    steps = settings.steps
    if steps is None or not 1 <= steps <= schedule.steps:
        raise ProgramError(f"steps {steps} is not between 1 and {schedule.steps}")
    if settings.sigmas is not None:
        if settings.sigmas not in SIGMAS:
            raise ProgramError(f"sigmas '{settings.sigmas}' is not one of {', '.join(SIGMAS)}")
        smallest, largest = sigmas_at(schedule, np.array([0, schedule.steps - 1]))
        sigmas = SIGMAS[settings.sigmas](steps, smallest, largest)
        return grid_from_sigmas(schedule, sigmas, timesteps_at(schedule, sigmas))
    if settings.spacing is None and settings.sampler in REFERENCE:
        return grid_from_timesteps(schedule, respaced_timesteps(str(steps), schedule.steps))
    if settings.spacing is None and steps < schedule.steps:  # linspace without its last point, as diffusers' solvers
        return grid_from_timesteps(schedule, spaced_timesteps("linspace", steps, schedule.steps, skip_last=True))
    return grid_from_timesteps(schedule, spaced_timesteps(settings.spacing or "linspace", steps, schedule.steps))


def _name(settings: SamplerSettings) -> str:
    """For people: sampler, order, steps and how they are spaced."""
    count = settings.steps if settings.steps is not None else str(settings.respacing).removeprefix("ddim")
    parts = [settings.sampler + (str(settings.order) if settings.order else ""), str(count)]
    return "-".join(parts + [part for part in (settings.spacing, settings.sigmas) if part])
