"""The bias of a linear that is split into heads, added behind the split: the same numbers, and nothing else moved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from ditedge.calibration.convert import convert_bundle
from ditedge.calibration.graph.late_bias import add_bias_after_split
from ditedge.calibration.graph.linears import find_linears
from ditedge.calibration.graph.surgery import load_graph, save_graph
from ditedge.calibration.options import ConvertOptions

RNG = np.random.default_rng(7)
X = RNG.standard_normal((2, 4, 6)).astype(np.float32)
WEIGHT, BIAS = RNG.standard_normal((6, 12)).astype(np.float32), RNG.standard_normal(12).astype(np.float32)


def linear(path: Path, split: list[int], outputs: tuple[str, ...] = ("y",), bias: np.ndarray = BIAS) -> Path:
    """y = -reshape(x @ WEIGHT + bias); "biased" and "parts", the numbers before and after the Reshape, on demand."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Add", ["product", "network.fc.bias"], ["biased"]),
        helper.make_node("Reshape", ["biased", "shape"], ["parts"]),
        helper.make_node("Neg", ["parts"], ["y"]),
    ]
    constants = {"w": WEIGHT, "network.fc.bias": bias, "shape": np.array(split, np.int64)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["E", *X.shape[1:]])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(model, data_prop=True), path)
    return path


def run(path: Path) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": X})


@pytest.mark.parametrize("split", [[0, 4, 3, 4], [0, 4, 3, 2, 2], [0, 4, 12, 1]])
def test_the_numbers_stay(tmp_path: Path, split: list[int]) -> None:
    before = linear(tmp_path / "before.onnx", split)
    model = load_graph(before)
    assert add_bias_after_split(model) == 1
    save_graph(model, tmp_path / "after.onnx")
    kinds = [node.op_type for node in ir.load(tmp_path / "after.onnx").graph]
    assert kinds == ["MatMul", "Reshape", "Add", "Neg"]
    assert np.array_equal(run(before)[0], run(tmp_path / "after.onnx")[0])
    assert np.array_equal(run(before)[0], -(X @ WEIGHT + BIAS).reshape(2, *split[1:]))
    assert add_bias_after_split(model) == 0, "it is done"


OTHERS = {
    "the same number of axes": {"split": [0, 4, 12]},
    "another axis is split as well": {"split": [0, 2, 2, 3, 4]},
    "another axis is split": {"split": [0, 2, 2, 12]},
    "the bias is no vector": {"split": [0, 4, 3, 4], "bias": RNG.standard_normal((4, 12)).astype(np.float32)},
    "the sum is read elsewhere": {"split": [0, 4, 3, 4], "outputs": ("y", "biased")},
    "the parts are an output": {"split": [0, 4, 3, 4], "outputs": ("y", "parts")},
}


@pytest.mark.parametrize("case", OTHERS)
def test_nothing_else_is_touched(tmp_path: Path, case: str) -> None:
    model = load_graph(linear(tmp_path / "g.onnx", **OTHERS[case]))
    assert add_bias_after_split(model) == 0
    assert [node.op_type for node in model.graph] == ["MatMul", "Add", "Reshape", "Neg"]


def test_convert_moves_the_bias_of_every_qkv_and_no_other(gray_bundle: Path, tmp_path: Path) -> None:
    """In the 16-bit graph alone: in float32 ones, which `quantize` reads, every linear is named by its bias."""
    names = [linear.name for linear in find_linears(load_graph(gray_bundle / "step.onnx"))]
    assert [name for name in names if name.endswith("qkv")] == ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]
    convert_bundle(gray_bundle, tmp_path / "low", ConvertOptions("fp16"))
    biases = {
        node.inputs[1].name: node.inputs[0].producer().op_type
        for node in load_graph(tmp_path / "low" / "step.onnx").graph
        if node.op_type == "Add" and ".bias" in node.inputs[1].name
    }
    assert len(biases) == 9  # qkv, proj, fc1, fc2 of two blocks; the last layer
    assert {name for name, before in biases.items() if before == "Reshape"} == {
        f"network.blocks.{block}.attn.qkv.bias_float16_3x2x16" for block in (0, 1)
    }
