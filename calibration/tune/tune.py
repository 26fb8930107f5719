"""`tune` in its order of work: load, measure costs, search, measure the best on fresh seeds, write.

Whatever is measured is kept in the search's journal, so the same command goes on where it was ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ditedge import __version__

from ...runtime.bundle.open import Bundle, open_bundle
from ...runtime.errors import RequestError
from ...runtime.files import sha256_of_file
from ...runtime.loop.session import Session
from ...runtime.report import Report, silent
from ...runtime.samplers.program import Program
from ..pool import Pool, pool_of
from ..quality.comparable import differences
from .costs import Costs, check_affordable, measured_costs, seconds_of_program
from .front import front, spread
from .judge import Drawn, Judge, Measured, program_key
from .record import Figures, Found, Tuned
from .reference import judged_by, seen_by
from .request import FRESH, TuneRequest
from .search import Candidate, Contender, begin_study, candidates, search, tried
from .shapes import passes_of, program_of
from .space import Space, space_of
from .storage import JOURNAL, check_same, opened_storage, remembered
from .writing import PREFIX, check_can_be_added

FINALISTS = 4  # programs of each engine that the last rung measures, with a budget
FRONT = 6  # without one: programs along the front


@dataclass(frozen=True)
class Result:
    """What a search found. programs: by engine and name, as they are written; missed: why --min-quality is not met."""

    tuned: Tuned
    programs: dict[tuple[str, str], Program]
    missed: str | None


@dataclass(frozen=True)
class _Work:
    request: TuneRequest
    contenders: Sequence[Contender]
    judge: Judge
    study: Any
    space: Space


def tune(request: TuneRequest, report: Report = silent, note: Callable[[str], object] = silent) -> Result:
    """Searches and measures; writes nothing but the search's journal. Raises DitedgeError.

    note: told what the distances are, where that is not said by the options.
    """
    request.check()
    bundles = [open_bundle(path) for path in request.engine]
    _check(request, bundles)
    see = seen_by(request, bundles[0])
    reference = see.real(bundles[0], report)
    with opened_storage(request.folder / JOURNAL) as storage, ExitStack() as stack:
        sessions = [stack.enter_context(Session(bundle, request.options)) for bundle in bundles]
        pool = pool_of(bundles[0], request.prompts, report)
        own = reference if reference is not None else see.own(sessions[0], pool, report, note)
        judge = Judge(pool, see.see, own, request.batch, report)
        with _begun(request, storage, sessions, judge) as work:
            rungs, seed = request.images, request.seed + FRESH
            search(work.study, work.space, work.contenders, work.judge, rungs[:2], seed, request.trials, report)
            return _result(work)


def _check(request: TuneRequest, bundles: Sequence[Bundle]) -> None:
    names = [bundle.folder.absolute().name for bundle in bundles]
    for i, bundle in enumerate(bundles):
        if request.write:
            check_can_be_added(bundle)
        for what, a, b in differences(bundles[0], bundle):
            raise RequestError(f"{bundles[0].folder} and {bundle.folder} cannot be tuned together: {what} {a} and {b}")
        if names[i] in names[:i]:
            raise RequestError(f"--engine {bundle.folder}: two bundles are called '{names[i]}': rename one")
        if not {"decoder", "preview"} & {str(name) for name in bundle.manifest.graphs}:
            bundle.require("decoder")


@contextmanager
def _begun(request: TuneRequest, storage: Any, sessions: Sequence[Session], judge: Judge) -> Iterator[_Work]:
    """Everything that a search needs; costs, and what the reference is, are those of the search's first run."""
    bundles = [session.bundle for session in sessions]
    names = tuple(bundle.folder.absolute().name for bundle in bundles)
    first = space_of(bundles[0], names, (), request.limit)
    study = begin_study(storage, "search", first, request.seed)
    check_same(study, _settings(request, bundles, names), request.folder)
    judge.report("measuring what a step costs")
    costs = [Costs(**remembered(study, f"costs {i}", _costs_of(one, judge.pool))) for i, one in enumerate(sessions)]
    check_affordable(request.limit, costs)
    contenders = [Contender(*parts) for parts in zip(names, bundles, sessions, costs, strict=True)]
    started = time.monotonic()
    before = study.user_attrs.get("seconds", 0.0)
    try:
        yield _Work(request, contenders, judge, study, replace(first, costs=tuple(costs)))
    finally:
        study.set_user_attr("seconds", before + time.monotonic() - started)


def _costs_of(session: Session, pool: Pool) -> Callable[[], dict[str, float]]:
    return lambda: asdict(measured_costs(session, pool))


def model_key(bundle: Bundle) -> str:
    """Of the graphs that make pictures: programs that are added to a bundle do not make it another model."""
    files = [bundle.manifest.graphs[name].file for name in sorted(bundle.manifest.graphs)]
    return "-".join(bundle.manifest.files[file].sha256[:8] for file in files)


def _settings(request: TuneRequest, bundles: Sequence[Bundle], names: Sequence[str]) -> dict[str, Any]:
    """What may not change between the runs of one search; the number of trials may."""
    return {
        "engines": list(names),
        "graphs": [model_key(bundle) for bundle in bundles],
        "guidance": bundles[0].manifest.defaults.guidance,
        "budget": None if request.limit is None else str(request.limit),
        "features": None if request.features is None else sha256_of_file(request.features),
        "reference": None if request.reference is None else str(request.reference.absolute()),
        "prompts": None if request.prompts is None else sha256_of_file(request.prompts),
        "rungs": list(request.images),
        "seed": request.seed,
        "provider": request.options.provider,
    }


