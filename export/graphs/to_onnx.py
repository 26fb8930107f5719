"""A torch module to an ONNX file: names, dynamic sizes, opset, external weights."""

from __future__ import annotations

import contextlib
import gc
import inspect
import io
import logging
import warnings
from ast import literal_eval
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from ...calibration.graph.linears import Linear, find_linears
from ...calibration.graph.surgery import save_graph
from ..options import DEFAULT_OPSET

TRACES = ("name_scopes", "class_hierarchy")  # of the exporter, which say where in the module a node comes from


def onnx_from_module(
    module: nn.Module,
    inputs: dict[str, Tensor],
    output: str | list[str],
    dynamic: dict[str, dict[int, str]],
    path: Path,
    opset: int = DEFAULT_OPSET,
) -> None:
    """Exports `module(**inputs)` to `path` (and `path.data` above 64 MB of weights).

    dynamic: per input, dimension -> the name it has in the graph ("B"), or a name plus a constant ("K+2"), or times one
    ("2*h"). Example inputs need sizes of at least 2 there, all different, or the exporter takes them for constants.
    Paths of this machine are not written.
    """
    sizes = {name: torch.export.Dim(name, min=1, max=1 << 20) for name in _names(dynamic)}
    shapes = {name: {d: _size(n, sizes) for d, n in dynamic.get(name, {}).items()} for name in inputs}
    with torch.no_grad(), _quiet(), _quick():
        program = torch.onnx.export(
            module,
            args=tuple(inputs.values()),
            dynamo=True,
            opset_version=opset,
            input_names=list(inputs),
            output_names=[output] if isinstance(output, str) else output,
            dynamic_shapes=_of_arguments(module, list(shapes.values())),
            optimize=True,
            verbose=False,
        )
    assert program is not None
    model = program.model
    _name_linears(model)
    _strip_traces(model)
    save_graph(model, path)


def _of_arguments(module: nn.Module, shapes: list[Any]) -> tuple[Any, ...]:
    """The shapes of positional arguments as `forward` takes them: those of its `*arguments` are one tuple."""
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return tuple(shapes)
    named = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*shapes[:named], tuple(shapes[named:]))


def _names(dynamic: dict[str, dict[int, str]]) -> list[str]:
    return sorted({_base(name) for dimensions in dynamic.values() for name in dimensions.values()})


def _base(name: str) -> str:
    """ "K" of "K+2", "h" of "2*h"."""
    return name.split("+")[0].split("*")[-1]


def _size(name: str, sizes: dict[str, Any]) -> Any:
    """The export dimension of "K", of "K+2", or of "2*h"."""
    (times, _, _), (_, _, offset) = name.rpartition("*"), name.partition("+")
    return int(times or 1) * sizes[_base(name)] + int(offset or 0)


def _name_linears(model: ir.Model) -> None:
    """Gives the product of a linear layer the layer's name where its bias does not: where it has none, or one that
    equals another layer's, of which the exporter keeps one. Its folded weight has lost its own."""
    layers: dict[str, list[Linear]] = {}
    for linear in find_linears(model):
        scopes, classes = (
            literal_eval(linear.node.metadata_props.get(f"pkg.torch.onnx.{key}", "[]")) for key in TRACES
        )
        if classes[-2:] == [f"{nn.Linear.__module__}.Linear", "aten.linear.default"]:
            layers.setdefault(scopes[-2], []).append(linear)
    for name, linears in layers.items():
        if len(linears) == 1 and linears[0].name != name.removeprefix("network."):  # one that is used twice stays two
            linears[0].node.name = name


def _strip_traces(model: ir.Model) -> None:
    """Removes the exporter's stack traces: they hold paths of the exporting machine and double a small graph's size."""
    model.metadata_props.clear()
    model.producer_name, model.producer_version = "ditedge", None
    for graph in model.graphs():
        graph.doc_string = None
        graph.metadata_props.clear()
        for value in [*graph.inputs, *graph.outputs, *graph.initializers.values()]:
            value.metadata_props.clear()
        for node in graph:
            node.doc_string = None
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its progress and its deprecations on stdout, stderr and the log; none is for the user."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)


@contextlib.contextmanager
def _quick() -> Iterator[None]:
    """The same graph in two thirds of the time.

    PyTorch remembers what operators make of sizes, and where they are symbols the look-up costs more than they do.
    A trace makes millions of objects, most of which stay: Python seldom looks for what does not.
    """
    from torch._dynamo import config  # takes a second to import, which export does anyway

    thresholds, caches = gc.get_threshold(), hasattr(config, "fake_tensor_cache_enabled")
    gc.set_threshold(100_000, 20, 50)
    try:
        with config.patch(fake_tensor_cache_enabled=False) if caches else contextlib.nullcontext():
            yield
    finally:
        gc.set_threshold(*thresholds)
