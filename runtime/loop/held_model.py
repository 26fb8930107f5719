"""A held graph as what an onnxruntime.InferenceSession is made of."""

from __future__ import annotations

import os
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
    in other files go by links to descriptors, which it maps; of weights in memory it makes two copies, too, but it
    takes no other from files that were moved out of their folder or deleted (and before 1.24 it takes none).
    Raises BundleError when one of them is not what was hashed any more, before or after it was used.
    """
    if isinstance(graph, Path):
        yield str(graph)
        return
    graph.check()
    with ExitStack() as stack:
        takes_memory = hasattr(settings, "add_external_initializers_from_files_in_memory")
        if graph.external and (_in_one_folder(graph) or not takes_memory):
            yield stack.enter_context(_linked(graph))
        else:
            maps = [stack.enter_context(file.map()) for file in graph.external.values()]
            if maps:
                settings.add_external_initializers_from_files_in_memory([*graph.external], maps, [*map(len, maps)])
            yield graph.file.alias() or bytes(stack.enter_context(graph.file.map()))
    graph.check()


def _in_one_folder(graph: HeldGraph) -> bool:
    """Whether the weights are where ONNX Runtime lets a graph's weights be: below its folder, all of them there."""
    aliases = [file.alias() for file in (graph.file, *graph.external.values())]
    if not all(alias is not None and os.path.exists(os.readlink(alias)) for alias in aliases):
        return False
    places = [Path(os.readlink(alias)) for alias in aliases if alias is not None]
    return all(place.is_relative_to(places[0].parent) for place in places)


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
