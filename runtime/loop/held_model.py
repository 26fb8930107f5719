"""A held graph as what an onnxruntime.InferenceSession is made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..bundle.held_files import HeldGraph
from ..errors import EngineError
from ..replacing import scratch_folder


@contextmanager
def model_of(graph: HeldGraph | Path, settings: Any) -> Iterator[str | bytes]:
    """The first argument of InferenceSession; `settings`, its SessionOptions, are given the weights in other files.

    A graph goes by the descriptor that was hashed: from its bytes ONNX Runtime would make two copies more. Weights
    in other files go as mapped memory, and to versions that cannot take them (before 1.24) by links to descriptors.
    Raises BundleError when one of them is not what was hashed any more, before or after it was used.
    """
    if isinstance(graph, Path):
        yield str(graph)
        return
    graph.check()
    with ExitStack() as stack:
        if graph.external and not hasattr(settings, "add_external_initializers_from_files_in_memory"):
            yield stack.enter_context(_linked(graph))
        else:
            maps = [stack.enter_context(file.map()) for file in graph.external.values()]
            if maps:
                settings.add_external_initializers_from_files_in_memory([*graph.external], maps, [*map(len, maps)])
            yield graph.file.alias() or bytes(stack.enter_context(graph.file.map()))
    graph.check()


@contextmanager
def _linked(graph: HeldGraph) -> Iterator[str]:
    """A private folder in which the graph and its weights lie under the names that the graph has for them."""
    with scratch_folder() as folder:
        model = folder / graph.file.path.name
        for name, file in {model.name: graph.file, **graph.external}.items():
            alias, link = file.alias(), folder / name
            if alias is None:
                raise EngineError(f"{file.path}: weights beside a graph need a newer onnxruntime on this system")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(alias)
        yield str(model)
