"""Multiply-adds and bytes of a node, from the shapes that it really has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

FLOAT, INTEGER = "float32", "int8"  # whose peak bounds a product
BYTES = {"float": 4, "float16": 2, "bfloat16": 2, "uint8": 1, "int8": 1, "int32": 4, "int64": 8, "double": 8, "bool": 1}
KINDS = {  # of layers, by ONNX's and ONNX Runtime's operators; what is not listed is "element by element"
    "linear": ("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Conv", "FusedConv", "MatMulInteger", "MatMulNBits",
               "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm", "MatMulFpQ4"),
    "attention": ("Attention", "MultiHeadAttention", "PackedMultiHeadAttention", "Softmax"),
    "rounding": ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ReduceMax", "ReduceMin", "Abs"),
    "normalisation": ("LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization",
                      "SkipSimplifiedLayerNormalization", "RMSNormalization", "GroupNorm", "InstanceNormalization"),
    "activation": ("Gelu", "FastGelu", "BiasGelu", "QuickGelu", "Erf", "Tanh", "Sigmoid", "Silu"),
    "moving": ("Transpose", "Reshape", "Concat", "Split", "Slice", "Gather", "Expand", "Unsqueeze", "Squeeze", "Shape",
               "ReorderInput", "ReorderOutput", "Identity", "Flatten", "Tile", "Cast"),
}  # fmt: skip
ELEMENTWISE = "element by element"
OF_KIND = {operator: kind for kind, operators in KINDS.items() for operator in operators}


@dataclass(frozen=True)
class Tensor:
    """As a profile has it: ONNX Runtime's name of the type."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * BYTES.get(self.dtype, 4)


@dataclass(frozen=True)
class Node:
    """One execution. inputs: those that were not packed beforehand, which weights usually are."""

    operator: str
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    seconds: float = 0.0


@dataclass(frozen=True)
class Count:
    """macs: multiply-adds by the arithmetic that they are done in. weights, activations: bytes read or written once."""

    kind: str
    macs: dict[str, int]
    weights: int
    activations: int


def count(node: Node) -> Count:
    """What a node does. Products of two activations are attention's."""
    moved = sum(tensor.bytes for tensor in (*node.inputs, *node.outputs))
    kind = OF_KIND.get(node.operator, ELEMENTWISE)
    if node.operator in ("Attention", "MultiHeadAttention"):
        return Count(kind, {FLOAT: _attention(node.inputs)}, 0, moved)
    if kind != "linear":
        return Count(kind, {}, 0, moved)
    a, out = node.inputs[0], node.outputs[0]
    if node.operator.endswith("Conv"):
        weight = node.inputs[1]
        return Count(kind, {FLOAT: prod(out.shape) * prod(weight.shape[1:])}, weight.bytes, moved - weight.bytes)
    inner = a.shape[-1]
    arithmetic = INTEGER if "Integer" in node.operator or node.operator in ("DynamicQuantizeMatMul", "QGemm",
                                                                           "QLinearMatMul") else FLOAT  # fmt: skip
    macs = {arithmetic: prod(out.shape) * inner}
    if _of_two_activations(node):
        return Count("attention", macs, 0, moved)
    each = 0.5 if node.operator == "MatMulNBits" else 1 if arithmetic == INTEGER else BYTES.get(a.dtype, 4)
    weights = int(inner * out.shape[-1] * each)
    return Count(kind, macs, weights, sum(tensor.bytes for tensor in (a, *node.outputs)))


def _of_two_activations(node: Node) -> bool:
    """A MatMul whose second input was not packed and has as many leading dimensions as the first."""
    if node.operator not in ("MatMul", "FusedMatMul") or len(node.inputs) < 2:
        return False
    a, b = node.inputs[0].shape, node.inputs[1].shape
    return len(b) == len(a) > 2


def _attention(inputs: Sequence[Tensor]) -> int:
    """Q K^T and P V. q, k, v: [B, S, D] each, or [B, heads, S, d]."""
    q, k, v = (tensor.shape for tensor in inputs[:3])
    rows = prod(q[:-2]) * q[-2] * k[-2]  # scores, of every head where heads are a dimension
    return rows * (q[-1] + v[-1])
