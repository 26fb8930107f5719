"""Attention whose bits are the same on every processor.

ONNX Runtime sums a Softmax in 8 or 16 lanes, as wide as the processor's vectors are. The last bits that differ by it
are nothing in a float network, but where activations are rounded they tip some of them to the next integer, and after a
few blocks two processors compute pictures as different as two roundings. Of all kernels in a DiT's integer step graph
this is the only one whose bits depend on the processor (AVX2 against AVX-512, node by node); written out, it does not.

ReduceSum takes a row in another order where it begins in the middle of a vector of four. Where an image's scores are no
multiple of four (2 heads of 73 x 73), images would depend on their place in the batch: a product with ones sums them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from .surgery import constant, insert, only_reader, take_place

VECTOR = 4  # floats that ReduceSum adds at once


def write_out_softmax(model: Any) -> int:
    """Replaces each Softmax over the last axis, in place -> how many there were.

    softmax(x) @ v becomes (exp(x - max x) @ v) / sum exp(x - max x): one division a row of v instead of one a score.
    A Softmax that is not the left side of one product is written out by itself.
    """
    found = [node for node in model.graph if node.op_type == "Softmax" and not node.domain and _last_axis(node)]
    last = constant(model, "axis_last", np.array([-1], np.int64))
    for node in found:
        scores, name = node.inputs[0], node.outputs[0].name
        largest = insert(model, node, "ReduceMax", [scores, last], f"{name}.max", keepdims=1)
        below = insert(model, node, "Sub", [scores, largest], f"{name}.below_max")
        weights = insert(model, node, "Exp", [below], f"{name}.exp")
        total = _sums(model, node, weights, last, f"{name}.sum")
        product = _only_product(node)
        if product is None:
            take_place(node.outputs[0], insert(model, node, "Div", [weights, total], f"{name}.written_out"))
        else:
            product.replace_input_with(0, weights)
            _divide_after(model, product, total)
        model.graph.remove(node, safe=True)
    return len(found)


def _sums(model: Any, softmax: Any, weights: Any, last: Any, name: str) -> Any:
    """weights [..., Q, T] summed over each row, [..., Q, 1]."""
    shape = softmax.inputs[0].shape
    known = [size for size in (shape or ())[1:] if isinstance(size, int)]
    if math.prod(known) % VECTOR == 0:
        return insert(model, softmax, "ReduceSum", [weights, last], name, keepdims=1)
    # Of as many axes as weights: a matrix of ones would make one product of all images, whose blocks of rows differ.
    parts = [insert(model, softmax, "Shape", [weights], f"{name}.places", end=-2)]
    parts.append(insert(model, softmax, "Shape", [weights], f"{name}.count", start=-1))
    parts.append(constant(model, "int_one", np.ones(1, np.int64)))
    column = insert(model, softmax, "Concat", parts, f"{name}.column", axis=0)
    ones = insert(
        model, softmax, "Expand", [constant(model, "float_one", np.ones(1, np.float32)), column], f"{name}.ones"
    )
    return insert(model, softmax, "MatMul", [weights, ones], name)


def _last_axis(node: Any) -> bool:
    axis = node.attributes.get_int("axis", -1)
    shape = node.inputs[0].shape
    return axis == -1 or (shape is not None and axis == len(shape) - 1)


def _only_product(node: Any) -> Any:
    """The MatMul whose left operand is this Softmax, where nothing else reads it; None otherwise."""
    product = only_reader(node.outputs[0], "MatMul")
    return product if product is not None and product.inputs[0] is node.outputs[0] else None


def _divide_after(model: Any, product: Any, total: Any) -> None:
    """Whoever reads product's output reads output / total instead."""
    old = product.outputs[0]
    quotient = ir.node("Div", [old, total], name=f"node_{old.name}.divided")
    new = quotient.outputs[0]
    new.name, new.shape, new.type = f"{old.name}.divided", old.shape, old.type
    for reader, index in [use for use in old.uses() if use[0] is not quotient]:
        reader.replace_input_with(index, new)
    model.graph.insert_after(product, quotient)
