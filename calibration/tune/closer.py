"""Beside the best: times and guidance moved freely, rows fitted by least squares; measured as all others are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ...runtime.errors import ProgramError, RequestError
from .front import front, spread
from .judge import Drawn, program_key
from .record import read_tuned
from .search import BAD, Candidate, begin_study, candidates, search, shape_from
from .shapes import Shape
from .space import Around
from .storage import remembered
from .work import Work

REFINED = 2  # programs of each engine whose neighbourhood is searched, with a budget
FRONT = 6  # without one: programs along the front
COLUMNS = (2, 3)  # estimates of x0 that least squares weigh
LENT = 2  # of each other engine's


def best_of(work: Work, found: Sequence[Candidate], engine: int, count: int) -> list[Candidate]:
    """With a budget the `count` of the least distance; without one, the front of cost and distance."""
    own = sorted((one for one in found if one.engine == engine), key=lambda one: (one.distance, one.cost))
    if work.space.budget is not None:
        return own[:count]
    own = [own[i] for i in front([(one.cost, one.distance) for one in own])]
    return [own[i] for i in spread([one.cost for one in own], FRONT)]


def shapes_of(path: Path) -> list[Shape]:
    """Of what a search measured on its last rung. Raises RequestError."""
    try:
        return list(dict.fromkeys(shape_from(one.shape) for one in read_tuned(path).measured))
    except (TypeError, ProgramError) as error:
        raise RequestError(f"{path}: has a program that cannot be made ({error}): search again") from None


def given(work: Work) -> list[Candidate]:
    """What the search of --start measured, on every engine that can afford it: measured here as a trial is."""
    if work.request.start is None:
        return []
    shapes = shapes_of(work.request.start)
    pairs = [
        (shape, engine) for shape in shapes for engine in range(len(work.contenders)) if work.affords(shape, engine)
    ]
    found = []
    for i, (shape, engine) in enumerate(pairs):
        work.report("programs of --start", i, len(pairs))
        cost = work.contenders[engine].costs.of(shape.steps, shape.guided)
        found.append(Candidate(-1 - i, engine, shape, cost, _measured(work, shape, engine)))
    return [one for one in found if one.distance < BAD]


def neighbours(work: Work, best: Candidate) -> list[Candidate]:
    """What a search around a program found, best first; the program itself is tried first."""
    around = Around(best.engine, replace(best.shape, gaps=(), factors=()), work.space)
    name = f"around {best.engine} {program_key(work.program(around.shape, best.engine))}"
    study = begin_study(work.storage, name, [around.start()], True, work.request.seed)
    rungs = work.request.images[:2]

    def report(what: str, done: int = 0, total: int = 0) -> None:
        work.report(f"{what}, beside trial {best.number}", done, total)

    search(study, around.ask, work.contenders, work.judge, rungs, work.seed, work.request.refine, report)
    return candidates(study)


def fits(work: Work, best: Candidate) -> list[Candidate]:
    """The same points and guidance with rows by least squares, where that measures better."""
    shapes = [replace(best.shape, columns=min(columns, best.shape.steps)) for columns in COLUMNS]
    tried = [replace(best, shape=shape, distance=_measured(work, shape, best.engine)) for shape in shapes]
    return [one for one in tried if one.distance < best.distance]


def _measured(work: Work, shape: Shape, engine: int) -> float:
    """Distance on the search's last rung, never measured twice; BAD where it has none."""

    def measure() -> float:
        drawn, contender = Drawn(), work.contenders[engine]
        try:
            program = work.program(shape, engine)
        except ProgramError:
            return BAD
        finite = work.judge.draw(contender.session, program, work.seed, work.request.images[1], drawn)
        return work.judge.distance(drawn) if finite else BAD

    return float(remembered(work.study, f"distance {engine} {sorted(asdict(shape).items())}", measure))


def finalists(work: Work, found: Sequence[Candidate]) -> list[tuple[Shape, int]]:
    """(shape, engine) that the last rung measures: of each engine its best, as found and moved; and others' best."""
    chosen: dict[int, list[Candidate]] = {}
    for engine in range(len(work.contenders)):
        best = best_of(work, found, engine, REFINED)
        moved = [one for start in best for one in _beside(work, start)]
        if work.space.budget is None:
            chosen[engine] = [*best, *moved]
        else:
            most = work.request.finalists
            every = sorted([*best_of(work, found, engine, most), *moved], key=lambda one: one.distance)
            chosen[engine] = [*every[: max(1, most - 1)], *best[:1]] if most > 1 else every[:1]
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
    if not work.request.refine or start.shape.columns or start.shape.rows:
        return []
    near = neighbours(work, start)
    best = min([start, *near], key=lambda one: one.distance)
    return [*near[: 1 if work.space.budget is None else 2], *fits(work, best)]
