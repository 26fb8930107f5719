"""What a run on a device depends on, and its tables as the arrays of one arena."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..samplers.program import Program
from .tables import STEP_TABLES, StepTables

CANCEL_STEPS = 4  # steps enqueued at a time when the run may be cancelled
DRAWN_STEPS = 10  # steps enqueued at a time when they add noise: the host draws the next while the device works


@dataclass(frozen=True)
class RunShape:
    """What buffers and graphs depend on."""

    evaluations: tuple[int, ...]  # E of each of the steps' `Evaluations`
    evaluations_of: tuple[int, ...]  # per step: which of them it makes
    draws: tuple[bool, ...]  # per step: whether it adds noise
    batch: int
    slots: int
    rows: int
    segment: int  # steps enqueued at a time


def run_shape(program: Program, tables: StepTables, watched: bool, cancellable: bool) -> RunShape:
    draws = tuple(program.draws_noise(step) for step in range(program.steps))
    segment = 1 if watched else CANCEL_STEPS if cancellable else DRAWN_STEPS if any(draws) else program.steps
    return RunShape(
        evaluations=tuple(len(some.sample) for some in tables.evaluations),
        evaluations_of=tables.evaluations_of,
        draws=draws,
        batch=tables.batch,
        slots=program.slots,
        rows=tables.rows,
        segment=min(segment, program.steps),
    )


def arena_parts(tables: StepTables, latent: tuple[int, ...], steps_per_call: int) -> dict[str, np.ndarray]:
    """Every array that the graphs read but state, noise and modulation, by the name under which it is bound.

    NAME/c is what call c of the conditioner reads of the condition NAME: `steps_per_call` steps x R rows; the steps
    after the last are copies of it.
    """
    parts = {"silence": np.zeros((tables.batch, *latent), dtype=np.float32)}
    for index, some in enumerate(tables.evaluations):
        parts |= {f"{name}/{index}": table for name, table in vars(some).items()}
    for step in range(tables.steps):
        parts |= {f"{name}/{step}": getattr(tables, name)[step] for name in STEP_TABLES}
    for call in range(-(-tables.steps // steps_per_call)):
        chosen = np.minimum(np.arange(call * steps_per_call, (call + 1) * steps_per_call), tables.steps - 1)
        parts |= {f"{name}/{call}": values[chosen].reshape(-1) for name, values in tables.conditions.items()}
    return parts


def parts_of_step(shape: RunShape, step: int) -> dict[str, str]:
    """Input of the step graph -> the arena's name of what this step binds to it."""
    evaluations = {name: f"{name}/{shape.evaluations_of[step]}" for name in ("sample", "condition", "combine")}
    return evaluations | {name: f"{name}/{step}" for name in STEP_TABLES}
