"""The engines that can load a graph: a new one is a file and a line here (docs/adding-an-engine.md)."""

from __future__ import annotations

from pathlib import Path

from ..bundle.held_files import HeldGraph
from ..errors import EngineError
from .engine import Engine, EngineKind, EngineOptions
from .engine_openvino import OPENVINO
from .engine_ort import ONNX_RUNTIME

ENGINES: dict[str, EngineKind] = {"ONNX Runtime": ONNX_RUNTIME, "OpenVINO": OPENVINO}


def providers() -> dict[str, str]:
    """What `--provider` may be -> what it is, of every engine."""
    return {name: text for kind in ENGINES.values() for name, text in kind.providers.items()}


def kind_of(provider: str) -> EngineKind:
    """The engine that has a provider. Raises EngineError."""
    for kind in ENGINES.values():
        if kind.has(provider):
            return kind
    raise EngineError(f"there is no provider '{provider}'; there are: {', '.join(providers())}; see `ditedge doctor`")


def open_engine(graph: HeldGraph | Path, options: EngineOptions) -> Engine:
    """Loads a graph on the engine that has the provider of the options. Raises EngineError, BundleError."""
    kind = kind_of(options.provider)
    path = graph if isinstance(graph, Path) else graph.file.path
    if path.suffix != ".onnx":
        raise EngineError(
            f"{path}: no engine for '{path.suffix}' files; give the bundle folder, a graph (.onnx) or a .plan"
        )
    return kind.open(graph, options)
