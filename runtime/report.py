"""How long work tells what it is doing. Whoever shows it (a bar, lines, nothing) is the caller's affair."""

from __future__ import annotations

import math
from typing import Protocol


class Report(Protocol):
    """report("writing step.onnx"), or report("sampling", 3, 20) for work that can be counted."""

    def __call__(self, what: str, done: int = 0, total: int = 0) -> None: ...


def silent(what: str, done: int = 0, total: int = 0) -> None:
    """Tells nobody."""


def duration(seconds: float) -> str:
    """75 -> 1 min 15 s"""
    if seconds < 60:
        return f"{math.ceil(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
