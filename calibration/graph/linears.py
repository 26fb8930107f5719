"""The linear layers of a bundle's graphs, found, and named as in the checkpoint.

The exporter writes `Linear(x)` as MatMul(x, weight [in, out]) and Add(bias), or as Gemm(x, weight [out, in], bias) for
inputs of two dimensions. Products of two activations (attention) have no constant operand and are not linears.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir


@dataclass(frozen=True)
class Linear:
    """One linear layer. name: "blocks.0.attn.qkv", or what its node is called where there is none in the module."""

    name: str
    node: Any  # ir.Node: MatMul, or Gemm
    transposed: bool  # the weight is stored as [out, in]

    @property
    def input(self) -> Any:
        return self.node.inputs[0]

    @property
    def weight(self) -> Any:
        """The initializer (ir.Value)."""
        return self.node.inputs[1]

    @property
    def features(self) -> tuple[int, int]:
        """(in, out), without reading the weight."""
        first, second = self.weight.shape
        return (int(second), int(first)) if self.transposed else (int(first), int(second))

    @property
    def matrix(self) -> np.ndarray:
        """[in, out] float32."""
        array = np.asarray(self.weight.const_value.numpy(), dtype=np.float32)
        return array.T if self.transposed else array

    @property
    def after_gelu(self) -> bool:
        """Whether the input is a GELU's output, which is never below -0.17."""
        producer = self.input.producer()
        return producer is not None and producer.op_type == "Gelu"


def find_linears(model: Any) -> list[Linear]:
    """Every linear of the graph, in the order of computation."""
    found = []
    for node in model.graph:
        if node.op_type not in ("MatMul", "Gemm") or node.domain or node.inputs[1] is None:
            continue
        weight = node.inputs[1]
        if not weight.is_initializer() or weight.dtype != ir.DataType.FLOAT or len(weight.shape) != 2:
            continue
        transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
        found.append(Linear(_name(node), node, transposed))
    return found


def _name(node: Any) -> str:
    """The node's own name where export/graphs/to_onnx.py gave it the layer's, which has a dot; else from the bias,
    whose name the exporter keeps: network.blocks.0.attn.qkv.bias -> blocks.0.attn.qkv."""
    biases = list(node.inputs[2:])
    for consumer in node.outputs[0].consumers():
        if consumer.op_type == "Add":
            biases += consumer.inputs
    names = [bias.name for bias in biases if bias is not None and bias.is_initializer()]
    if "." not in (node.name or "") and len(names) == 1 and names[0].endswith(".bias"):
        return str(names[0]).removeprefix("network.").removesuffix(".bias")
    return str(node.name).removeprefix("network.")
