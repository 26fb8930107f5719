"""Beside the best: times and guidance moved freely, rows fitted by least squares; measured as all others are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...runtime.errors import ProgramError
from .front import front, spread
from .judge import Drawn, program_key
from .search import BAD, Candidate, begin_study, candidates, search
from .shapes import Shape
from .space import Around
from .storage import remembered
from .work import Work

REFINED = 2  # programs of each engine whose neighbourhood is searched, with a budget
FRONT = 6  # without one: programs along the front
COLUMNS = (2, 3)  # estimates of x0 that least squares weigh
FINALISTS = 4  # programs of each engine that the last rung measures, with a budget
LENT = 2  # of each other engine's


def best_of(work: Work, found: Sequence[Candidate], engine: int, count: int) -> list[Candidate]:
    """With a budget the `count` of the least distance; without one, the front of cost and distance."""
    own = [one for one in found if one.engine == engine]
    if work.space.budget is not None:
        return own[:count]
    own = [own[i] for i in front([(one.cost, one.distance) for one in own])]
    return [own[i] for i in spread([one.cost for one in own], FRONT)]


def neighbours(work: Work, best: Candidate) -> list[Candidate]:
    """What a search around a program found, best first; the program itself is tried first."""
    around = Around(best.engine, best.shape, work.space)
    name = f"around {best.engine} {best.number}"
    study = begin_study(work.storage, name, [around.start()], True, work.request.seed)
    rungs = work.request.images[:2]

    def report(what: str, done: int = 0, total: int = 0) -> None:
        work.report(f"{what}, beside trial {best.number}", done, total)

    search(study, around.ask, work.contenders, work.judge, rungs, work.seed, work.request.refine, report)
    return candidates(study)


def fits(work: Work, best: Candidate) -> list[Candidate]:
    """The same points and guidance with rows by least squares, where that measures better."""
    tried = []
    for columns in COLUMNS:
        shape = replace(best.shape, columns=min(columns, best.shape.steps))
        distance = remembered(
            work.study, f"fit {best.engine} {shape}", lambda shape=shape: _distance(work, shape, best.engine)
        )  # type: ignore[misc]
        tried.append(replace(best, shape=shape, distance=distance))
    return [one for one in tried if one.distance < best.distance]


def _distance(work: Work, shape: Shape, engine: int) -> float:
    """On the search's last rung."""
    drawn, contender = Drawn(), work.contenders[engine]
    try:
        program = work.program(shape, engine)
    except ProgramError:
        return BAD
    finite = work.judge.draw(contender.session, program, work.seed, work.request.images[1], drawn)
    return work.judge.distance(drawn) if finite else BAD


def finalists(work: Work, found: Sequence[Candidate]) -> list[tuple[Shape, int]]:
    """(shape, engine) that the last rung measures: of each engine its best, as found and moved; and others' best."""
    chosen: dict[int, list[Candidate]] = {}
    for engine in range(len(work.contenders)):
        best = best_of(work, found, engine, REFINED)
        moved = [one for start in best for one in _beside(work, start)]
        if work.space.budget is None:
            chosen[engine] = [*best, *moved]
        else:
            every = sorted([*best_of(work, found, engine, FINALISTS), *moved], key=lambda one: one.distance)
            chosen[engine] = [*best[:1], *every][: 1 + FINALISTS]
    pairs = [
        (one.shape, engine)
        for engine in chosen
        for of, some in chosen.items()
        for one in (some if of == engine or work.space.budget is None else some[: 1 + LENT])
        if work.affords(one.shape, engine)
    ]
    seen: dict[tuple[int, str], tuple[Shape, int]] = {}
    for shape, engine in pairs:
        seen.setdefault((engine, program_key(work.program(shape, engine))), (shape, engine))
    return list(seen.values())


def _beside(work: Work, start: Candidate) -> list[Candidate]:
    """The best beside a program, with a budget the best two; and what least squares make of the best."""
    near = neighbours(work, start) if work.request.refine else []
    best = min([start, *near], key=lambda one: one.distance)
    return [*near[: 1 if work.space.budget is None else 2], *fits(work, best)]
