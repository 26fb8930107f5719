"""Ranges of the numbers on the command line: what no model and no machine can mean is refused before any work."""

from __future__ import annotations

import math
from typing import Any

import click


class Finite(click.ParamType):  # type: ignore[type-arg]  # generic only in new versions of click
    """A number that is not infinite and not "nan", which no comparison refuses later."""

    name = "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number", param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


FINITE = Finite()
BATCH = click.IntRange(1, 1024)  # tables of guidance grow with its square: 2 GB at 10,000
IMAGES = click.IntRange(1, 1_000_000)
OPTIONAL_IMAGES = click.IntRange(0, 1_000_000)
CALIBRATION_IMAGES = click.IntRange(1, 100_000)
SEED = click.IntRange(0, 2**64 - 1)
THREADS = click.IntRange(0, 4096)
HEADS = click.IntRange(1, 4096)
CHANNELS = click.IntRange(1, 1 << 20)
PIXELS = click.IntRange(1, 1 << 20)
MEGABYTES = click.IntRange(0, 1 << 30)
ROUNDS = click.IntRange(0, 10_000)
LAYERS = click.IntRange(0, 1 << 20)
