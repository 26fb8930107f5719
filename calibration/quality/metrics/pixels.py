"""How far B's decoded pictures are from A's at equal seeds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ....runtime.loop.decoded import psnr_of_error
from ..metric import Batch, Card, Comparing, Finite, Limit, Line, Metric, Positive, Quality, Strict, decibels


class Pixels(Strict):
    """Decoded pictures, 0 to 255. A PSNR of None means equal pictures."""

    psnr: Finite | None  # dB, all images together
    median_psnr: Finite | None
    worst_psnr: Finite | None
    mean_difference: Positive  # mean |a - b|


class _Measure:
    def __init__(self, comparing: Comparing) -> None:
        self._error: list[np.ndarray] = []  # mean squared per image
        self._difference = 0.0

    def add(self, batch: Batch) -> None:
        if batch.pictures_a is None or batch.pictures_b is None:
            return
        difference = batch.pictures_a.astype(np.float64) - batch.pictures_b.astype(np.float64)
        self._error.append(np.mean(difference**2, axis=(1, 2, 3)))
        self._difference += float(np.abs(difference).mean(axis=(1, 2, 3)).sum())

    def fields(self) -> dict[str, Any]:
        if not self._error:
            return {"pixels": None}
        errors = np.concatenate(self._error)
        found = Pixels(
            psnr=_psnr(errors.mean()),
            median_psnr=_psnr(np.median(errors)),
            worst_psnr=_psnr(errors.max()),
            mean_difference=self._difference / len(errors),
        )
        return {"pixels": found}


def _psnr(error: Any) -> float | None:
    """dB; None, which JSON knows, for no error at all."""
    return psnr_of_error(float(error)) if error > 0 else None


def _lines(quality: Quality) -> Iterator[Line]:
    if quality.pixels is not None:
        yield "PSNR of pictures", "", decibels(quality.pixels.psnr), ""
        yield "worst picture's PSNR", "", decibels(quality.pixels.worst_psnr), ""


def _cards(quality: Quality) -> Iterator[Card]:
    if quality.pixels is not None:
        yield "PSNR", decibels(quality.pixels.psnr), f"worst picture: {decibels(quality.pixels.worst_psnr)}"


def _measured(quality: Quality) -> float | None:
    psnr: float | None = quality.pixels.psnr
    return float("inf") if psnr is None else psnr


METRIC = Metric(
    fields={"pixels": Pixels | None},  # None: a bundle without decoder
    start=_Measure,
    lines=_lines,
    cards=_cards,
    limits=(
        Limit(
            "min_psnr", "psnr", "PSNR of the pictures", " dB", "PSNR of the pictures, dB.", _measured,
            lambda measured: measured.pictures,
            "pictures, and a bundle has no decoder: limit --max-drift instead",
        ),
    ),
)  # fmt: skip
