"""How long work tells what it is doing. Whoever shows it (a bar, lines, nothing) is the caller's affair."""

from __future__ import annotations

from typing import Protocol


class Report(Protocol):
    """report("writing step.onnx"), or report("sampling", 3, 20) for work that can be counted."""

    def __call__(self, what: str, done: int = 0, total: int = 0) -> None: ...


def silent(what: str, done: int = 0, total: int = 0) -> None:
    """Tells nobody."""
