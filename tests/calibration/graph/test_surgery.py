"""Pieces of every rewrite: who reads a value, and who takes its place."""

from __future__ import annotations

import onnx_ir as ir

from ditedge.calibration.graph.surgery import only_reader, take_place


def graph() -> ir.Model:
    """x -> Sigmoid -> s -> Mul(s, s) -> Softmax -> Neg -> y."""
    x = ir.Value(name="x", shape=ir.Shape([2]), type=ir.TensorType(ir.DataType.FLOAT))
    nodes, value = [], x
    for op_type in ("Sigmoid", "Mul", "Softmax", "Neg"):
        nodes.append(ir.node(op_type, [value, value] if op_type == "Mul" else [value]))
        value = nodes[-1].outputs[0]
        value.name, value.shape, value.type = op_type, x.shape, x.type
    return ir.Model(ir.Graph([x], [value], nodes=nodes, opset_imports={"": 18}), ir_version=10)


def test_the_only_reader_reads_once_and_nobody_else_does() -> None:
    model = graph()
    x, (sigmoid, mul, softmax, neg) = model.graph.inputs[0], list(model.graph)
    assert only_reader(x) is sigmoid and only_reader(x, "Sigmoid") is sigmoid and only_reader(x, "Mul") is None
    assert only_reader(sigmoid.outputs[0]) is None, "it reads both operands"
    assert only_reader(mul.outputs[0]) is softmax
    model.graph.outputs.append(mul.outputs[0])
    assert only_reader(mul.outputs[0]) is None, "the caller does, too"
    assert only_reader(neg.outputs[0]) is None
    softmax.domain = "com.example"
    model.graph.outputs.remove(mul.outputs[0])
    assert only_reader(mul.outputs[0], "Softmax") is None, "another's operator of that name"


def test_whoever_read_the_old_value_reads_the_new_one() -> None:
    model = graph()
    sigmoid, mul, *_ = list(model.graph)
    new = ir.node("Tanh", [model.graph.inputs[0]])
    model.graph.insert_before(mul, new)
    take_place(sigmoid.outputs[0], new.outputs[0])
    assert list(mul.inputs) == [new.outputs[0]] * 2 and not sigmoid.outputs[0].uses()
    assert (new.outputs[0].shape, new.outputs[0].dtype) == (ir.Shape([2]), ir.DataType.FLOAT)
