"""A bias in front of the heads, added behind them: TensorRT then makes one kernel of what lies around it.

A Reshape splits a linear's output into heads and a Transpose moves them. With the bias in front of the Reshape,
TensorRT-RTX cuts the product into q, k and v, each with a kernel of its own for bias and transpose (and an int8 one is
computed in float16, of weights that are dequantised each time); behind it, one kernel does all three. The sums are the
same, number by number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from .surgery import constant


def add_bias_after_split(model: Any) -> int:
    """Swaps each Add of a constant vector with the Reshape that splits its last axis, in place -> how many there were.

    The last rewrite of a graph: linears are named by the bias beside them (`linears.find_linears`).
    """
    found = [(add, node) for node in model.graph if (add := _bias_before(node)) is not None]
    for add, reshape in found:
        (product, bias), split = add.inputs, _split(add, reshape)
        name = f"{bias.name}_{'x'.join(map(str, split))}"
        late = constant(model, name, bias.const_value.numpy().reshape(split))
        reshape.replace_input_with(0, product)
        _add_after(model, reshape, late)
        model.graph.remove(add, safe=True)
    return len(found)


def _bias_before(node: Any) -> Any:
    """The Add of a constant vector that nothing but `node`, a Reshape, reads; None where `node` is no such Reshape."""
    add = node.inputs[0].producer() if node.op_type == "Reshape" and not node.domain else None
    if add is None or add.op_type != "Add" or add.domain or node.outputs[0].is_graph_output():
        return None
    bias, total = add.inputs[1].const_value, add.outputs[0]
    if bias is None or len(bias.shape) != 1 or len(list(total.uses())) != 1 or total.is_graph_output():
        return None
    split = _split(add, node)
    return add if split and np.prod(split) == bias.shape[0] else None


def _split(add: Any, reshape: Any) -> tuple[int, ...]:
    """What the last axis becomes, (3, heads, D / heads); () where other axes change as well, or sizes are unknown."""
    whole, parts = add.outputs[0].shape, reshape.outputs[0].shape
    if whole is None or parts is None or list(whole[:-1]) != list(parts[: len(whole) - 1]):
        return ()
    split = parts[len(whole) - 1 :]
    return tuple(split) if len(split) > 1 and all(isinstance(size, int) for size in split) else ()


def _add_after(model: Any, reshape: Any, bias: Any) -> None:
    """Whoever reads reshape's output reads output + bias instead."""
    old = reshape.outputs[0]
    add = ir.node("Add", [old, bias], name=f"node_{old.name}.biased")
    new = add.outputs[0]
    new.name, new.shape, new.type = f"{old.name}.biased", old.shape, old.type
    for reader, index in [use for use in old.uses() if use[0] is not add]:
        reader.replace_input_with(index, new)
    model.graph.insert_after(reshape, add)
