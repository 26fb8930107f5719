"""A graph that holds 16-bit numbers as an engine of the CPU that rounds as 16-bit hardware does."""

from __future__ import annotations

from pathlib import Path

from ...runtime.loop.engine import Engine, EngineOptions
from ...runtime.loop.engines import open_engine
from .lowering import emulated
from .surgery import load_graph, save_graph


def emulated_engine(path: Path, scratch: Path, options: EngineOptions | None = None) -> Engine:
    """Of the graph at `path`. Its file is left in `scratch`. Raises EngineError."""
    model = load_graph(path)
    emulated(model)
    save_graph(model, scratch / path.name)
    return open_engine(scratch / path.name, options or EngineOptions())
