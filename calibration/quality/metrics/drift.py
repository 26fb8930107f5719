"""How far B's latents are from A's at equal seeds, at every step; and how far A's own seeds are apart."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

import numpy as np

from ....runtime.errors import RequestError
from ....runtime.loop.decoded import psnr_of_error
from ....runtime.samplers.program import Program
from ..metric import Batch, Card, Comparing, Count, Finite, Limit, Line, Metric, Positive, Quality, Strict, number


class StepError(Strict):
    """Relative error of B's latents after one step. relative: over all images together; worst: of the worst image."""

    timestep: Finite
    relative: Positive | None  # None: no image of B is finite
    worst: Positive | None


class Drift(Strict):
    """Final latents of B against A's: ||b - a|| / ||a||. Images of B that are not finite are counted, not averaged."""

    relative: Positive | None  # all images together; None: no image of B is finite
    median: Positive | None  # over images
    worst: Positive | None
    psnr: Finite | None  # dB, the peak is the range of A's latents; None: equal, or nothing finite
    broken: Count  # images of B with numbers that are not finite


class DriftSums:
    """Errors of B's latents against A's, summed batch by batch in float64; no image is kept."""

    def __init__(self, steps: int) -> None:
        self._error, self._norm = np.zeros(steps), np.zeros(steps)  # squared, over finite images
        self._worst, self._finite = np.zeros(steps), np.zeros(steps, dtype=int)
        self._relative: list[np.ndarray] = []  # per image, of the final latents; NaN: not finite
        self._low, self._high, self._elements = np.inf, -np.inf, 0

    @property
    def count(self) -> int:
        return sum(map(len, self._relative))

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        """Trajectories a, b [N, B, C, H, W] float32. Raises RequestError when A itself is not finite."""
        a, b = (x.reshape(*x.shape[:2], -1) for x in (a, b))
        if not np.isfinite(a).all():
            raise RequestError("the reference bundle (--engine) makes numbers that are not finite: verify it first")
        for step in range(len(a)):
            x, y = a[step].astype(np.float64), b[step].astype(np.float64)
            finite = np.isfinite(y).all(axis=1)
            norm = np.sum(x**2, axis=1)
            error = np.sum((y[finite] - x[finite]) ** 2, axis=1)
            self._error[step] += error.sum()
            self._norm[step] += norm[finite].sum()
            self._finite[step] += finite.sum()
            relative = np.full(len(x), np.nan)
            relative[finite] = np.sqrt(error / norm[finite])
            if finite.any():
                self._worst[step] = max(self._worst[step], np.nanmax(relative))
        self._relative.append(relative)
        self._elements += int(finite.sum()) * x.shape[1]
        self._low, self._high = min(self._low, float(x.min())), max(self._high, float(x.max()))

    def steps(self, program: Program) -> list[StepError]:
        return [
            StepError(
                timestep=float(timestep),
                relative=float(np.sqrt(error / norm)) if finite else None,
                worst=float(worst) if finite else None,
            )
            for timestep, error, norm, worst, finite in zip(
                program.timestep, self._error, self._norm, self._worst, self._finite, strict=True
            )
        ]

    def add_alone(self, b: np.ndarray) -> None:
        """Final latents [B, C, H, W] of images that A was not sampled for: those that are not finite are counted."""
        finite = np.isfinite(b).reshape(len(b), -1).all(axis=1)
        self._relative.append(np.full(len(b) - finite.sum(), np.nan))

    def final(self) -> Drift:
        relative = np.concatenate(self._relative)
        finite = relative[np.isfinite(relative)]
        broken = len(relative) - len(finite)
        if not len(finite):
            return Drift(relative=None, median=None, worst=None, psnr=None, broken=broken)
        error = self._error[-1] / self._elements
        return Drift(
            relative=float(np.sqrt(self._error[-1] / self._norm[-1])),
            median=float(np.median(finite)),
            worst=float(finite.max()),
            psnr=psnr_of_error(error, self._high - self._low) if error > 0 else None,
            broken=broken,
        )


class _Measure:
    def __init__(self, comparing: Comparing) -> None:
        self._program = comparing.program
        self._sums, self._between = DriftSums(comparing.program.steps), DriftSums(1)

    def add(self, batch: Batch) -> None:
        if batch.a is None:
            self._sums.add_alone(batch.b[-1])
            return
        self._sums.add(batch.a, batch.b)
        if batch.other is not None:
            self._between.add(batch.a[-1:], batch.other[None])

    def fields(self) -> dict[str, Any]:
        return {
            "steps": self._sums.steps(self._program),
            "drift": self._sums.final(),
            "drift_between_seeds": self._between.final().relative or 0.0,
            "drift_between_seeds_count": self._between.count,
        }


def _lines(quality: Quality) -> Iterator[Line]:
    drift = quality.drift
    yield "drift of latents", "", number(drift.relative), number(quality.drift_between_seeds)
    yield "worst image's drift", "", number(drift.worst), ""
    if drift.broken:
        yield "images not finite", "0", str(drift.broken), ""


def _notes(quality: Quality) -> Iterator[str]:
    settings = quality.settings
    if settings.sample_set is not None:
        yield (
            f"A's pictures are those of the set {escape(settings.sample_set)}, which has no latents: errors and drift "
            f"are of the first {min(settings.batch, settings.count)} images, all else is of all."
        )


def _cards(quality: Quality) -> Iterator[Card]:
    yield "Drift", number(quality.drift.relative), f"other seeds: {number(quality.drift_between_seeds)}"


METRIC = Metric(
    fields={
        "steps": list[StepError],
        "drift": Drift,
        "drift_between_seeds": Positive,  # A with other seeds against A, same classes: how far pictures are apart
        "drift_between_seeds_count": Count,
    },
    start=_Measure,
    lines=_lines,
    cards=_cards,
    notes=_notes,
    limits=(
        Limit(
            "max_drift", "drift", "relative drift of the latents", "", "relative drift of the final latents.",
            lambda quality: quality.drift.relative,
        ),
    ),
)  # fmt: skip