def _result(work: _Work) -> Result:
    """The best, on fresh seeds. Raises RequestError where no trial made pictures."""
    request, found = work.request, candidates(work.study)
    if not found:
        raise RequestError(f"none of {request.trials} trials made pictures: check the bundle with `ditedge verify`")
    baseline = _baseline(work)
    finals = [_final(work, one, engine) for one, engine in _finalists(work, found)]
    chosen, missed = _chosen(request, finals)
    everywhere = [chosen[i][0].name + chosen[i][0].engine for i in front(_points(chosen))]
    named = [(one.model_copy(update={"on_front": one.name + one.engine in everywhere}), p) for one, p in chosen]
    programs = {(one.engine, one.name): _told(one, program) for one, program in named}
    tuned = _tuned(work, baseline, [one for one, _ in named], found)
    return Result(tuned, programs, missed)


def _finalists(work: _Work, found: Sequence[Candidate]) -> list[tuple[Candidate, int]]:
    """(candidate, engine) that the last rung measures: the best of each engine, on all engines that can afford them."""
    chosen: list[Candidate] = []
    for engine in range(len(work.contenders)):
        own = [one for one in found if one.engine == engine]
        if work.space.budget is None:
            own = [own[i] for i in front([(one.cost, one.distance) for one in own])]
            chosen += [own[i] for i in spread([one.cost for one in own], FRONT)]
        else:
            chosen += own[:FINALISTS]
    budget = work.space.budget
    return [
        (one, engine)
        for one in chosen
        for engine, contender in enumerate(work.contenders)
        if budget is None or budget.passes or contender.costs.of(one.shape.steps, one.shape.guided) <= budget.most
    ]


def _final(work: _Work, one: Candidate, engine: int) -> tuple[Found, Program]:
    """A candidate on the last rung, which is never measured twice."""
    contender = work.contenders[engine]
    program = program_of(one.shape, contender.bundle)
    passes = passes_of(program, contender.bundle)
    program = replace(program, name=f"{PREFIX}{passes}")
    shape = asdict(one.shape) | {"trial": one.number}
    return _measured(work, contender, program, f"{PREFIX}{passes}", shape), program


def _baseline(work: _Work) -> Found:
    contender = work.contenders[0]
    return _measured(work, contender, contender.bundle.program(), contender.bundle.manifest.defaults.program, {})


def _measured(work: _Work, contender: Contender, program: Program, name: str, shape: dict[str, Any]) -> Found:
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
    return Found(
        name=name,
        engine=contender.name,
        file=f"programs/{contender.name}-{name}.json" if shape else None,
        passes=passes_of(program, contender.bundle),
        steps=program.steps,
        guided=passes_of(program, contender.bundle) - program.steps,
        seconds=seconds,
        figures=Figures(seed=seed, **asdict(figures)),
        shape=shape,
    )


def _chosen(
    request: TuneRequest, finals: Sequence[tuple[Found, Program]]
) -> tuple[list[tuple[Found, Program]], str | None]:
    """What is written: of each engine the best within the budget, or its front; with --min-quality its cheapest."""
    chosen: list[tuple[Found, Program]] = []
    for engine in dict.fromkeys(one.engine for one, _ in finals):
        own = [final for final in finals if final[0].engine == engine]
        own = [own[i] for i in front(_points(own))]  # rising cost, falling distance
        if request.min_quality is not None:
            own = [final for final in own if final[0].figures.distance <= request.min_quality][:1]
        elif request.limit is not None:
            own = own[-1:]
        chosen += {final[0].passes: final for final in own}.values()
    if chosen:
        return chosen, None
    best = min((one for one, _ in finals), key=lambda one: one.figures.distance)
    return [], (
        f"--min-quality {request.min_quality:g} was not reached: the best distance is {best.figures.distance:.4g} "
        f"({best.engine}, {best.passes} passes): allow more passes, or try more --trials"
    )


def _points(finals: Sequence[tuple[Found, Program]]) -> list[tuple[float, float]]:
    return [(one.seconds, one.figures.distance) for one, _ in finals]


def _told(one: Found, program: Program) -> Program:
    """The program with what it was made from and what was measured: it stands in the file, and in pictures."""
    figures = one.figures.model_dump()
    made = {"tune": {"shape": one.shape, "engine": one.engine, "seconds": one.seconds, **figures}}
    return replace(program, made=made)


def _tuned(work: _Work, baseline: Found, programs: list[Found], found: Sequence[Candidate]) -> Tuned:
    from optuna.trial import TrialState

    request, trials = work.request, tried(work.study)
    dropped = [t for t in trials if t.state == TrialState.PRUNED or t.user_attrs.get("rung") == 0]
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
        pruned=len(dropped),
        seconds=work.study.user_attrs.get("seconds", 0.0),
        machine=machine(),
        costs=[asdict(one.costs) for one in work.contenders],
        baseline=baseline,
        programs=programs,
        trial_points=[(one.cost, one.distance) for one in found],
    )


def machine() -> str:
    """The processor by name, where the system says it."""
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
