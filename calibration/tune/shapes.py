"""A candidate as a few numbers, and the program that they make: where the steps lie, how they go, what is guided."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np

from ...runtime.bundle.open import Bundle
from ...runtime.errors import ProgramError
from ...runtime.samplers import deis, dpm_solver, flow_grid_from_sigmas, grid_from_sigmas, lms, unipc
from ...runtime.samplers.edm import edm_grid_from_sigmas
from ...runtime.samplers.grid import Grid, program_on_grid, sigmas_at, timesteps_at
from ...runtime.samplers.optimised import optimised_log_snr
from ...runtime.samplers.process import EDM_SIGMAS
from ...runtime.samplers.program import Program
from ...runtime.samplers.schedule import positive_snr
from ...runtime.samplers.spacing import OPTIMISED

SOLVERS: Mapping[str, Callable[..., Program]] = {
    "ddim": partial(dpm_solver, order=1),
    "dpm++2": partial(dpm_solver, order=2),
    "dpm++2-heun": partial(dpm_solver, order=2, variant="heun"),
    "dpm++3": partial(dpm_solver, order=3),
    "unipc2": partial(unipc, order=2),
    "unipc3": partial(unipc, order=3),
    "deis2": partial(deis, order=2),
    "deis3": partial(deis, order=3),
    "lms2": partial(lms, order=2),
    "lms3": partial(lms, order=3),
}
SPACINGS = ("timestep", "log-snr", "karras", OPTIMISED)
FLOW_RATIOS = (999.0, 0.001)  # of a flow: from 1 - 1 / 1000 of noise, as multistep solvers begin
LEAST_GUIDANCE = 1e-3  # above 1, of a guided step: less is none


@dataclass(frozen=True)
class Shape:
    """What is searched. ratio: sigma / alpha, which is sigma of Karras et al. 2022."""

    sampler: str  # of SOLVERS
    spacing: str  # of SPACINGS
    rho: float  # of "karras"
    first: float  # ratio where the sampler begins
    last: float  # ratio of its last evaluation, from which it goes to 0
    steps: int
    guided: int  # steps in a row
    start: int  # the first of them
    scale: float  # guidance of the first of them
    ramp: float  # (guidance - 1) of the last of them over that of the first
    gaps: tuple[float, ...] = ()  # logarithms, by which gaps between the points (in log ratio) grow; one each, or none
    factors: tuple[float, ...] = ()  # logarithms, by which (guidance - 1) of a guided step grows; one each, or none
    columns: int = 0  # estimates of x0 that least squares weigh in each row (fit.py); 0: the sampler's own weights
    rows: tuple[tuple[float, ...], ...] = ()  # each step's weights of x, x0 and the x0 before it; none: the sampler's

    def __post_init__(self) -> None:
        """Raises ProgramError, TypeError: a shape may come from a file."""
        numbers = (self.rho, self.first, self.last, self.scale, self.ramp, *self.gaps, *self.factors)
        numbers += tuple(weight for row in self.rows for weight in row)
        if self.sampler not in SOLVERS or self.spacing not in SPACINGS or not all(map(math.isfinite, numbers)):
            raise ProgramError(f"sampler '{self.sampler}' on spacing '{self.spacing}' is not known")
        if not (0 < self.last < self.first and self.rho > 0 and self.scale >= 1 and self.ramp > 0):
            raise ProgramError("a shape goes from a larger to a smaller ratio, and is not guided backwards")
        if not (self.steps >= 1 and 0 <= self.start and 0 <= self.guided <= self.steps - self.start):
            raise ProgramError(f"{self.guided} guided steps from step {self.start} on are not among {self.steps}")
        if (len(self.gaps), len(self.factors)) not in _lengths(self) or not 0 <= self.columns <= self.steps:
            raise ProgramError("gaps, factors or columns are not as many as the steps")
        widths = {len(row) for row in self.rows}
        if self.rows and (self.columns or len(self.rows) != self.steps or len(widths) > 1 or min(widths) < 2):
            raise ProgramError("rows are not one each step, of x, x0 and as many estimates before it")


def _lengths(shape: Shape) -> list[tuple[int, int]]:
    return [(gaps, factors) for gaps in (0, shape.steps - 1) for factors in (0, shape.guided)]


def can_guide(bundle: Bundle) -> bool:
    """Whether a factor of a program changes what a step evaluates: by the guidance that the bundle has by default."""
    manifest = bundle.manifest
    kind = manifest.model.null_class is not None if manifest.text is None else manifest.text.guidance == "true"
    return kind and manifest.defaults.guidance > 1


def ratios_of_model(bundle: Bundle) -> tuple[float, float]:
    """(largest, smallest) ratio that the model was trained on."""
    schedule = bundle.schedule
    if schedule is not None:
        smallest, largest = sigmas_at(positive_snr(schedule), np.array([0, schedule.steps - 1]))
        return float(largest), float(smallest)
    return EDM_SIGMAS if bundle.manifest.model.prediction == "edm" else FLOW_RATIOS


def points(shape: Shape, bundle: Bundle) -> np.ndarray:
    """Ratios at which the network is evaluated, falling [steps]."""
    if shape.steps == 1:
        return np.array([shape.first])
    share = np.linspace(0, 1, shape.steps)
    if shape.spacing == "karras":
        ends = shape.first ** (1 / shape.rho), shape.last ** (1 / shape.rho)
        ratios = (ends[0] + share * (ends[1] - ends[0])) ** shape.rho
    elif shape.spacing == OPTIMISED and shape.steps > 2:
        ratios = _optimised(shape.first, shape.last, shape.steps, 3 if shape.sampler.endswith("3") else 2)
    elif shape.spacing in ("log-snr", OPTIMISED) or bundle.manifest.model.prediction == "edm":
        ratios = np.exp(math.log(shape.first) + share * math.log(shape.last / shape.first))
    else:
        ratios = _even_timesteps(shape, bundle, share)
    return _stretched(ratios, shape.gaps)


@lru_cache(maxsize=256)
def _optimised(first: float, last: float, steps: int, order: int) -> np.ndarray:
    """Between the ends, which are searched; a step from the last to 0 follows. Raises ProgramError."""
    ratios = np.exp(-optimised_log_snr(-math.log(first), -math.log(last), steps - 1, order))
    return np.concatenate([[first], ratios[1:-1], [last]])


def _even_timesteps(shape: Shape, bundle: Bundle, share: np.ndarray) -> np.ndarray:
    schedule, ends = bundle.schedule, np.array([shape.first, shape.last])
    if schedule is None:
        first, last = ends / (1 + ends)
        sigma = first + share * (last - first)
        return sigma / (1 - sigma)
    first, last = timesteps_at(positive_snr(schedule), ends)
    inside = sigmas_at(positive_snr(schedule), (first + share * (last - first))[1:-1])
    return np.concatenate([ends[:1], inside, ends[1:]])


def _stretched(ratios: np.ndarray, gaps: tuple[float, ...]) -> np.ndarray:
    """The same ends, and gaps of log ratio that are exp(gaps) as wide against each other."""
    if not gaps:
        return ratios
    logs = np.log(ratios)
    widths = np.diff(logs) * np.exp(gaps)
    moved = logs[0] + np.cumsum(widths) * (logs[-1] - logs[0]) / widths.sum()
    return np.exp(np.concatenate([logs[:1], moved]))


def grid_of_ratios(ratios: np.ndarray, bundle: Bundle) -> Grid:
    """Points [N] on the model's own process, and the image behind them. Raises ProgramError."""
    schedule, model = bundle.schedule, bundle.manifest.model
    if schedule is not None:
        schedule = positive_snr(schedule)
        return grid_from_sigmas(schedule, ratios, timesteps_at(schedule, ratios))
    if model.prediction == "edm":
        return edm_grid_from_sigmas(ratios)
    noise, data = model.timestep_range
    return flow_grid_from_sigmas(ratios / (1 + ratios), timestep_scale=max(noise, data), data_at_one=data > noise)


