"""What a run on a device depends on, and its tables as the arrays of one arena."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..samplers.program import Program
from .tables import StepTables

CANCEL_STEPS = 4  # steps enqueued at a time when the run may be cancelled
DRAWN_STEPS = 10  # steps enqueued at a time when they add noise: the host draws the next while the device works


@dataclass(frozen=True)
class RunShape:
    """What buffers and graphs depend on."""

    guided: tuple[bool, ...]  # per step
    draws: tuple[bool, ...]  # per step: whether it adds noise
    batch: int
    slots: int
    rows: int
    segment: int  # steps enqueued at a time


def run_shape(program: Program, tables: StepTables, watched: bool, cancellable: bool) -> RunShape:
    draws = tuple(program.draws_noise(step) for step in range(program.steps))
    segment = 1 if watched else CANCEL_STEPS if cancellable else DRAWN_STEPS if any(draws) else program.steps
    return RunShape(
        guided=tuple(map(bool, tables.guided)),
        draws=draws,
        batch=len(tables.x0_bound),
        slots=program.slots,
        rows=len(tables.labels),
        segment=min(segment, program.steps),
    )


def arena_parts(tables: StepTables, latent: tuple[int, ...], steps_per_call: int) -> dict[str, np.ndarray]:
    """Every array that the graphs read but state, noise and modulation, by the name under which it is bound.

    timestep/c and label/c are what call c of the conditioner reads: `steps_per_call` steps x R rows; the steps after
    the last are copies of it.
    """
    steps, rows = len(tables.timestep), len(tables.labels)
    parts = {
        "sample": tables.sample,
        "condition": tables.condition,
        "combine_guided": tables.combine_guided,
        "combine_plain": tables.combine_plain,
        "x0_bound": tables.x0_bound,
        "silence": np.zeros((len(tables.x0_bound), *latent), dtype=np.float32),
    }
    for step in range(steps):
        parts |= {f"{name}/{step}": getattr(tables, name)[step] for name in ("x0_from", "log_sigma", "mix")}
    for call in range(-(-steps // steps_per_call)):
        chosen = np.minimum(np.arange(call * steps_per_call, (call + 1) * steps_per_call), steps - 1)
        parts[f"timestep/{call}"] = np.repeat(tables.timestep[chosen], rows)
        parts[f"label/{call}"] = np.tile(tables.labels, steps_per_call)
    return parts


def part_of_step(name: str, step: int) -> str:
    """The arena's name of what a step binds to an input that has one row per step."""
    return f"{name}/{step}"
