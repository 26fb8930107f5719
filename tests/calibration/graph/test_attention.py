"""Softmax written out: the same numbers, by kernels whose bits do not depend on the processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from ditedge.calibration.graph.attention import write_out_softmax
from ditedge.calibration.graph.surgery import load_graph, save_graph

RNG = np.random.default_rng(3)
SCORES = RNG.standard_normal((2, 3, 8, 8)).astype(np.float32) * 20
VALUES = RNG.standard_normal((2, 3, 8, 4)).astype(np.float32)


def attention(path: Path, axis: int = -1, probabilities: bool = False) -> Path:
    """softmax(scores) @ values; probabilities: the softmax is an output, too, so it has another reader."""
    nodes = [
        helper.make_node("Softmax", ["scores"], ["p"], axis=axis),
        helper.make_node("MatMul", ["p", "values"], ["y"]),
        helper.make_node("Neg", ["y"], ["out"]),
    ]
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, list(VALUES.shape))]
    if probabilities:
        nodes.append(helper.make_node("Neg", ["p"], ["minus_p"]))
        outputs.append(helper.make_tensor_value_info("minus_p", TensorProto.FLOAT, list(SCORES.shape)))
    inputs = [
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, list(SCORES.shape)),
        helper.make_tensor_value_info("values", TensorProto.FLOAT, list(VALUES.shape)),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs), opset_imports=[helper.make_opsetid("", 20)], ir_version=9
    )
    onnx.save(model, path)
    return path


def run(path: Path) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"scores": SCORES, "values": VALUES})


@pytest.mark.parametrize("axis", [-1, 3])
@pytest.mark.parametrize("probabilities", [False, True])
def test_the_numbers_stay(tmp_path: Path, axis: int, probabilities: bool) -> None:
    plain = attention(tmp_path / "plain.onnx", axis, probabilities)
    model = load_graph(plain)
    assert write_out_softmax(model) == 1
    save_graph(model, tmp_path / "written.onnx")
    assert not any(node.op_type == "Softmax" for node in ir.load(tmp_path / "written.onnx").graph)
    wanted = np.exp(SCORES.astype(np.float64) - SCORES.max(-1, keepdims=True))
    wanted /= wanted.sum(-1, keepdims=True)
    for got in (run(plain), run(tmp_path / "written.onnx")):
        np.testing.assert_allclose(got[0], -(wanted @ VALUES), rtol=2e-6, atol=2e-6)  # float32, 8 terms
        if probabilities:
            np.testing.assert_allclose(got[1], -wanted, rtol=2e-6, atol=1e-9)


def test_another_axis_is_left_alone(tmp_path: Path) -> None:
    model = load_graph(attention(tmp_path / "columns.onnx", axis=2))
    assert write_out_softmax(model) == 0


@pytest.mark.parametrize(("heads", "count", "kernel"), [(2, 73, "MatMul"), (2, "T", "MatMul"), (4, 73, "ReduceSum")])
def test_an_image_does_not_depend_on_its_place(tmp_path: Path, heads: int, count: int | str, kernel: str) -> None:
    """2 x 73 x 73 scores: the next image's begin in the middle of a vector."""
    shape = ["B", heads, count, count]
    value, out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("scores", "minus_p"))
    nodes = [helper.make_node("Softmax", ["scores"], ["p"]), helper.make_node("Neg", ["p"], ["minus_p"])]
    graph = helper.make_graph(nodes, "g", [value], [out])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), tmp_path / "p.onnx")
    model = load_graph(tmp_path / "p.onnx")
    write_out_softmax(model)
    assert [node.op_type for node in model.graph if node.name == "node_p.sum"] == [kernel]
    save_graph(model, tmp_path / "written.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "written.onnx", providers=["CPUExecutionProvider"])
    scores = RNG.standard_normal((5, heads, 73, 73)).astype(np.float32) * 5
    together = session.run(None, {"scores": scores})[0]
    alone = [session.run(None, {"scores": part})[0] for part in np.split(scores, len(scores))]
    assert np.array_equal(np.concatenate(alone), together)
