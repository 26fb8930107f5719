"""A step graph that also gives back what its linears are fed, as a few rows of numbers for each."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from ..graph.linears import Linear, find_linears
from ..graph.surgery import constant, insert

CHANNEL_ROWS = ("max", "min", "sum", "square")  # of "channels": [4, I]
TOKEN_ROWS = ("amax", "amax_sum")  # of "tokens": [2, T]: the largest, and the sum over evaluations


def instrument(model: Any) -> dict[str, tuple[int, int]]:
    """Adds outputs of each linear, NAME:channels [4, I] and NAME:tokens [2, T] -> {name: (I, T)}. In place.

    Where the input has no token axis of known size, T is 0: NAME:tokens [2, 1] is of all rows together, and NAME:rows
    [1] int64 says how many there were.
    """
    shapes = {}
    for linear in find_linears(model):
        shape = linear.input.shape
        positional = shape is not None and len(shape) == 3 and isinstance(shape[1], int)
        shapes[linear.name] = (linear.features[0], int(shape[1]) if positional else 0)
        _add_channel_rows(model, linear)
        _add_token_rows(model, linear, positional)
        if not positional:
            _add_row_count(model, linear)
    return shapes


def _add_channel_rows(model: Any, linear: Linear) -> None:
    name, node = linear.name, linear.node
    rows_shape = constant(model, f"{name}:rows_shape", np.array([-1, linear.features[0]]))
    rows = insert(model, node, "Reshape", [linear.input, rows_shape], f"{name}:flat")
    first = constant(model, ":first_axis", np.array([0]))
    kinds = ("ReduceMax", "ReduceMin", "ReduceSum", "ReduceSumSquare")
    reduced = [insert(model, node, kind, [rows, first], f"{name}:{kind}", keepdims=1) for kind in kinds]
    model.graph.outputs.append(_typed(insert(model, node, "Concat", reduced, f"{name}:channels", axis=0)))


def _add_token_rows(model: Any, linear: Linear, positional: bool) -> None:
    name, node = linear.name, linear.node
    size = insert(model, node, "Abs", [linear.input], f"{name}:abs")
    last = constant(model, ":last_axis", np.array([-1]))
    amax = insert(model, node, "ReduceMax", [size, last], f"{name}:amax", keepdims=0)  # [E, T]
    shape = constant(model, ":by_token" if positional else ":one_token", np.array([0, -1] if positional else [-1, 1]))
    amax = insert(model, node, "Reshape", [amax, shape], f"{name}:by_token")
    first = constant(model, ":first_axis", np.array([0]))
    rows = [insert(model, node, kind, [amax, first], f"{name}:token_{kind}") for kind in ("ReduceMax", "ReduceSum")]
    model.graph.outputs.append(_typed(insert(model, node, "Concat", rows, f"{name}:tokens", axis=0)))


def _add_row_count(model: Any, linear: Linear) -> None:
    name, node = linear.name, linear.node
    sizes = insert(model, node, "Shape", [linear.input], f"{name}:sizes", start=0, end=-1)
    first = constant(model, ":first_axis", np.array([0]))
    count = insert(model, node, "ReduceProd", [sizes, first], f"{name}:count", keepdims=1)
    count.name, count.type = f"{name}:rows", ir.TensorType(ir.DataType.INT64)
    model.graph.outputs.append(count)


def _typed(value: Any) -> Any:
    value.type = ir.TensorType(ir.DataType.FLOAT)
    return value
