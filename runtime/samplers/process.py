"""What a program was made for: the process of noising that a model was trained on, and a model's own beside it.

A program is numbers: run on a model that predicts something else, or was trained on other betas, it paints noise and
says nothing. So its maker writes down what it took for granted, and who runs it compares (docs/format.md).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from ..errors import RequestError
from ..fields import Finite, Strict
from .schedule import Schedule, ScheduleInfo, schedule_from_info

# Of log SNR, at any timestep: 0.05 % of sigma. Betas that were stored in float32, or computed back from cumulative
# products in float32, differ by up to 6e-4 at the first timestep (1 - abar is 1e-4 there). Another schedule differs by
# more somewhere: a last beta of 0.0201 for 0.02 by 5e-2.
LOG_SNR_TOLERANCE = 1e-3
LEAST = 2.0**-24  # of abar and of 1 - abar: what float32 holds of a cumulative product; see `positive_snr`

# Predictions without betas -> what the network is told of noise, and of data
FLOWS = {"flow": (1.0, 0.0), "flow-to-data": (0.0, 1.0), "mean-flow": (1.0, 0.0)}
EDM_SIGMAS = (80.0, 0.002)  # Karras et al. 2022, table 1; EDM's networks are told log(sigma) / 4
NO_BETAS = FLOWS | {"edm": (math.log(EDM_SIGMAS[0]) / 4, math.log(EDM_SIGMAS[1]) / 4)}


class ProcessInfo(Strict):
    """The field `process` of a program. prediction "flow": noise - data (REPA, SD3); "flow-to-data" its opposite;
    "mean-flow": the average of "flow" over the interval that a step goes; "edm": the network inside EDM's
    preconditioning.
    """

    prediction: Literal["epsilon", "x0", "v", "flow", "flow-to-data", "mean-flow", "edm"]
    timestep_range: Annotated[
        tuple[Finite, Finite], Field(strict=False)
    ]  # what the network is told of pure noise, and of data
    schedule: ScheduleInfo | None  # None: a flow, or EDM


def process_without_betas(prediction: str, timestep_range: tuple[float, float]) -> ProcessInfo:
    """Of a model of flow matching, x_t = t data + (1 - t) noise, or of EDM's."""
    values = {"prediction": prediction, "timestep_range": timestep_range, "schedule": None}
    return ProcessInfo.model_validate(values)


def process_of_schedule(schedule: Schedule, prediction: str) -> ProcessInfo | None:
    """Of a diffusion model; None when it is not known how the schedule's betas were made."""
    if schedule.info is None:
        return None
    values = {"prediction": prediction, "timestep_range": (schedule.steps - 1.0, 0.0), "schedule": schedule.info}
    return ProcessInfo.model_validate(values)


def check_process(name: str, made_for: ProcessInfo | None, model: ProcessInfo, remedy: str) -> None:
    """Raises RequestError with both values where a program, `name`, was made for another process than `model`.

    made_for: None is not known, and passes. remedy: the end of the sentence.
    """
    if made_for is None:
        return
    differences: list[tuple[str, str, str]] = []
    if made_for.prediction != model.prediction:
        differences.append((made_for.prediction, model.prediction, "a prediction of {}"))
    if not np.allclose(
        made_for.timestep_range, model.timestep_range, rtol=0, atol=1e-6 * max(map(abs, model.timestep_range))
    ):
        differences.append((_span(made_for.timestep_range), _span(model.timestep_range), "timesteps from {}"))
    if not same_schedule(made_for.schedule, model.schedule):
        differences.append((_words(made_for), _words(model), "{}"))
    if differences:
        theirs, ours = (" and ".join(text.format(pair[i]) for *pair, text in differences) for i in (0, 1))
        raise RequestError(f"program '{name}' was made for {theirs}; this model has {ours}: {remedy}")


def same_schedule(a: ScheduleInfo | None, b: ScheduleInfo | None) -> bool:
    """Whether two descriptions give the same noise levels: the betas may be listed in one and named in the other."""
    if a is None or b is None or a == b:
        return a == b
    return same_noise(schedule_from_info(a).alphas_cumprod, schedule_from_info(b).alphas_cumprod)


def same_noise(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two alphas_cumprod, [T] float64 each, are the same noise levels."""
    if a.shape != b.shape:
        return False
    a, b = (np.clip(abar, LEAST, 1 - LEAST) for abar in (a, b))
    return bool(np.all(np.abs(np.log(a / (1 - a)) - np.log(b / (1 - b))) <= LOG_SNR_TOLERANCE))


def _span(ends: tuple[float, float]) -> str:
    return f"{ends[0]:g} (noise) to {ends[1]:g} (data)"


def _words(process: ProcessInfo) -> str:
    info = process.schedule
    if info is None:
        return "EDM's sigmas" if process.prediction == "edm" else "a flow, which has no betas"
    ends = f" from {info.beta_start:g} to {info.beta_end:g}" if info.beta_start is not None else ""
    if info.betas is not None:
        ends = f" from {info.betas[0]:g} to {info.betas[-1]:g}"
    zero = ", rescaled to zero terminal SNR" if info.zero_terminal_snr else ""
    return f"{info.kind} betas{ends} over {info.steps} timesteps{zero}"
