"""What a benchmark found: `bench --json` and the page are made of it."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from ..fields import Strict
from .turns import Laps

Positive = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=0)]


class Timing(Strict):
    """Milliseconds of one call."""

    median_ms: Positive
    p95_ms: Positive
    calls: Whole


class Ratio(Strict):
    """Seconds a step of the first contender / this one's, round by round: above 1, this one is faster."""

    median: Positive
    least: Positive
    most: Positive


class Row(Strict):
    """One contender. Everything that was not measured is None."""

    name: str
    status: Literal["ok", "wrong", "failed"]
    reason: str = ""  # why it is wrong, or failed
    megabytes: Positive | None = None  # of conditioner, context and step on disk
    load_seconds: Positive | None = None
    first_ms: Positive | None = None  # of the first call of its step: what is captured or compiled then is in it
    peak_megabytes: Positive | None = None  # of resident memory
    busy: Positive | None = None  # processors in use during a step, on average
    drift: Positive | None = None  # ||x - first|| / ||first|| of the latents of a short run
    parts: dict[str, Timing] = Field(default_factory=dict)  # by name, of contender.PARTS
    image: Timing | None = None  # of one image of the batch: everything that it takes
    images_per_second: Positive | None = None
    ratio: Ratio | None = None
    loop_share: Positive | None = None  # of a step's time that is spent outside the engine


class Machine(Strict):
    """What it ran on."""

    processor: str
    kernels: str  # of its int8 products
    processors: Whole  # that may be used
    memory_gigabytes: Positive
    load: Finite | None  # average of the last minute, before anything was timed
    gpu: str = ""


class Record(Strict):
    """The whole document."""

    made_by: str
    date: str
    machine: Machine
    what: str  # is computed
    batch: Whole
    threads: Whole  # 0: the cores that may be used
    evaluations: Whole  # of the network in a step
    steps: Whole  # of the program that an image is counted with
    rounds: Whole
    rows: list[Row]


def timing(seconds: list[float], per: float = 1.0) -> Timing:
    """Of calls, each for `per` things."""
    ms = 1000 * np.array(seconds) / per
    return Timing(median_ms=float(np.median(ms)), p95_ms=float(np.percentile(ms, 95)), calls=len(seconds))


def ratio_of(first: Laps, laps: Laps, part: str = "step") -> Ratio | None:
    """None where one of them has no such part."""
    if part not in first.calls or part not in laps.calls:
        return None
    pairs = list(zip(first.rounds(part), laps.rounds(part), strict=False))
    ratios = [a / max(b, 1e-12) for a, b in pairs]
    return Ratio(median=float(np.median(ratios)), least=min(ratios), most=max(ratios))


def measured(
    name: str,
    laps: Laps,
    first: Laps,
    batch: int,
    steps: int,
    *,
    drift: float | None,
    limit: float,
    megabytes: float | None = None,
) -> Row:
    """The row of a contender that ran. limit: the drift beyond which it computes something else."""
    parts = {part: timing([second for calls in laps.calls[part] for second in calls]) for part in laps.calls}
    image = _image(laps, batch, steps)
    told = drift if drift is not None and math.isfinite(drift) else None
    wrong = drift is not None and not drift <= limit
    reason = "its latents are not finite numbers of the same shape"
    if told is not None:
        reason = f"drift {told:.2g}, beyond {limit:.2g}"
    loop, step = parts.pop("loop", None), parts.get("step")
    return Row(
        name=name,
        status="wrong" if wrong else "ok",
        reason=reason if wrong else "",
        megabytes=megabytes,
        load_seconds=laps.load_seconds,
        first_ms=1000 * laps.first["step"] if "step" in laps.first else None,
        peak_megabytes=laps.peak_bytes / 1e6,
        busy=laps.busy.get("step"),
        drift=told,
        parts=parts,
        image=image,
        images_per_second=1000 / image.median_ms if image is not None and image.median_ms > 0 else None,
        ratio=ratio_of(first, laps),
        loop_share=loop.median_ms / (loop.median_ms + step.median_ms)
        if loop is not None and step is not None
        else None,
    )


def _image(laps: Laps, batch: int, steps: int) -> Timing | None:
    """By round: context and conditioner once, every step, the pictures, over the batch; None of a mere part of it."""
    if "step" not in laps.calls:
        return None
    by_part = {part: np.array(laps.rounds(part)) for part in laps.calls}
    whole = steps * (by_part["step"] + by_part.get("loop", 0.0))
    whole = whole + sum(by_part[part] for part in ("context", "conditioner", "decoder") if part in by_part)
    return timing(whole.tolist(), batch)
