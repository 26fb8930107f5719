"""How a flow model's pipeline spaces its steps, where not evenly: a shift that it was given, or one of each size."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from ..errors import ProgramError
from ..fields import MAX_NUMBER, Count, Finite, Strict
from .flow import flow_grid, flow_grid_from_sigmas, shifted
from .grid import Grid

Positive = Annotated[float, Field(gt=0, le=MAX_NUMBER)]


class FewSteps(Strict):
    """Another line of mu, for `steps` steps, where that of `SizeShift` is for `most_steps` (FLUX.2)."""

    steps: Count
    most_steps: Count
    base_mu: Finite  # at the same numbers of image tokens
    most_mu: Finite

    @model_validator(mode="after")
    def _check(self) -> FewSteps:
        if self.most_steps <= self.steps:
            raise ValueError(f"most_steps {self.most_steps} is not above steps {self.steps}")
        return self


class SizeShift(Strict):
    """A shift that grows with the picture: mu is linear in the number of image tokens (Esser et al. 2024, 5.3.2).

    kind: "exponential", the shift is e^mu (FLUX.1); "linear", it is mu. few: mu of up to most_tokens is linear in the
    number of steps, too.
    """

    base_tokens: Count
    base_mu: Finite
    most_tokens: Count
    most_mu: Finite
    kind: Literal["exponential", "linear"] = "exponential"
    few: FewSteps | None = None

    @model_validator(mode="after")
    def _check(self) -> SizeShift:
        if self.most_tokens <= self.base_tokens:
            raise ValueError(f"most_tokens {self.most_tokens} is not above base_tokens {self.base_tokens}")
        return self

    def of(self, tokens: int, steps: int) -> float:
        """The shift of a picture of so many tokens in so many steps; linear beyond the ends. Raises ProgramError."""
        mu, few = self._on_line(tokens, self.base_mu, self.most_mu), self.few
        if few is not None and tokens <= self.most_tokens:
            slope = (mu - self._on_line(tokens, few.base_mu, few.most_mu)) / (few.most_steps - few.steps)
            mu += slope * (steps - few.most_steps)
        shift = math.exp(min(mu, 80.0)) if self.kind == "exponential" else mu
        if shift <= 0:
            raise ProgramError(f"the shift of {tokens} image tokens is {shift:g}, not above 0")
        return shift

    def _on_line(self, tokens: int, base_mu: float, most_mu: float) -> float:
        slope = (most_mu - base_mu) / (self.most_tokens - self.base_tokens)
        return tokens * slope + (base_mu - slope * self.base_tokens)


class FlowInfo(Strict):
    """The field `flow` of a manifest: how steps are spaced that nobody spaces otherwise.

    spacing: "even" divides sigma from 1 to 0; "trained" from 1 to the last point of training, 1 / trained, both of
    them shifted before the points between them are shifted once more, as FlowMatchEulerDiscreteScheduler does.
    """

    shift: Positive = 1.0  # where by_size is null
    by_size: SizeShift | None = None
    spacing: Literal["even", "trained"] = "even"
    trained: Count = 1000

    @property
    def few(self) -> FewSteps | None:
        return self.by_size.few if self.by_size is not None else None

    def shift_of(self, tokens: int | None, steps: int) -> float:
        """tokens: of the picture, where the shift depends on them. Raises ProgramError."""
        if self.by_size is None:
            return self.shift
        if tokens is None:
            raise ProgramError("the steps of this model depend on the picture's size: say its number of image tokens")
        return self.by_size.of(tokens, steps)

    def grid(self, steps: int, shift: float, timestep_scale: float, data_at_one: bool) -> Grid:
        """So many steps, shifted. Raises ProgramError."""
        if self.spacing == "even":
            return flow_grid(steps, shift=shift, timestep_scale=timestep_scale, data_at_one=data_at_one)
        ends = np.array([1.0, 1 / self.trained])
        first, last = ends if self.by_size is not None else shifted(ends, shift)
        sigma = shifted(np.linspace(first, last, steps), shift)
        return flow_grid_from_sigmas(sigma, timestep_scale=timestep_scale, data_at_one=data_at_one)
