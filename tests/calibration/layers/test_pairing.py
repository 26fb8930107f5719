"""Tensors of a rewritten graph find those of the float32 graph that they stand for; what finds none is listed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from ditedge.calibration.formats.int4 import matmul_nbits
from ditedge.calibration.formats.int8 import dynamic_int8, static_int8
from ditedge.calibration.formats.smooth import smooth
from ditedge.calibration.graph.heads import BY_HEAD
from ditedge.calibration.graph.linears import find_linears
from ditedge.calibration.graph.lowering import emulated, lower
from ditedge.calibration.graph.surgery import load_graph
from ditedge.calibration.layers.pairing import GONE, SMOOTHED, Point, pair

LINEARS = [f"blocks.{i}.{name}" for i in range(2) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]


@pytest.fixture
def graphs(golden_bundle) -> tuple[Any, Any]:
    """The step graph twice: one to keep, one to rewrite."""
    path = golden_bundle("gray1_cfg") / "step.onnx"
    return load_graph(path), load_graph(path)


def outputs(points: list[Point]) -> dict[str, list[str]]:
    """Layer -> the counterparts of what it gives: product and, with bias, output."""
    return {name: [p.other for p in points if p.own and p.layer == name] for name in LINEARS}


def test_a_graph_pairs_with_itself(graphs: tuple[Any, Any]) -> None:
    points = pair(*graphs, smoothed=False)
    assert all(point.other == point.tensor for point in points)
    assert points[-1].tensor == "next_state"
    names = list(dict.fromkeys(point.layer for point in points))
    assert names == ["x_embedder.proj", *LINEARS, "final_layer.linear", "next_state"]


def test_sources_are_what_a_tensor_is_computed_from(graphs: tuple[Any, Any]) -> None:
    points = {point.tensor: point for point in pair(*graphs, smoothed=False)}
    product, output = [p for p in points.values() if p.own and p.layer == "blocks.1.mlp.fc2"]
    assert output.sources == (product.tensor,)
    (activation,) = product.sources
    assert (
        points[activation].op == "Gelu"
        and points[activation].layer == "blocks.1.mlp.fc2"
        and not points[activation].own
    )


def test_integer_products_are_found_by_their_layer(graphs: tuple[Any, Any]) -> None:
    a, b = graphs
    dynamic_int8(b, [linear for linear in find_linears(b) if linear.name in LINEARS])
    points = pair(a, b, smoothed=False)
    found = outputs(points)
    whole = [name for name in LINEARS if not name.endswith("qkv")]
    assert all(found[name][0] == f"{name}.product" and len(found[name]) == 2 for name in whole)
    for name in set(LINEARS) - set(whole):
        assert len(found[name]) == 3 and all(part.endswith(BY_HEAD) for part in found[name]), "q, k and v"
    gone = [point for point in points if not point.other]
    assert [point.op for point in gone] == ["Softmax"] * 2 and {point.reason for point in gone} == {GONE}
    products = [p for p in points if p.op == "MatMul" and p.other.endswith(".divided")]
    assert len(products) == 2, "behind a written-out softmax, what is divided is the product"


def test_weights_in_four_bits(graphs: tuple[Any, Any]) -> None:
    a, b = graphs
    matmul_nbits(b, [linear for linear in find_linears(b) if linear.name in LINEARS])
    points = pair(a, b, smoothed=False)
    assert all(found[0] == f"{name}.product" for name, found in outputs(points).items())
    assert all(point.other for point in points)


@pytest.mark.parametrize("dtype", ["FLOAT16", "BFLOAT16"])
def test_a_rounded_tensor_is_what_comes_out_of_the_rounding(graphs: tuple[Any, Any], dtype: str) -> None:
    a, b = graphs
    lower(b, ir.DataType[dtype])
    emulated(b)
    points = pair(a, b, smoothed=False)
    assert all(point.other for point in points)
    product = next(point for point in points if point.layer == LINEARS[0] and point.own)
    assert product.other == f"{product.tensor}_{dtype.lower()}_rounded"


def test_a_name_that_means_something_else_is_no_counterpart(graphs: tuple[Any, Any]) -> None:
    """As in a graph of another exporter, whose numbers stand for other nodes."""
    a, b = graphs
    gelu = next(node.outputs[0] for node in b.graph if node.op_type == "Gelu")
    norm = next(node.outputs[0] for node in b.graph if node.op_type == "LayerNormalization")
    gelu.name, norm.name = norm.name, gelu.name
    gone = {point.tensor for point in pair(a, b, smoothed=False) if not point.other}
    assert gone == {gelu.name, norm.name}


def test_smoothed_tensors_are_not_compared(collected) -> None:
    """They are on another scale on purpose; what is not moved still is compared."""
    source, _, statistics = collected()
    a, b, conditioner = (load_graph(Path(source) / name) for name in ("step.onnx", "step.onnx", "conditioner.onnx"))
    statistics = smooth(b, conditioner, statistics)
    ranges = {name: float(layer.channel_amax.max()) for name, layer in statistics.layers.items()}
    static_int8(b, [linear for linear in find_linears(b) if linear.name in LINEARS], ranges)
    points = pair(a, b, smoothed=True)
    assert {point.reason for point in points if not point.other} == {SMOOTHED}
    found = {name: [p for p in points if p.own and p.layer == name] for name in LINEARS}
    for name in LINEARS:
        product, output = found[name]
        assert not product.other and bool(output.other) == (not name.endswith("qkv")), name
    assert all(p.other for p in points if p.op in ("LayerNormalization", "Softmax", "Gelu"))
    assert sum(p.op == "Split" and bool(p.other) for p in points) == 4, "gates are not moved: two a block"
    before = pair(load_graph(Path(source) / "conditioner.onnx"), conditioner, smoothed=True)
    assert {p.layer for p in before if not p.other} >= {"blocks.0.adaLN_modulation.1", "modulation"}
    assert all(p.other for p in before if p.layer.startswith("t_embedder"))


def test_convolutions_are_layers(tmp_path: Path) -> None:
    """Of a decoder: named by their weights or bias, and 16-bit and int8 ones found."""
    weights = {"network.conv_in.weight": (3, 2, 1, 1), "network.conv_in.bias": (3,), "up.0.conv.weight": (1, 3, 1, 1)}
    nodes = [
        helper.make_node("Conv", ["latent", "network.conv_in.weight", "network.conv_in.bias"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "up.0.conv.weight"], ["image"]),
    ]
    latent, image = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, channels, 4, 4])
        for name, channels in (("latent", 2), ("image", 1))
    )
    stored = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()]
    model = helper.make_model(helper.make_graph(nodes, "decoder", [latent], [image], stored))
    onnx.save(onnx.shape_inference.infer_shapes(model), tmp_path / "decoder.onnx")
    a, b = load_graph(tmp_path / "decoder.onnx"), load_graph(tmp_path / "decoder.onnx")
    lower(b, ir.DataType.FLOAT16)
    emulated(b)
    points = pair(a, b, smoothed=False)
    assert [(p.layer, p.own, p.op) for p in points] == [
        ("conv_in", True, "Conv"), ("up.0.conv", False, "Relu"), ("up.0.conv", True, "Conv"),
    ]  # fmt: skip
    assert [p.other for p in points] == ["a_float16_rounded", "b_float16_rounded", "image"]
