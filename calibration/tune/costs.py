"""What a step costs on this machine, measured once; and so what every candidate costs, without running it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ...runtime.errors import RequestError
from ...runtime.loop.host_loop import HostLoop
from ...runtime.loop.loop import first_state
from ...runtime.loop.noise import SeededNoise
from ...runtime.loop.session import Session
from ...runtime.samplers.program import Program
from ..pool import Pool
from .judge import latents_of, pictures
from .request import Budget
from .shapes import passes_of

ROUNDS = 7
MOST_STEPS = 200  # of a candidate, whatever the budget


@dataclass(frozen=True)
class Costs:
    """Of one image alone: seconds, or with PASSES forward passes.

    one: a step that evaluates the network once. two: a guided one. rest: all that is no step (conditioner, decoder).
    """

    one: float
    two: float
    rest: float

    def of(self, steps: int, guided: int) -> float:
        return self.rest + (steps - guided) * self.one + guided * self.two

    def steps_within(self, most: float, share: float) -> tuple[int, int]:
        """(steps, guided ones) of the longest program within `most` that guides this share of its steps.

        steps 0: not even one fits.
        """
        found = (0, 0)
        for steps in range(1, MOST_STEPS + 1):
            guided = round(share * steps)
            if self.of(steps, guided) > most * (1 + 1e-9):
                break
            found = steps, guided
        steps, guided = found
        while 0 < steps < MOST_STEPS and self.of(steps + 1, guided) <= most * (1 + 1e-9):
            steps += 1  # what is left is too little for a guided one
        return steps, guided


PASSES = Costs(1.0, 2.0, 0.0)


def check_affordable(budget: Budget | None, costs: list[Costs]) -> None:
    """Raises RequestError for a budget that no program of two steps keeps."""
    if budget is None:
        return
    least = 2.0 if budget.passes else min(cost.of(2, 0) for cost in costs)
    if budget.most < least:
        unit = "passes" if budget.passes else "s on this machine"
        raise RequestError(f"--budget of {budget}: two steps take {least:.3g} {unit}: give at least as much")


def measured_costs(session: Session, pool: Pool) -> Costs:
    """Medians of steps of one image, in turns."""
    bundle = session.bundle
    program = bundle.program()
    step = _step if isinstance(session.loop, HostLoop) else _share
    jobs = [step(session, pool, replace(program, guidance=np.full(program.steps, factor))) for factor in (0.0, 1.0)]
    jobs.append(lambda: _seconds(lambda: _whole(session, pool, program)))
    seconds = np.array([[job() for job in jobs] for _ in range(ROUNDS + 1)])[1:]  # the first round is warm-up
    one, two, whole = np.median(seconds, axis=0).tolist()
    steps = Costs(one, max(one, two), 0.0)
    return replace(steps, rest=max(0.0, whole - steps.of(program.steps, passes_of(program, bundle) - program.steps)))


def seconds_of_program(session: Session, pool: Pool, program: Program) -> float:
    """Median of whole images, one at a time: conditioner, steps, decoder."""
    return float(np.median([_seconds(lambda: _whole(session, pool, program)) for _ in range(4)][1:]))


def _seconds(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def _step(session: Session, pool: Pool, program: Program) -> Callable[[], float]:
    """Seconds of one step in the middle of the program, its inputs ready."""
    middle, noise = program.steps // 2, SeededNoise([0], session.bundle.manifest.model.latent_shape)
    guidance = session.bundle.manifest.defaults.guidance
    tables, state = pool.tables(session.bundle, program, pool.cycled(0, 1), guidance), first_state(program, noise)
    inputs = session.step_inputs(tables, middle, state, noise.step(middle))
    outputs, engine = {"next_state": np.empty_like(state)}, session.engine("step")
    return lambda: _seconds(lambda: engine.run(inputs, outputs))


def _share(session: Session, pool: Pool, program: Program) -> Callable[[], float]:
    """Seconds of a step as its share of a run: a device gets all steps at once, and that of the conditioner is in it.

    So the program's steps have to be guided alike.
    """
    return lambda: _seconds(lambda: latents_of(session, pool, program, 0, 0, 1)) / program.steps


def _whole(session: Session, pool: Pool, program: Program) -> None:
    pictures(session, latents_of(session, pool, program, 0, 0, 1))
