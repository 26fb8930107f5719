"""A float32 graph to 16 bit, strongly typed: GEMMs and attention in 16 bit, everything else in float32, explicit casts.

16 bit starts at a MatMul, Gemm or Conv and runs on through its bias, activations, reshapes and softmax: attention is
MatMul, scale, Softmax, MatMul with no cast between. Whatever meets a float32 tensor (residual, gate, modulate, sampler)
is float32, as are LayerNorm and the timestep sinusoid, which no GEMM feeds. Inputs and outputs stay float32. In a
quantised graph, DequantizeLinear gives 16 bit to its GEMM; int8, fp8 and int4 stay what they are.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

LOW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
GEMMS = {"MatMul", "Gemm", "Conv"}
FOLLOWERS = {"Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Split", "Flatten", "Identity",
             "Softmax", "Gelu", "Sigmoid", "Relu", "Tanh", "Erf", "QuantizeLinear"}  # fmt: skip


def low_nodes(graph: ir.Graph, dtype: ir.DataType, keep: frozenset[str] = frozenset()) -> list[ir.Node]:
    """The nodes that compute in 16 bit. keep: names of values that need float32, so every node touching them does."""
    gemms = GEMMS - {"Conv"} if dtype == ir.DataType.BFLOAT16 else GEMMS  # ONNX has Conv of it from opset 22 on only
    low: list[ir.Node] = []
    values: set[ir.Value] = set()
    for node in graph:
        if node.op_type == "DequantizeLinear" and node.inputs[1] is not None:  # quantisers leave its type open
            node.outputs[0].dtype = node.inputs[1].dtype
        touched = {value.name for value in [*node.inputs, *node.outputs] if value is not None}
        if not touched & keep and _is_low(node, values, gemms):
            low.append(node)
            values.update(float_outputs(node))
    return low


def _is_low(node: ir.Node, low: set[ir.Value], gemms: set[str]) -> bool:
    if node.op_type in gemms or node.op_type == "DequantizeLinear":
        return True
    floats = float_inputs(node)
    if node.op_type in FOLLOWERS:
        return bool(floats) and floats[0] in low
    if node.op_type == "Concat":
        return bool(floats) and all(value in low for value in floats)
    if node.op_type == "Mul" and all(value in low for value in floats):  # SiLU
        return True
    if node.op_type in ("Add", "Mul", "Div"):  # a bias, or the scale of attention
        rank = 1 if node.op_type == "Add" else 0
        return any(value in low for value in floats) and all(v in low or _constant(v, rank) for v in floats)
    return False


def float_inputs(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None and value.dtype == ir.DataType.FLOAT]


def float_outputs(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.outputs if value.dtype == ir.DataType.FLOAT]


def _constant(value: ir.Value, rank: int) -> bool:
    return value.const_value is not None and len(value.const_value.shape) <= rank


def lower(model: ir.Model, dtype: ir.DataType, keep: frozenset[str] = frozenset()) -> int:
    """Rewrites `model` in place -> how many matrix products and convolutions are in 16 bit now.

    Weights are converted one at a time, when the file is written.
    """
    graph = model.graph
    nodes = low_nodes(graph, dtype, keep)
    chosen, lowered = set(nodes), {value for node in nodes for value in float_outputs(node)}
    low_of: dict[ir.Value, ir.Value] = {}
    float_of: dict[ir.Value, ir.Value] = {}
    plan = [(node, [v is not None and v.dtype == ir.DataType.FLOAT for v in node.inputs]) for node in graph]
    for node, is_float in plan:
        for i, value in enumerate(node.inputs):
            if value is None or not is_float[i]:
                continue
            if node in chosen and value not in lowered:
                if value not in low_of:
                    low_of[value] = _lowered_input(graph, node, value, dtype)
                node.replace_input_with(i, low_of[value])
            elif node not in chosen and value in lowered:
                if value not in float_of:
                    float_of[value] = _cast(graph, node, value, ir.DataType.FLOAT)
                node.replace_input_with(i, float_of[value])
    for value in lowered:
        value.dtype = dtype
    for i, value in enumerate(graph.outputs):
        if value in lowered:
            name, value.name = value.name, f"{value.name}_{dtype.name.lower()}"
            cast = ir.node("Cast", [value], attributes={"to": int(ir.DataType.FLOAT)})
            graph.append(cast)
            cast.outputs[0].name, cast.outputs[0].dtype, cast.outputs[0].shape = name, ir.DataType.FLOAT, value.shape
            graph.outputs[i] = cast.outputs[0]
    return sum(node.op_type in GEMMS and node.inputs[0] is not None and node.inputs[0].dtype == dtype for node in graph)


def _lowered_input(graph: ir.Graph, node: ir.Node, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """A weight is stored in 16 bit; anything else is cast before its first use."""
    tensor = value.const_value
    if tensor is None or value.name not in graph.initializers:
        return _cast(graph, node, value, dtype)
    name = f"{value.name}_{dtype.name.lower()}"

    def convert() -> ir.Tensor:
        with np.errstate(over="ignore"):  # too large for float16: infinite; the overflow scan keeps such weights out
            return ir.Tensor(np.asarray(tensor.numpy()).astype(dtype.numpy()), name=name)

    lazy = ir.LazyTensor(convert, dtype=dtype, shape=ir.Shape(tensor.shape), name=name)
    weight = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(tensor.shape), const_value=lazy)
    graph.register_initializer(weight)
    return weight


def _cast(graph: ir.Graph, before: ir.Node, value: ir.Value, dtype: ir.DataType, unique: str = "") -> ir.Value:
    cast = ir.node("Cast", [value], attributes={"to": int(dtype)})
    graph.insert_before(before, cast)
    output = cast.outputs[0]
    output.name, output.dtype, output.shape = f"{value.name}_{dtype.name.lower()}{unique}", dtype, value.shape
    return output


def emulated(model: ir.Model) -> None:
    """Rewrites a 16-bit graph so that ONNX Runtime's CPU provider rounds as 16-bit hardware does, in place.

    That provider has no bfloat16 kernels and computes chains of float16 nodes in float32. Here every node that reads or
    writes 16 bit computes in float32 (tensor cores accumulate in float32, too) between explicit casts.
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type == "Cast":
            continue
        for i, value in enumerate(node.inputs):
            if value is not None and value.dtype in LOW:
                node.replace_input_with(i, _cast(graph, node, value, ir.DataType.FLOAT, unique=f"_{node.name}_{i}"))
        for output in node.outputs:
            if output.dtype in LOW:
                rounded = ir.node("Cast", [output], attributes={"to": int(output.dtype)})
                graph.insert_after(node, rounded)
                new = rounded.outputs[0]
                new.name = f"{output.name}_{output.dtype.name.lower()}_rounded"
                new.dtype, new.shape = output.dtype, output.shape
                output.replace_all_uses_with(new)
                rounded.replace_input_with(0, output)
                output.dtype = ir.DataType.FLOAT
