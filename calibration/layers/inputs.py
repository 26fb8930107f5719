"""What the graphs are given: those of a real step, from a golden trajectory, or else of the default program."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from ...runtime.bundle.open import Bundle
from ...runtime.errors import Cancelled, RequestError
from ...runtime.loop.conditions import of_steps
from ...runtime.loop.loop import StepEvent, first_state
from ...runtime.loop.noise import GivenNoise, NoiseSource, SeededNoise
from ...runtime.loop.session import Session
from ...runtime.loop.tables import step_tables
from ...runtime.loop.verify import read_golden
from ...runtime.report import Report

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class RealStep:
    """One step of a program, in words and as arrays. modulation is not among those: each bundle makes its own."""

    what: str  # "step 5 of 10 of golden trajectory ddpm-10, timestep 444, guidance 4"
    graph: str  # "step"
    conditioner: Arrays
    step: Arrays
    latents: np.ndarray  # [B, C, H, W] float32, what this step started from

    @property
    def letters(self) -> dict[str, int]:
        """The manifest's letters for variable dimensions -> what they are here."""
        state = self.step["state"]
        rows = len(next(iter(self.conditioner.values())))
        return {"B": state.shape[0], "K": state.shape[1], "E": len(self.step["sample"]), "U": rows}


def real_step(bundle: Bundle, number: int | None, report: Report) -> RealStep:
    """Step `number`, from 1, of the first golden trajectory that is here; without any, of the default program.

    The state before it is what `bundle` computes on the CPU. Raises RequestError for a step that there is not.
    """
    golden = next((some for some in bundle.manifest.golden if bundle.has(some.file)), None)
    program = bundle.program(golden.program if golden is not None else None)
    number = (program.steps + 1) // 2 if number is None else number
    if number > program.steps:
        raise RequestError(f"--step {number}: program '{program.name}' has steps 1 to {program.steps}")
    noise: NoiseSource
    if golden is not None:
        tensors = read_golden(bundle, golden, program.steps)
        labels, noise = tensors["y"].tolist(), GivenNoise(tensors["z"], tensors["noise"])
    else:
        labels, noise = [0], SeededNoise([0], bundle.manifest.model.latent_shape)
    guidance = golden.guidance if golden is not None else bundle.manifest.defaults.guidance
    state, stop = first_state(program, noise), threading.Event()

    def on_step(event: StepEvent) -> None:
        nonlocal state
        report("sampling up to the step", event.step, number - 1)
        if event.step == number - 1:
            state = event.state.copy()
            stop.set()

    if number > 1:
        with Session(bundle) as session:
            try:
                session.latents(program, labels, guidance, noise, on_step, stop)
            except Cancelled:
                pass  # by us, in time
    tables, row = step_tables(program, bundle.manifest.model, labels, guidance), number - 1
    drawn = noise.step(row) if program.draws_noise(row) else np.zeros_like(state[:, 0])
    inputs = {"state": state, "noise": np.ascontiguousarray(drawn), **tables.inputs(row)}
    source = "golden trajectory" if golden is not None else "program"
    what = (
        f"step {number} of {program.steps} of {source} {program.name}, timestep {program.timestep[row]:g}, "
        f"guidance {guidance:g}"
    )
    conditions = of_steps(tables.conditions, row, row + 1)
    return RealStep(what, program.graph_of(row), conditions, inputs, np.ascontiguousarray(state[:, 0]))
