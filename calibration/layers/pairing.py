"""Which tensor of a derived graph is which of the float32 graph that it was made from.

Rewrites keep the names of tensors where they keep what they mean. Where a linear became other nodes it is found by its
layer, as `find_linears` names it; where numbers are rounded or divided behind a tensor, what comes out is its
counterpart. What has none is listed with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ..graph.heads import BY_HEAD, heads_of
from ..graph.linears import find_linears
from ..graph.lowering import LOW

FLOATS = (ir.DataType.FLOAT, *LOW)
ROUNDED = tuple(f"_{dtype.name.lower()}_rounded" for dtype in LOW)  # graph/lowering.py: emulated
# Behind what a rewrite took something away from, under its old name: graph/attention.py, late_bias.py, heads.py
BEHIND = (".divided", ".written_out", ".biased", BY_HEAD)
ADALN = ".adaLN_modulation.1"
MODULATING = {"Add", "Mul", "Unsqueeze", "Split", "Slice", "Gather", "Identity"}
VALUES = {"Reshape", "Transpose", "Squeeze", "Slice", "Split", "Gather", "Unsqueeze", "Add", "MatMul", "Identity"}
GONE, SMOOTHED = "not in that graph", "smoothed: another scale there"


@dataclass(frozen=True)
class Point:
    """One tensor of the float32 graph. Points are in the order of computation."""

    tensor: str
    op: str  # what computes it: "MatMul"
    layer: str  # the linear or convolution that it is an output of, or that it is on the way to
    own: bool  # the former
    sources: tuple[str, ...]  # the points with a counterpart, and the graph inputs, that it is computed from
    other: str  # its counterpart's name; "" where it has none
    reason: str  # why not

    @property
    def place(self) -> str:
        """In words: "blocks.3.attn.qkv (MatMul val_49)", "on the way to blocks.3.attn.proj (Softmax softmax_3)"."""
        return f"{'' if self.own else 'on the way to '}{self.layer} ({self.op} {self.tensor})"


def pair(a: Any, b: Any, smoothed: bool) -> list[Point]:
    """Every float tensor that the float32 graph `a` (ir.Model) computes, with its counterpart in `b`.

    smoothed: SmoothQuant moved the scale of some of b's tensors into weights (formats/smooth.py).
    """
    others = {value.name: value for node in b.graph for value in node.outputs if value.dtype in FLOATS}
    linears = {linear.name: str(linear.node.outputs[0].name) for linear in find_linears(b)}
    moved = _moved(a) if smoothed else frozenset()
    apart, whole = _made_apart(a, others)
    found: dict[str, tuple[Any, str, bool, str]] = {}
    for node, layer, own in _layers(a):
        if node in whole:
            continue
        layer, own = (apart[node], True) if node in apart else (layer, own)
        names = (f"{layer}.product", linears.get(layer, "")) if own and node.op_type != "Add" else ()
        for value in node.outputs:
            if value.dtype in FLOATS and value.name:
                other = "" if value.name in moved else _counterpart(value, names, others)
                found[value.name] = (node, layer, own, other)
    sources = _sources(a, {name for name, (*_, other) in found.items() if other})
    return [
        Point(name, node.op_type, layer, own, sources[name], other,
              "" if other else SMOOTHED if name in moved else GONE)
        for name, (node, layer, own, other) in found.items()
    ]  # fmt: skip


def _made_apart(a: Any, others: Mapping[str, Any]) -> tuple[dict[Any, str], set[Any]]:
    """Nodes of q, k and v where the other graph makes them by a linear each -> (those that give them, with the layer
    that they are of; those before, of which nothing is left to compare).
    """
    apart: dict[Any, str] = {}
    whole = set[Any]()
    for linear in find_linears(a):
        heads = heads_of(linear)
        if heads is not None and all(part.name + BY_HEAD in others for part in heads.parts):
            giving = {part.producer(): linear.name for part in heads.parts}
            apart |= giving
            whole |= {linear.node, *heads.nodes} - set(giving)
    return apart, whole


def _layers(model: Any) -> Iterator[tuple[Any, str, bool]]:
    """(node, the layer that it is of or on the way to, whether it is of it), in the order of computation."""
    own = {}
    names = {linear.node: linear.name for linear in find_linears(model)}
    for node in model.graph:
        if node.op_type == "Conv":
            names[node] = _weights_name(node)
        if node in names:
            own[node] = names[node]
            for reader in node.outputs[0].consumers():  # its bias
                if reader.op_type == "Add" and any(v is not None and v.is_initializer() for v in reader.inputs):
                    own[reader] = names[node]
    following = str(model.graph.outputs[0].name)
    placed = []
    for node in reversed(list(model.graph)):
        following = own.get(node, following)
        placed.append((node, following, node in own))
    yield from reversed(placed)


def _weights_name(node: Any) -> str:
    """network.x_embedder.proj.weight -> x_embedder.proj; the node's own where the weights have no such name."""
    for value in node.inputs[1:]:
        if value is not None and value.name.endswith((".weight", ".bias")):
            return str(value.name).removeprefix("network.").rpartition(".")[0]
    return str(node.name)


