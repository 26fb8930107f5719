"""From the settings of a command line to a program: which points, which sampler, where to guide."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from ..errors import ProgramError
from ..options import option
from . import SAMPLERS
from .ancestral import VARIANCES
from .distilled import TCD_GAMMA, distilled_grid, scm_grid, tcd_stops
from .edm import edm_grid
from .flow import flow_grid_dpm
from .flow_settings import FlowInfo
from .grid import Grid, begun_within, grid_from_sigmas, grid_from_timesteps, sigmas_at, timesteps_at
from .guidance import sigmas_without_betas, step_sigmas, with_guidance_interval, with_guidance_power
from .optimised import optimised_flow_grid, optimised_timesteps
from .process import process_of_schedule, process_without_betas
from .program import Program
from .schedule import Schedule, positive_snr, respaced_timesteps
from .searched import flow_searched_grid, searched_grid
from .spacing import OPTIMISED, SPACINGS, exponential_sigmas, karras_sigmas, spaced_timesteps

SIGMAS = {"karras": karras_sigmas, "exponential": exponential_sigmas}
MOST_FLOW_STEPS = 1000
REFERENCE = ("ddpm", "ddim")  # spaced as facebookresearch/DiT does, unless told otherwise; the others as their papers
OPTIONS = {  # which sampler takes which option
    "eta": ("ddim", "tcd"),
    "variance": ("ddpm",),
    "order": ("dpm++", "sde-dpm++", "unipc", "deis", "lms", "flow-dpm++"),
}
IMPLIES = {"eta": "ddim", "variance": "ddpm"}  # the sampler that a setting means where none is named
OWN_TIMES = ("lcm", "tcd", "dmd", "searched")  # which visit the timesteps of a distillation, or of a search
OWN_FLOW_TIMES = ("flow-scm", "flow-searched")  # the same of flows: they take no shift
DIFFUSION_SPACING = ("respacing", "spacing", "sigmas")  # settings that speak of a schedule
WHOLE = ("searched", "flow-searched")  # whose steps were found together


@dataclass(frozen=True)
class SamplerSettings:
    """What a user may decide about a program; None means the sampler's own default, and of `sampler` the bundle's."""

    sampler: str | None = field(default=None, metadata=option("--sampler", help=f"{', '.join(SAMPLERS)}."))
    # Points at which the network is evaluated (Heun evaluates it twice at all but one).
    steps: int | None = field(
        default=None, metadata=option("--steps", help="Sampler steps, spaced evenly. [default: the bundle's]")
    )
    respacing: str | None = field(
        default=None,
        metadata=option("--respacing", help="Steps as N, a,b,c or ddimN[+K] (the sampler, too, unless one is given)."),
    )
    spacing: str | None = field(
        default=None, metadata=option("--spacing", help="Where the steps lie.", choices=(*SPACINGS, OPTIMISED))
    )
    sigmas: str | None = field(
        default=None, metadata=option("--sigmas", help="Space sigma instead of timesteps.", choices=(*SIGMAS,))
    )
    order: int | None = field(
        default=None, metadata=option("--order", help=f"Order of {', '.join(OPTIONS['order'])}.", range=(1, 4))
    )
    eta: float | None = field(
        default=None, metadata=option("--eta", help="DDIM's noise: 0 none (the default), 1 as DDPM; TCD's: 0.3.")
    )
    variance: str | None = field(
        default=None,
        metadata=option(
            "--variance", help="DDPM's variance. [default: learned, where the model did]", choices=VARIANCES
        ),
    )
    shift: float | None = field(
        default=None, metadata=option("--shift", help="Flow models: more steps at high noise; 1 is none.")
    )
    clip_x0: bool = field(default=False, metadata=option("--clip-x0", help="Clamp the x0 estimate to [-1, 1]."))
    guidance_power: float | None = field(
        default=None,
        metadata=option("--guidance-power", help="Guidance grows towards the data: power-cosine of this power (MDT)."),
    )
    guidance_interval: tuple[float, float] | None = None  # guide only while low < sigma <= high
    strength: float | None = field(
        default=None,
        metadata=option("--strength", help="With --image: the share of the steps that it takes, 1 all. [default: 0.8]"),
    )

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", strict=True)  # where they come from a file


_SETTINGS = TypeAdapter(SamplerSettings)


def make_program(
    schedule: Schedule | None,
    settings: SamplerSettings,
    *,
    learned_variance: bool,
    prediction: str = "epsilon",
    timestep_range: tuple[float, float] = (999.0, 0.0),
    flow: FlowInfo | None = None,
    tokens: int | None = None,
) -> Program:
    """A program from settings, on a model's schedule. Raises ProgramError naming the setting that does not fit.

    schedule: None for a flow model. timestep_range: what a flow's network is told of pure noise, and of data.
    flow: how its steps are spaced, None is evenly. tokens: of the picture, where they depend on its size.
    """
    name = str(settings.sampler)
    choices = samplers_for(prediction, betas=schedule is not None)
    if name not in choices:
        raise ProgramError(f"sampler '{name}' is not one of {', '.join(choices)}, which fit this model")
    options = _options_of(name, settings, learned_variance)
    shifts = settings.shift is None and settings.spacing is None and name not in OWN_FLOW_TIMES
    if schedule is None and flow is not None and shifts:
        settings = replace(settings, shift=flow.shift_of(tokens, settings.steps or 0))
    grid = _points(schedule, settings, prediction, timestep_range, flow or FlowInfo())
    process = (
        process_without_betas(prediction, timestep_range)
        if schedule is None
        else process_of_schedule(schedule, prediction)
    )
    told = {}
    if name == "tcd" and schedule is not None:
        told = {"stops": tcd_stops(schedule, grid.timestep, options.setdefault("eta", TCD_GAMMA))}
    program = SAMPLERS[name](grid, prediction=prediction, **(told or options))
    made = {key: value for key, value in (asdict(settings) | options).items() if value is not None}
    program = replace(program, name=_name(settings), made=made | {"prediction": prediction}, process=process)
    if settings.strength is not None:
        program = replace(program, init=(float(grid.alpha[0]), float(grid.sigma[0])))
    if settings.clip_x0:
        program = replace(program, x0_bound=1.0)
    if settings.guidance_power is not None:
        program = with_guidance_power(program, settings.guidance_power, schedule)
    if settings.guidance_interval is not None:
        sigmas = _sigmas(program, schedule)
        program = with_guidance_interval(program, *settings.guidance_interval, sigmas)
    return program


def _sigmas(program: Program, schedule: Schedule | None) -> np.ndarray:
    """Of each step [N], as a guidance interval has them."""
    if program.made["sampler"] == "flow-scm":
        raise ProgramError("guidance_interval is no setting of flow-scm, whose models have guidance inside")
    if schedule is None:
        return sigmas_without_betas(program)
    return step_sigmas(positive_snr(schedule), program)


def samplers_for(prediction: str, *, betas: bool) -> list[str]:
    """The samplers of models that predict this: EDM's, of a flow or its average (betas False), or with betas."""
    own = "any" if betas else {"edm": "edm", "mean-flow": "mean"}.get(prediction, "flow")
    kinds = {name: name.partition("-")[0] for name in SAMPLERS}
    return [name for name, kind in kinds.items() if (kind if kind in ("edm", "flow", "mean") else "any") == own]


