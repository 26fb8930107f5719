"""One step of A and of B in turns, each in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ....runtime.bench.contender import Wanted, bundle_contender
from ....runtime.bench.turns import interleave
from ..metric import Batch, Card, Comparing, Count, Limit, Line, Metric, Positive, Quality, Strict, size


class Timing(Strict):
    """Milliseconds of one step of the network, and the process's peak memory (conditioner and step loaded)."""

    median_ms: Positive
    min_ms: Positive
    max_ms: Positive
    peak_bytes: Count


class Speed(Strict):
    """Steps of A and B in turns, each in a process of its own. Ratios are A's time / B's: above 1, B is faster."""

    a: Timing
    b: Timing
    ratio: Positive  # median over rounds
    ratio_min: Positive
    ratio_max: Positive
    rounds: Count
    batch: Count
    evaluations: Count  # of the network in that step: twice the batch with guidance


class _Measure:
    """Times at the end, when nothing else runs."""

    def __init__(self, comparing: Comparing) -> None:
        self._comparing = comparing

    def add(self, batch: Batch) -> None:
        pass

    def fields(self) -> dict[str, Any]:
        comparing, request = self._comparing, self._comparing.request
        wanted = Wanted(request.speed_batch, comparing.guidance, ("step",))
        commands = [
            bundle_contender(bundle.folder, options, wanted, bundle.sha256)
            for bundle, options in ((comparing.a, request.options_a), (comparing.b, request.options_b))
        ]
        found = interleave(commands, request.speed_rounds, comparing.report)
        a, b = (np.array(laps.rounds("step")) for laps in found)
        ratios = a / b
        speed = Speed(
            a=_timing(a, found[0].peak_bytes),
            b=_timing(b, found[1].peak_bytes),
            ratio=float(np.median(ratios)),
            ratio_min=float(ratios.min()),
            ratio_max=float(ratios.max()),
            rounds=request.speed_rounds,
            batch=request.speed_batch,
            evaluations=found[0].facts["evaluations"],
        )
        return {"speed": speed}


def _timing(seconds: np.ndarray, peak_bytes: int) -> Timing:
    ms = 1000 * seconds
    return Timing(median_ms=float(np.median(ms)), min_ms=float(ms.min()), max_ms=float(ms.max()), peak_bytes=peak_bytes)


def _lines(quality: Quality) -> Iterator[Line]:
    s = quality.speed
    if s is not None:
        yield "one step", f"{s.a.median_ms:.1f} ms", f"{s.b.median_ms:.1f} ms", ""
        yield "speed against A", "", f"{s.ratio:.2f}x", ""
        yield "slowest, fastest round", "", f"{s.ratio_min:.2f}x, {s.ratio_max:.2f}x", ""
        yield "peak memory", size(s.a.peak_bytes), size(s.b.peak_bytes), ""


def _cards(quality: Quality) -> Iterator[Card]:
    if quality.speed is not None:
        yield "Speed", f"{quality.speed.ratio:.2f}x", f"{quality.speed.b.median_ms:.1f} ms a step"


def _notes(quality: Quality) -> Iterator[str]:
    s = quality.speed
    if s is not None:
        yield (
            f"Speed: {s.rounds} rounds of one step in turns, each bundle in a process of its own, batch {s.batch} "
            f"({s.evaluations} network evaluations)."
        )


METRIC = Metric(
    fields={"speed": Speed | None},  # None: not measured
    start=lambda comparing: _Measure(comparing) if comparing.request.speed_rounds else None,
    lines=_lines,
    cards=_cards,
    notes=_notes,
    limits=(
        Limit(
            "min_speedup", "speed", "speed of B over A", "x", "speed of the new bundle over the old one's.",
            lambda quality: quality.speed.ratio,
            lambda measured: measured.speed,
            "the speed measured: give --speed-rounds above 0",
        ),
    ),
)  # fmt: skip
