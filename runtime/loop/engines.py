"""The engines that can load a graph, by the suffix of its file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..bundle.held_files import HeldGraph
from ..errors import EngineError
from .engine import Engine, EngineOptions
from .engine_ort import OrtEngine

ENGINES: dict[str, Callable[[HeldGraph | Path, EngineOptions], Engine]] = {".onnx": OrtEngine}


def open_engine(graph: HeldGraph | Path, options: EngineOptions) -> Engine:
    """Loads a graph: a bundle's as it was hashed, or a file of our own by name. Raises EngineError."""
    path = graph if isinstance(graph, Path) else graph.file.path
    if path.suffix not in ENGINES:
        raise EngineError(
            f"{path}: no engine for '{path.suffix}' files; "
            f"give the bundle folder, a graph ({', '.join(ENGINES)}) or a .plan"
        )
    return ENGINES[path.suffix](graph, options)
