"""A search at work: the bundles loaded, what their steps cost, the judge, and the journal that all of it is kept in."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ...runtime.bundle.open import Bundle, open_bundle
from ...runtime.errors import RequestError
from ...runtime.files import sha256_of_file
from ...runtime.loop.session import Session
from ...runtime.report import Report
from ...runtime.samplers.program import Program
from ..pool import Pool, pool_of
from ..quality.comparable import differences
from ..quality.pictures import picture_graph
from .costs import PASSES, Costs, check_affordable, measured_costs
from .elsewhere import sampled_elsewhere
from .fit import fitted_program
from .judge import Judge
from .reference import seen_by
from .request import FRESH, TuneRequest
from .search import Contender, begin_study
from .shapes import Shape, program_of
from .space import Space, space_of
from .storage import JOURNAL, check_same, opened_storage, remembered
from .writing import check_can_be_added


@dataclass(frozen=True)
class Work:
    """study: the search's own; others of the storage are of the neighbourhoods of what it found.

    before: seconds of searching of the runs before this one. started: this one's, of `time.monotonic`.
    """

    request: TuneRequest
    contenders: Sequence[Contender]
    judge: Judge
    storage: Any
    study: Any
    space: Space
    report: Report
    before: float
    started: float

    @property
    def seconds(self) -> float:
        """Of searching up to now, all runs together."""
        return self.before + time.monotonic() - self.started

    @property
    def seed(self) -> int:
        """Of the search's first picture; the last rung has others."""
        return self.request.seed + FRESH

    def affords(self, shape: Shape, engine: int) -> bool:
        """Whether the shape keeps the budget on that engine."""
        budget = self.space.budget
        if budget is None:
            return True
        costs = PASSES if budget.passes else self.contenders[engine].costs
        return costs.of(shape.steps, shape.guided) <= budget.most * (1 + 1e-9)

    def program(self, shape: Shape, engine: int) -> Program:
        """Of a shape on one of the engines; rows that least squares weigh are fitted once. Raises ProgramError."""
        contender = self.contenders[engine]
        if not shape.columns:
            return program_of(shape, contender.bundle)
        key = f"rows {engine} {sorted(asdict(shape).items())}"

        def fit() -> list[Any]:
            self.report(f"fitting {shape.steps} rows by least squares")
            seed = self.seed + self.request.images[1]
            return fitted_program(shape, contender.session, self.judge.pool, seed).mix.tolist()  # type: ignore[no-any-return]

        mix = remembered(self.study, key, fit)
        return replace(program_of(shape, contender.bundle), mix=np.array(mix))


@contextmanager
def begun(request: TuneRequest, report: Report, note: Callable[[str], object]) -> Iterator[Work]:
    """Everything that a search needs; what is measured at its first run stays. Raises DitedgeError."""
    request.check()
    bundles = [open_bundle(path) for path in request.engine]
    check_bundles(request, bundles)
    see = seen_by(request, bundles[0])
    real = see.real(bundles[0], report)
    names = tuple(bundle.folder.absolute().name for bundle in bundles)
    with opened_storage(request.folder / JOURNAL) as storage, ExitStack() as stack:
        sessions = [stack.enter_context(Session(bundle, request.options)) for bundle in bundles]
        pool = pool_of(bundles[0], request.prompts, report)
        space = space_of(bundles[0], names, (), request.limit)
        study = begin_study(storage, "search", space.starts(), request.limit is not None, request.seed)
        check_same(study, _settings(request, bundles, names), request.folder)
        report("measuring what a step costs")
        costs = [Costs(**remembered(study, f"costs {i}", _costs_of(one, pool))) for i, one in enumerate(sessions)]
        check_affordable(request.limit, costs)
        sample = sampled_elsewhere(request, bundles, pool, stack)
        judge = Judge(pool, see.see, np.zeros((0, 0)), request.batch, report, sample)
        reference = real if real is not None else see.own(sessions[0], judge, note, request.folder, study)
        contenders = [Contender(*parts) for parts in zip(names, bundles, sessions, costs, strict=True)]
        judge, space = replace(judge, reference=reference), replace(space, costs=tuple(costs))
        before = study.user_attrs.get("seconds", 0.0)
        work = Work(request, contenders, judge, storage, study, space, report, before, time.monotonic())
        try:
            yield work
        finally:
            study.set_user_attr("seconds", work.seconds)


def check_bundles(request: TuneRequest, bundles: Sequence[Bundle]) -> None:
    """Raises RequestError for bundles that cannot be tuned together, or at all."""
    names = [bundle.folder.absolute().name for bundle in bundles]
    for i, bundle in enumerate(bundles):
        if bundle.manifest.model.prediction == "mean-flow":
            raise RequestError(f"{bundle.folder} is told how far its steps go, and samplers that are searched are not")
        if request.write:
            check_can_be_added(bundle)
        for what, a, b in differences(bundles[0], bundle):
            raise RequestError(f"{bundles[0].folder} and {bundle.folder} cannot be tuned together: {what} {a} and {b}")
        if names[i] in names[:i]:
            raise RequestError(f"--engine {bundle.folder}: two bundles are called '{names[i]}': rename one")
        bundle.require(picture_graph(bundle))


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