def _counterpart(value: Any, names: tuple[str, ...], others: Mapping[str, Any]) -> str:
    """ "" where there is none. names: what else the product of a layer may be called."""
    op, name = value.producer().op_type, value.name
    same = others.get(name)
    if same is not None and not names and same.producer().op_type not in (op, "Cast"):
        same = None  # a name that stands for something else there
    base = next((name + end for end in BEHIND if name + end in others), name if same is not None else "")
    base = base or next((other for other in names if other in others), "")
    return next((base + end for end in ROUNDED if base + end in others), base)


def _sources(model: Any, matched: set[str]) -> dict[str, tuple[str, ...]]:
    """Of every value: the nearest values before it that are matched, and graph inputs."""
    inputs = {value.name for value in model.graph.inputs}
    found: dict[str, tuple[str, ...]] = {}
    for node in model.graph:
        before: dict[str, None] = {}
        for value in node.inputs:
            if value is None or value.is_initializer():
                continue
            if value.name in matched or value.name in inputs:
                before[value.name] = None
            else:
                before |= dict.fromkeys(found.get(value.name, ()))
        found |= {value.name: tuple(before) for value in node.outputs}
    return found


def _moved(model: Any) -> frozenset[str]:
    """The values that smoothing scales and centring shifts: what is modulated before a linear, attention's values, and
    a product until its bias is added. In the conditioner, everything behind the linears that make the modulation.
    """
    linears, moved = find_linears(model), set[str]()
    modulating = [linear for linear in linears if linear.name.endswith(ADALN)]
    for linear in modulating:
        _walk_forward(linear.node, moved)
    for linear in linears if not modulating else ():
        _walk_back(linear.input, VALUES if linear.name.endswith(".attn.proj") else MODULATING, moved)
        _walk_to_bias(linear.node.outputs[0], moved)
    return frozenset(moved)


def _walk_to_bias(value: Any, moved: set[str]) -> None:
    moved.add(value.name)
    for reader in value.consumers():
        if reader.op_type in ("Reshape", "Transpose"):
            _walk_to_bias(reader.outputs[0], moved)


def _walk_back(value: Any, through: set[str], moved: set[str]) -> None:
    node = value.producer()
    if node is None or node.op_type not in through:
        return
    moved.add(value.name)
    linear = node.op_type == "MatMul" and node.inputs[1].is_initializer()
    if not linear:  # of softmax(q k') v, v
        for before in node.inputs[1:] if node.op_type == "MatMul" else node.inputs:
            if before is not None and before.name not in moved:
                _walk_back(before, through, moved)


def _walk_forward(node: Any, moved: set[str]) -> None:
    for value in node.outputs:
        moved.add(value.name)
        for reader in value.consumers():
            _walk_forward(reader, moved)
