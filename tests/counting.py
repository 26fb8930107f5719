"""An engine that counts its runs."""

from __future__ import annotations

from typing import Any


class Counting:
    def __init__(self, engine: Any) -> None:
        self.engine, self.inputs, self.runs = engine, engine.inputs, 0

    def run(self, *arguments: Any) -> None:
        self.runs += 1
        self.engine.run(*arguments)

    def close(self) -> None:
        self.engine.close()
