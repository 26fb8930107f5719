"""The last rung: the best programs on seeds that no search saw, timed whole; who of them is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ditedge import __version__

from ...runtime.bench.machine import processor
from ...runtime.errors import RequestError
from ...runtime.samplers.program import Program
from .closer import finalists, given
from .costs import seconds_of_program
from .front import front
from .judge import Drawn, Measured, latents_of, pictures, program_key
from .page import PICTURES
from .record import Figures, Found, Tuned
from .reference import judged_by
from .request import TuneRequest
from .search import Candidate, Contender, candidates, tried
from .shapes import Shape, passes_of
from .storage import remembered
from .work import Work, model_key
from .writing import PREFIX


@dataclass(frozen=True)
class Final:
    """A program that was measured, and its record."""

    found: Found
    program: Program


@dataclass(frozen=True)
class Result:
    """What a search found: programs that are to be written; missed: why there are none."""

    tuned: Tuned
    programs: tuple[Final, ...]
    missed: str | None
    pictures: tuple[
        np.ndarray, ...
    ]  # uint8 [PICTURES, h, w, 1 or 3] of the default program, where it was measured, and of each of those


def result_of(work: Work) -> Result:
    """Measures what the search found. Raises RequestError where no trial made pictures."""
    found = [*candidates(work.study), *given(work)]
    if not found:
        raise RequestError(f"none of {work.request.trials} trials made pictures: try more, or `ditedge verify`")
    baseline = _baseline(work) if work.request.baseline else None
    measured = [_final(work, shape, engine) for shape, engine in finalists(work, found)]
    chosen, missed = chosen_of(work.request, measured)
    on_front = {id(chosen[i]) for i in front(_points(chosen))}
    finals = tuple(_told(one, id(one) in on_front) for one in chosen)
    shown = [(one.found.engine, one.program) for one in finals]
    if baseline is not None:
        shown.insert(0, (baseline.engine, work.contenders[0].bundle.program()))
    pictures_of = tuple(_pictures(work, engine, program) for engine, program in shown)
    tuned = _tuned(work, baseline, [one.found for one in finals], [one.found for one in measured], found)
    return Result(tuned, finals, missed, pictures_of)


def _pictures(work: Work, engine: str, program: Program) -> np.ndarray:
    """The first of the last rung."""
    session = next(one.session for one in work.contenders if one.name == engine)
    count = min(PICTURES, work.request.images[2])
    return pictures(session, latents_of(session, work.judge.pool, program, work.request.seed, 0, count))


def _final(work: Work, shape: Shape, engine: int) -> Final:
    contender = work.contenders[engine]
    program = work.program(shape, engine)
    name = f"{PREFIX}{passes_of(program, contender.bundle)}"
    program = replace(program, name=name)
    return Final(_measured(work, contender, program, name, asdict(shape)), program)


def _baseline(work: Work) -> Found:
    bundle = work.contenders[0].bundle
    return _measured(work, work.contenders[0], bundle.program(), bundle.manifest.defaults.program, {})


def _measured(work: Work, contender: Contender, program: Program, name: str, shape: dict[str, Any]) -> Found:
    """On the last rung, never twice."""
    count, seed = work.request.images[2], work.request.seed

    def measure() -> dict[str, Any]:
        drawn = Drawn()
        if not work.judge.draw(contender.session, program, seed, count, drawn):
            raise RequestError(f"{contender.bundle.folder}: pictures of {name} overflowed: try --check-finite in `run`")
        return asdict(work.judge.measured(drawn))

    key = f"last {contender.name} {program_key(program)}"
    figures = Measured(**remembered(work.study, key, measure))
    seconds = remembered(
        work.study, f"seconds {key}", lambda: seconds_of_program(contender.session, work.judge.pool, program)
    )
    passes = passes_of(program, contender.bundle)
    return Found(
        name=name,
        engine=contender.name,
        file=f"programs/{contender.name}-{name}.json" if shape else None,
        passes=passes,
        steps=program.steps,
        guided=passes - program.steps,
        seconds=seconds,
        figures=Figures(seed=seed, **asdict(figures)),
        shape=shape,
    )


def chosen_of(request: TuneRequest, measured: Sequence[Final]) -> tuple[list[Final], str | None]:
    """Of each engine the best within the budget, or its front; with --min-quality its cheapest that is good enough.

    -> (those, cheapest first; None or why there are none)
    """
    chosen: list[Final] = []
    for engine in dict.fromkeys(one.found.engine for one in measured):
        own = [one for one in measured if one.found.engine == engine]
        own = [own[i] for i in front(_points(own))]  # rising cost, falling distance
        if request.min_quality is not None:
            own = [one for one in own if one.found.figures.distance <= request.min_quality][:1]
        elif request.limit is not None:
            own = own[-1:]
        chosen += {one.found.passes: one for one in own}.values()  # of equal passes the better: names are of passes
    if chosen:
        return chosen, None
    best = min((one.found for one in measured), key=lambda one: one.figures.distance)
    return [], (
        f"--min-quality {request.min_quality:g} was not reached: the best distance is {best.figures.distance:.4g} "
        f"({best.engine}, {best.passes} passes): allow more passes, or try more --trials"
    )


def _points(finals: Sequence[Final]) -> list[tuple[float, float]]:
    return [(one.found.seconds, one.found.figures.distance) for one in finals]


def _told(one: Final, on_front: bool) -> Final:
    """The program with what it was made from and what was measured: it stands in the file, and in pictures."""
    found = one.found.model_copy(update={"on_front": on_front})
    figures = found.figures.model_dump()
    made = {"tune": {"shape": found.shape, "engine": found.engine, "seconds": found.seconds, **figures}}
    return Final(found, replace(one.program, made=made))


def _tuned(
    work: Work, baseline: Found | None, programs: list[Found], measured: list[Found], found: Sequence[Candidate]
) -> Tuned:
    request, trials = work.request, tried(work.study)
    return Tuned(
        made_by=f"ditedge {__version__}",
        engines=[one.name for one in work.contenders],
        engine_sha256=[model_key(one.bundle) for one in work.contenders],
        guidance=work.contenders[0].bundle.manifest.defaults.guidance,
        budget=request.budget,
        min_quality=request.min_quality,
        judged=judged_by(request, work.judge),
        rungs=list(request.images),
        seed=request.seed,
        trials=len(trials),
        pruned=sum(trial.user_attrs.get("rung") == 0 for trial in trials),
        seconds=work.seconds,
        machine=processor(),
        costs=[asdict(one.costs) for one in work.contenders],
        baseline=baseline,
        programs=programs,
        measured=measured,
        trial_points=[(one.cost, one.distance) for one in found],
    )