def _points(
    schedule: Schedule | None,
    settings: SamplerSettings,
    prediction: str,
    timestep_range: tuple[float, float],
    flow: FlowInfo,
) -> Grid:
    """Where the sampler evaluates the network."""
    if schedule is not None:
        grid = _grid(schedule, settings)
    elif prediction == "edm":
        grid = _edm_grid(settings)
    else:
        grid = _flow_grid(str(settings.sampler), settings, timestep_range, flow)
    if settings.strength is None:
        return grid
    if settings.sampler in WHOLE:
        raise ProgramError(f"strength: {settings.sampler} takes all of its steps or none: they were searched together")
    return begun_within(grid, settings.strength)


def _options_of(name: str, settings: SamplerSettings, learned_variance: bool) -> dict[str, Any]:
    """What the sampler itself is told. Raises ProgramError."""
    options = {key: value for key in OPTIONS if (value := getattr(settings, key)) is not None}
    for key in options:
        if name not in OPTIONS[key]:
            raise ProgramError(f"{key} is a setting of {', '.join(OPTIONS[key])}; {name} has none")
    if options.get("variance") == "learned" and not learned_variance:
        raise ProgramError("variance 'learned': this model did not learn one; use fixed-small or fixed-large")
    if name == "ddpm":
        options.setdefault("variance", "learned" if learned_variance else "fixed-large")
    return options


def implied_sampler(given: Mapping[str, Any], default: str) -> str:
    """The sampler of settings that name none: eta means ddim and variance ddpm, unless the default takes them.

    So does respacing "ddimN": where facebookresearch/DiT's users write it, they mean the DDIM sampler with its steps.
    """
    for key in given:
        if key in IMPLIES and default not in OPTIONS[key]:
            return IMPLIES[key]
    return "ddim" if str(given.get("respacing", "")).startswith("ddim") else default