def guidance_of(shape: Shape) -> np.ndarray:
    """Of each step [steps]: 1 is none."""
    guidance, where = np.ones(shape.steps), np.linspace(0, 1, max(shape.guided, 2))[: shape.guided]
    above = (shape.scale - 1) * shape.ramp**where * np.exp(shape.factors or 0.0)
    guidance[shape.start : shape.start + shape.guided] += np.maximum(above, LEAST_GUIDANCE)
    return guidance


def guidance_factors(shape: Shape, bundle: Bundle) -> np.ndarray:
    """The column `guidance` of a program [steps]: parts of the bundle's default guidance."""
    above = bundle.manifest.defaults.guidance - 1
    return (guidance_of(shape) - 1) / above if can_guide(bundle) else np.zeros(shape.steps)


def program_of(shape: Shape, bundle: Bundle) -> Program:
    """The candidate's program: its sampler's weights, its own rows, or DDIM's until rows are fitted.

    Raises ProgramError.
    """
    grid, prediction = grid_of_ratios(points(shape, bundle), bundle), bundle.manifest.model.prediction
    if shape.rows:
        program = program_on_grid("rows", grid, prediction, np.array([mix_of_weights(row) for row in shape.rows]))
    else:
        program = SOLVERS["ddim" if shape.columns else shape.sampler](grid, prediction=prediction)
    return replace(program, guidance=guidance_factors(shape, bundle), process=bundle.process)


def mix_of_weights(weights: Sequence[float]) -> np.ndarray:
    """A row of a program's mix [K, K + 2]: the new x of K + 1 weights (of x, x0, those before), and K - 1 x0 held."""
    slots = len(weights) - 1
    x, *past, x0, _ = np.eye(slots + 2)
    new = np.array(weights) @ np.array([x, x0, *past])
    return np.array([new, x0, *past][:slots])


def passes_of(program: Program, bundle: Bundle) -> int:
    """Forward passes of the network that one image takes: a guided step takes two."""
    return program.steps + (int(np.count_nonzero(program.guidance)) if can_guide(bundle) else 0)
