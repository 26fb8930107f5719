"""The linear layers of a bundle's graphs: found, named as in the checkpoint, and edited in place.

The exporter writes `Linear(x)` as MatMul(x, weight [in, out]) and Add(bias), or as Gemm(x, weight [out, in], bias) for
inputs of two dimensions. Products of two activations (attention) have no constant operand and are not linears.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ...runtime.errors import EngineError, first_line

EXTERNAL_DATA_BYTES = 1_500_000_000  # protobuf files end at 2 GB


@dataclass(frozen=True)
class Linear:
    """One linear layer. name: "blocks.0.attn.qkv", or the node's name where the exporter left no bias to name it by."""

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


def load_graph(path: Path) -> Any:
    """The ONNX file as ir.Model; weights in .data files stay on disk until they are read. Raises EngineError."""
    try:
        return ir.load(path)
    except Exception as error:  # onnx_ir raises protobuf's own types
        raise EngineError(f"{path}: not a readable ONNX graph ({first_line(error)})") from None


def save_graph(model: Any, path: Path) -> None:
    """Writes `path`, and `path.data` above 1.5 GB of weights; initializers that nothing uses are left out."""
    for name in [
        n for n, value in model.graph.initializers.items() if not value.uses() and not value.is_graph_output()
    ]:
        del model.graph.initializers[name]
    if sum(value.const_value.nbytes for value in model.graph.initializers.values()) > EXTERNAL_DATA_BYTES:
        ir.save(model, path, external_data=f"{path.name}.data")
        return
    ir.external_data.load_to_model(model)  # what was read lazily from the source's .data file and never touched
    ir.save(model, path)


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
    """From the bias, whose name the exporter keeps: network.blocks.0.attn.qkv.bias -> blocks.0.attn.qkv."""
    biases = list(node.inputs[2:])
    for consumer in node.outputs[0].consumers():
        if consumer.op_type == "Add":
            biases += consumer.inputs
    names = [bias.name for bias in biases if bias is not None and bias.is_initializer()]
    if len(names) == 1 and names[0].endswith(".bias"):
        return str(names[0]).removeprefix("network.").removesuffix(".bias")
    return str(node.name)


def constant(model: Any, name: str, array: np.ndarray, dtype: Any = None) -> Any:
    """An initializer (ir.Value) of this name, made at first use."""
    known = model.graph.initializers.get(name)
    if known is not None:
        return known
    tensor = ir.tensor(array, dtype=dtype, name=name) if dtype is not None else ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def insert(
    model: Any, before: Any, op_type: str, inputs: list[Any], name: str, domain: str = "", **attributes: Any
) -> Any:
    """A new node before `before` -> its only output (ir.Value), called `name`."""
    node = ir.node(op_type, inputs, attributes or None, domain=domain, name=f"node_{name}")
    node.outputs[0].name = name
    model.graph.insert_before(before, node)
    if domain:
        model.graph.opset_imports.setdefault(domain, 1)
    return node.outputs[0]


def require_opset(model: Any, opset: int) -> None:
    """Raises the graph's operator set to at least `opset`.

    Between 18 and 21 the operators that the exporter writes gained types, not meanings, so the number is all there is
    to change.
    """
    model.graph.opset_imports[""] = max(model.graph.opset_imports[""], opset)
