"""The search: Optuna says what to try, few pictures say whether it is worth more of them.

With a budget a trial has one objective, its distance, and Optuna's pruner ends it after the first rung. Without one it
has two, cost and distance, and Optuna's multi-objective TPE looks for the whole front.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...runtime.bundle.open import Bundle
from ...runtime.errors import ProgramError
from ...runtime.loop.session import Session
from ...runtime.report import Report, silent
from .costs import Costs
from .front import GOOD_SHARE, promising
from .judge import Drawn, Judge
from .shapes import Shape, program_of

STARTUP = 24  # trials at random, before TPE has something to learn from
LAST_RUNG = 1  # of the two that a trial climbs
BAD = 1e30  # the distance of a program that cannot be made, or makes no pictures


@dataclass(frozen=True)
class Contender:
    """A bundle that takes part, loaded, and what its steps cost."""

    name: str
    bundle: Bundle
    session: Session
    costs: Costs


@dataclass(frozen=True)
class Candidate:
    """A trial that went through all rungs of the search. cost: seconds of an image, from the costs of its steps."""

    number: int
    engine: int
    shape: Shape
    cost: float
    distance: float


def begin_study(storage: Any, name: str, starts: Sequence[Mapping[str, Any]], single: bool, seed: int) -> Any:
    """The Optuna study of this name in the storage, as it was left. A trial that a dead process left is failed.

    starts: what it tries first. single: distance is its one objective; else cost and distance are two.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions = ["minimize"] * (1 if single else 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what Optuna calls experimental
        study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True, directions=directions)
        study.sampler = optuna.samplers.TPESampler(
            multivariate=True, n_startup_trials=STARTUP, seed=(seed + len(study.trials)) % 2**32
        )
        study.pruner = optuna.pruners.PercentilePruner(100 * GOOD_SHARE, n_startup_trials=STARTUP // 3)
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    if not study.trials:
        for values in starts:
            study.enqueue_trial(dict(values))
    return study


def tried(study: Any) -> list[Any]:
    """Trials that came to an end: not those that were killed."""
    from optuna.trial import TrialState

    return list(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))


def search(
    study: Any,
    ask: Callable[[Any], tuple[int, Shape] | None],
    contenders: Sequence[Contender],
    judge: Judge,
    rungs: tuple[int, int],
    seed: int,
    trials: int,
    report: Report = silent,
) -> None:
    """Tries programs until there are `trials`. What is done is in the storage, whatever ends this.

    ask: of a trial, (which contender, the shape), or None where nothing can be made.
    """
    done, best = len(tried(study)), math.inf
    for one in tried(study):
        best = min(best, one.user_attrs.get("distance", math.inf) if one.user_attrs.get("rung") else math.inf)
    while done < trials:
        report(_told(best), done, trials)
        trial = study.ask()
        said = ask(trial)
        if said is None:
            study.tell(trial, [BAD] * len(study.directions))
            distance = BAD
        else:
            distance = _climb(study, trial, contenders[said[0]], said, judge, rungs, seed)
        best = min(best, distance)
        done += 1
    report(_told(best), done, trials)


def _told(best: float) -> str:
    return "trials" if best >= BAD else f"trials, best distance so far {best:.3f}"


def _climb(
    study: Any,
    trial: Any,
    contender: Contender,
    said: tuple[int, Shape],
    judge: Judge,
    rungs: tuple[int, int],
    seed: int,
) -> float:
    """Measures a trial as far as it deserves, and tells the study -> its distance on the last rung, or BAD."""
    from optuna.trial import TrialState

    engine, shape = said
    cost = contender.costs.of(shape.steps, shape.guided)
    trial.set_user_attr("engine", engine)
    trial.set_user_attr("shape", asdict(shape))
    trial.set_user_attr("cost", cost)
    distance, drawn, single = BAD, Drawn(), len(study.directions) == 1
    try:
        program = program_of(shape, contender.bundle)
        for rung, count in enumerate(rungs):
            finite = judge.draw(contender.session, program, seed, count, drawn)
            distance = judge.distance(drawn) if finite else BAD
            trial.set_user_attr("rung", rung)
            trial.set_user_attr("distance", distance)
            if not math.isfinite(distance) or distance >= BAD:
                distance = BAD
                break
            if rung == 0 and not _goes_on(study, trial, single, cost, distance):
                study.tell(trial, state=TrialState.PRUNED) if single else study.tell(trial, [cost, distance])
                return BAD
    except ProgramError:
        distance = BAD
    study.tell(trial, distance if single else [cost, distance])
    return distance


def _goes_on(study: Any, trial: Any, single: bool, cost: float, distance: float) -> bool:
    trial.set_user_attr("first", distance)
    if single:
        trial.report(distance, 0)
        return not trial.should_prune()
    others = [(one.user_attrs["cost"], one.user_attrs["first"]) for one in tried(study) if "first" in one.user_attrs]
    return promising(cost, distance, others)


def candidates(study: Any) -> list[Candidate]:
    """All trials that reached the search's last rung, best first."""
    found = [
        Candidate(
            number=trial.number,
            engine=trial.user_attrs["engine"],
            shape=shape_from(trial.user_attrs["shape"]),
            cost=trial.user_attrs["cost"],
            distance=trial.user_attrs["distance"],
        )
        for trial in tried(study)
        if trial.user_attrs.get("rung") == LAST_RUNG and trial.user_attrs["distance"] < BAD
    ]
    return sorted(found, key=lambda one: (one.distance, one.cost))


def shape_from(values: Mapping[str, Any]) -> Shape:
    """From what JSON made of one."""
    return Shape(**{key: _frozen(value) for key, value in values.items()})


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
