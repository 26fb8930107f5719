"""The search space, as Optuna is asked for it: whatever a trial says is a shape that can be made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...runtime.bundle.open import Bundle
from .costs import PASSES, Costs
from .request import Budget
from .shapes import SOLVERS, SPACINGS, Shape, can_guide, ratios_of_model
from .starts import STARTS

FEWEST_PASSES, MOST_PASSES = 4, 40  # where no budget says how many
SCALES, RAMPS, RHOS, SHARES = (1.2, 10.0), (0.1, 4.0), (1.5, 30.0), (0.0, 1.0)
GAPS, FACTORS, ENDS = 0.6, 0.7, 0.3  # logarithms by which gaps, guidance and the ends move in a neighbourhood
BEGIN, END = 12.0, 100.0  # the first ratio is at least this, and the last at least this times the smallest


@dataclass(frozen=True)
class Space:
    """engines: names of the bundles that take part. costs: of each, on this machine. guided: whether guidance acts."""

    engines: tuple[str, ...]
    costs: tuple[Costs, ...]
    budget: Budget | None
    firsts: tuple[float, float]  # ratios
    lasts: tuple[float, float]
    guided: bool

    def shape(self, trial: Any) -> tuple[int, Shape] | None:
        """(which engine, the shape) of an Optuna trial; None: its budget is not enough for a step."""
        engine = self.engines.index(trial.suggest_categorical("engine", self.engines)) if len(self.engines) > 1 else 0
        most = self.budget.most if self.budget is not None else self._passes(trial)
        in_passes = self.budget is None or self.budget.passes
        costs = PASSES if in_passes else self.costs[engine]
        share = trial.suggest_float("share", *SHARES) if self.guided else 0.0
        steps, guided = costs.steps_within(most, share)
        if not steps:
            return None
        return engine, Shape(
            sampler=trial.suggest_categorical("sampler", list(SOLVERS)),
            spacing=trial.suggest_categorical("spacing", list(SPACINGS)),
            rho=trial.suggest_float("rho", *RHOS, log=True),
            first=trial.suggest_float("first", *self.firsts, log=True),
            last=trial.suggest_float("last", *self.lasts, log=True),
            steps=steps,
            guided=guided,
            start=round((steps - guided) * trial.suggest_float("start", 0.0, 1.0)) if self.guided else 0,
            scale=trial.suggest_float("scale", *SCALES, log=True) if self.guided else 1.0,
            ramp=trial.suggest_float("ramp", *RAMPS, log=True) if self.guided else 1.0,
        )

    def starts(self) -> list[dict[str, Any]]:
        """What a search tries first (`starts.py`), inside this space."""
        return [self._inside(values) for values in STARTS]

    def _inside(self, values: Mapping[str, Any]) -> dict[str, Any]:
        ranges = {
            "first": self.firsts,
            "last": self.lasts,
            "scale": SCALES,
            "ramp": RAMPS,
            "rho": RHOS,
            "share": SHARES,
        }
        inside = {
            name: min(max(value, ranges[name][0]), ranges[name][1]) if name in ranges else value
            for name, value in values.items()
        }
        unused = {"share", "start", "scale", "ramp"} if not self.guided else set()
        return {name: value for name, value in inside.items() if name not in unused}

    def _passes(self, trial: Any) -> float:
        return float(trial.suggest_int("passes", FEWEST_PASSES, MOST_PASSES, log=True))


@dataclass(frozen=True)
class Around:
    """The neighbourhood of a shape: its steps and the guided ones stay, so what it costs does."""

    engine: int
    shape: Shape
    space: Space

    def ask(self, trial: Any) -> tuple[int, Shape]:
        """(which engine, the shape) of an Optuna trial: every gap, every guided step and both ends move freely."""
        shape, gaps = self.shape, self.shape.steps - 1
        return self.engine, replace(
            shape,
            first=self._moved(trial, "first", shape.first, self.space.firsts),
            last=self._moved(trial, "last", shape.last, self.space.lasts),
            gaps=tuple(trial.suggest_float(f"gap {i}", -GAPS, GAPS) for i in range(gaps)),
            factors=tuple(trial.suggest_float(f"factor {i}", -FACTORS, FACTORS) for i in range(shape.guided)),
        )

    def start(self) -> dict[str, Any]:
        """The shape as it is."""
        names = ["first", "last", *(f"gap {i}" for i in range(self.shape.steps - 1))]
        return dict.fromkeys([*names, *(f"factor {i}" for i in range(self.shape.guided))], 0.0)

    def _moved(self, trial: Any, name: str, value: float, bounds: tuple[float, float]) -> float:
        moved = value * math.exp(trial.suggest_float(name, -ENDS, ENDS))
        return min(max(moved, bounds[0]), bounds[1])


def space_of(bundle: Bundle, engines: tuple[str, ...], costs: tuple[Costs, ...], budget: Budget | None) -> Space:
    """Of one model in several precisions; bundle: any of them."""
    largest, smallest = ratios_of_model(bundle)
    begin = min(BEGIN, math.sqrt(largest))
    lasts = (2 * smallest, min(END * smallest, begin / 2))
    return Space(engines, costs, budget, (begin, largest), lasts, can_guide(bundle))