def settings_from_made(made: dict[str, Any]) -> SamplerSettings:
    """The settings that a program was made from. Raises ProgramError when they are not such settings."""
    problem = "this program was not made from sampler settings, so it cannot be made again"
    try:
        settings = _SETTINGS.validate_json(
            json.dumps({key: value for key, value in made.items() if key != "prediction"})
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:60] for part in first["loc"])
        raise ProgramError(f"{problem} ({where}: {first['msg']})") from None
    if settings.sampler is None:
        raise ProgramError(f"{problem} (it names no sampler)")
    return settings


def _flow_grid(name: str, settings: SamplerSettings, timestep_range: tuple[float, float], flow: FlowInfo) -> Grid:
    """The points a flow's sampler visits; the network's time runs over `timestep_range` from noise to data."""
    for key in DIFFUSION_SPACING:
        if getattr(settings, key) is not None and (key, settings.spacing) != ("spacing", OPTIMISED):
            raise ProgramError(f"{key} is for diffusion models; a flow takes steps and shift, or spacing {OPTIMISED}")
    if settings.steps is None or not 1 <= settings.steps <= MOST_FLOW_STEPS:
        raise ProgramError(f"steps {settings.steps} is not between 1 and {MOST_FLOW_STEPS}")
    noise, data = timestep_range
    placed = [key for key in ("shift", "spacing") if getattr(settings, key) is not None]
    if name in OWN_FLOW_TIMES and placed:
        raise ProgramError(f"{placed[0]} is no setting of {name}, whose times are its own")
    if len(placed) > 1:
        raise ProgramError("shift and spacing both say where the steps lie: give one of them")
    if name == "flow-scm":
        return _scm_grid(settings.steps, noise, data)
    if name == "flow-searched":
        return flow_searched_grid(settings.steps, timestep_scale=max(noise, data), data_at_one=data > noise)
    if settings.spacing is not None:
        return optimised_flow_grid(settings.steps, settings.order or 2, max(noise, data), data > noise)
    shift = 1.0 if settings.shift is None else settings.shift
    if name == "flow-dpm++":
        return flow_grid_dpm(settings.steps, shift=shift, timestep_scale=max(noise, data), data_at_one=data > noise)
    return flow.grid(settings.steps, shift, max(noise, data), data > noise)


def _edm_grid(settings: SamplerSettings) -> Grid:
    for key in (*DIFFUSION_SPACING, "shift"):
        if getattr(settings, key) is not None:
            raise ProgramError(f"{key} is for other models; EDM's take steps")
    return edm_grid(settings.steps or 0)


def _scm_grid(steps: int, noise: float, data: float) -> Grid:
    if data > noise:
        raise ProgramError("flow-scm is for models that are told 0 of data, as SANA-Sprint is")
    return scm_grid(steps, noise)


def _grid(schedule: Schedule, settings: SamplerSettings) -> Grid:
    """The points a diffusion sampler visits."""
    if settings.shift is not None:
        raise ProgramError("shift is for flow models; a diffusion model takes spacing or sigmas")
    given = [key for key in ("respacing", "spacing", "sigmas") if getattr(settings, key) is not None]
    if settings.sampler in OWN_TIMES:
        if given or settings.steps is None:
            raise ProgramError(f"{settings.sampler} visits its own timesteps: give steps, and no spacing of them")
        if settings.sampler == "searched":
            return searched_grid(positive_snr(schedule), settings.steps)
        return distilled_grid(positive_snr(schedule), settings.sampler, settings.steps)
    if len(given) > 1:
        raise ProgramError(f"{' and '.join(given)} both say where the steps lie: give one of them")
    if (settings.steps is None) == (settings.respacing is None):
        raise ProgramError("steps and respacing both say how many steps to take: give one of them")
    if settings.sampler not in REFERENCE or settings.sigmas is not None or settings.spacing == OPTIMISED:
        schedule = positive_snr(schedule)
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
    if settings.spacing == OPTIMISED:
        return grid_from_timesteps(schedule, optimised_timesteps(schedule, steps, settings.order or 2))
    if settings.spacing is None and settings.sampler in REFERENCE:
        return grid_from_timesteps(schedule, respaced_timesteps(str(steps), schedule.steps))
    if settings.spacing is None and steps < schedule.steps:  # linspace without its last point, as diffusers' solvers
        return grid_from_timesteps(schedule, spaced_timesteps("linspace", steps, schedule.steps, skip_last=True))
    return grid_from_timesteps(schedule, spaced_timesteps(settings.spacing or "linspace", steps, schedule.steps))


def _name(settings: SamplerSettings) -> str:
    """For people: sampler, order, steps and how they are spaced."""
    count = settings.steps if settings.steps is not None else str(settings.respacing).removeprefix("ddim")
    parts = [str(settings.sampler) + (str(settings.order) if settings.order else ""), str(count)]
    strength = f"strength-{settings.strength:g}" if settings.strength is not None else None
    return "-".join(parts + [part for part in (settings.spacing, settings.sigmas, strength) if part])
