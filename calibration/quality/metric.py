"""What a metric of `compare` has to say of itself. Each file of metrics/ fills in one `Metric`; METRICS lists them.

A metric's numbers stand in quality.json under the names of its `fields`; the limits that can be set on them are options
of `compare` and `quantize`; its lines and cards are what both print and what the report shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ...runtime.bundle.open import Bundle
from ...runtime.report import Report
from ...runtime.samplers.program import Program
from ...runtime.sets.finished import FinishedSet
from ..pool import Pool, Subject
from .request import CompareRequest

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]

Quality = Any  # record.Quality, whose fields are those of METRICS and so not known here
Line = tuple[str, str, str, str]  # figure, A, B, what chance does: A with other seeds
Card = tuple[str, str, str]  # name, value, note


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Comparing:
    """What is compared, and how: known before the first image is sampled."""

    a: Bundle
    b: Bundle
    request: CompareRequest
    program: Program
    guidance: float
    report: Report
    pool: Pool  # what the images are of
    samples: FinishedSet | None = None  # A's pictures, where they need not be sampled

    @property
    def subjects(self) -> list[Subject]:
        """Of all images."""
        return self.pool.cycled(0, self.request.count)


@dataclass(frozen=True)
class Batch:
    """Some images of both bundles, and of A with other seeds: latents float32, pictures uint8 [B, h, w, 1 or 3]."""

    a: np.ndarray | None  # [N, B, C, H, W], after each step; where A's pictures are of a set: of the first batch alone
    b: np.ndarray
    other: np.ndarray | None  # [B, C, H, W], the final ones; without a feature extractor of the first batch alone, too
    pictures_a: np.ndarray | None  # None: a bundle without decoder
    pictures_b: np.ndarray | None
    pictures_other: np.ndarray | None


class Measure(Protocol):
    """A metric at work."""

    def add(self, batch: Batch) -> None:
        """Takes what it needs of a batch, which is dropped afterwards."""

    def fields(self) -> dict[str, Any]:
        """Its fields of quality.json, when every batch was added."""


@dataclass(frozen=True)
class Measured:
    """What a comparison measures besides what it always does."""

    features: bool  # a feature extractor is given
    reference: bool  # real pictures, too
    pictures: bool  # both bundles have decoders
    speed: bool
    classes: bool = True  # the images are of classes


@dataclass(frozen=True)
class Limit:
    """One limit of the gate, unset unless somebody asks for it.

    option: "max_drift" or "min_psnr", a field of Gate. measured: None where nothing is finite, infinity where equal.
    """

    option: str
    name: str  # in quality.json
    what: str  # is measured: begins the sentence
    unit: str
    help: str
    measured: Callable[[Quality], float | None]
    available: Callable[[Measured], bool] = lambda measured: True
    needs: str = ""  # where it is not: ends the sentence "--max-x needs ..."

    @property
    def flag(self) -> str:
        return "--" + self.option.replace("_", "-")

    @property
    def is_least(self) -> bool:
        return self.option.startswith("min_")


@dataclass(frozen=True)
class Metric:
    """fields: of quality.json, name -> type; one that may be absent allows None.

    start: before anything is sampled; None where it is not asked for. Raises RequestError.
    lines: of the table; cards and notes: of the report.
    """

    fields: Mapping[str, Any]
    start: Callable[[Comparing], Measure | None]
    lines: Callable[[Quality], Iterable[Line]]
    cards: Callable[[Quality], Iterable[Card]] = lambda quality: ()
    notes: Callable[[Quality], Iterable[str]] = lambda quality: ()
    limits: tuple[Limit, ...] = ()


def number(value: float | None) -> str:
    if value is None:
        return "not finite"
    return "0" if value == 0 else f"{value:.4f}" if value >= 0.001 else f"{value:.1e}"


def decibels(value: float | None) -> str:
    return "equal" if value is None else f"{value:.1f} dB"


def size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
