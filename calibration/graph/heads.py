"""Where one linear makes queries, keys and values together, and how each of them leaves it.

    linear -> + bias -> Reshape [E, S, 3, heads, d] -> Transpose [3, E, heads, S, d] -> Slice and Squeeze, three times

Each slice copies what the Transpose has just copied. Three products of a third of the columns need no slices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .linears import Linear
from .surgery import constant, insert, only_reader, take_place

PARTS = 3
TO_PARTS, TO_HEADS = [2, 0, 3, 1, 4], [0, 2, 1, 3]
BY_HEAD = ".by_head"  # behind the name that a part had


@dataclass(frozen=True)
class Heads:
    """What lies between a linear and its queries, keys and values."""

    bias: np.ndarray  # [3 D] float32
    shape: tuple[int, ...]  # of one part split into heads: [-1, S, heads, d]
    parts: tuple[Any, ...]  # q, k and v [E, heads, S, d] (ir.Value)
    nodes: tuple[Any, ...]  # what computes them out of the product, in order


def heads_of(linear: Linear) -> Heads | None:
    """None where the linear's output goes another way, or anywhere else, too."""
    add = only_reader(linear.node.outputs[0], "Add")
    bias = next((value.const_value for value in add.inputs if value.is_initializer()), None) if add else None
    reshape = only_reader(add.outputs[0], "Reshape") if add else None
    shape = reshape.inputs[1].const_value if reshape else None
    transpose = only_reader(reshape.outputs[0], "Transpose") if reshape else None
    if bias is None or shape is None or transpose is None:
        return None
    sizes = [int(size) for size in shape.numpy()]
    if len(sizes) != 5 or sizes[2] != PARTS or list(transpose.attributes["perm"].as_ints()) != TO_PARTS:
        return None
    found = _parts(transpose.outputs[0])
    if found is None:
        return None
    parts, taken = found
    return Heads(bias.numpy(), (*sizes[:2], *sizes[3:]), parts, (add, reshape, transpose, *taken))


def to_heads(model: Any, heads: Heads, part: int, product: Any, name: str) -> None:
    """Whoever reads the part reads product [E, S, D] instead, its bias added and split into heads."""
    node, old, width = heads.nodes[0], heads.parts[part], len(heads.bias) // PARTS
    bias = constant(model, f"{name}.bias", np.ascontiguousarray(heads.bias[part * width : (part + 1) * width]))
    whole = insert(model, node, "Add", [product, bias], f"{name}.biased")
    shape = constant(model, f"heads_{'x'.join(map(str, heads.shape))}", np.array(heads.shape))
    split = insert(model, node, "Reshape", [whole, shape], f"{name}.heads", allowzero=1)
    new = insert(model, node, "Transpose", [split], f"{old.name}{BY_HEAD}", perm=TO_HEADS)
    take_place(old, new)


def _parts(whole: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]] | None:
    """(q, k and v, the nodes that take them out of [3, ...]); None where it is taken apart in another way."""
    parts, nodes = {}, []
    for slicing, _ in whole.uses():
        bounds = [value.const_value for value in slicing.inputs[1:]]
        if slicing.op_type != "Slice" or len(bounds) < 3 or any(bound is None for bound in bounds):
            return None
        first, last, axis = (int(bound.numpy()[0]) for bound in bounds[:3])
        squeeze = only_reader(slicing.outputs[0], "Squeeze")
        if squeeze is None or axis != 0 or last != first + 1:
            return None
        parts[first] = squeeze.outputs[0]
        nodes += [slicing, squeeze]
    if whole.is_graph_output() or sorted(parts) != list(range(PARTS)) or len(nodes) != 2 * PARTS:
        return None
    return tuple(parts[i] for i in range(PARTS)), tuple(nodes)
