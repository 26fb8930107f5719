"""float16 products of weights are summed up in float32: asked in the network that TensorRT builds, for nothing else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from ditedge.calibration.convert import convert_bundle
from ditedge.calibration.options import ConvertOptions, QuantizeOptions
from ditedge.calibration.quantize import quantize_bundle
from ditedge.runtime import open_bundle
from ditedge.runtime.plans import graph as plan_graph
from ditedge.runtime.plans.accumulation import sum_in_float32
from ditedge.runtime.plans.build import build_bundle
from ditedge.runtime.plans.graph import BuildLog, parse_graph
from ditedge.runtime.plans.layers import LAYERS_NAME, read_layers
from ditedge.runtime.plans.library import load_library, make_logger
from ditedge.runtime.plans.options import BuildOptions
from tests.runtime.plans.here import needs_rtx

pytestmark = needs_rtx
LINEARS, ATTENTIONS = 9, 2  # of the smallest bundle's step: four a block and the last one


@pytest.fixture(scope="module")
def fp16(golden_bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sums") / "fp16"
    convert_bundle(golden_bundle("gray1_cfg"), out, ConvertOptions("fp16"))
    return out


def kind(layer: Any) -> str:
    return str(layer.type).rsplit(".", 1)[-1]


def products(path: Path) -> tuple[int, Counter[tuple[str, ...]]]:
    """What `sum_in_float32` counts; every product by the types of its inputs, and of what reads it first."""
    library = load_library("tensorrt-rtx")
    builder = library.module.Builder(make_logger(library, BuildLog()))
    network, parser = parse_graph(library, builder, path, [])
    count = sum_in_float32(library, network)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    readers: dict[str, str] = {}
    for layer in layers:
        for i in range(layer.num_inputs):
            if layer.get_input(i) is not None:
                readers.setdefault(layer.get_input(i).name, kind(layer))
    found = Counter(
        (*(str(layer.get_input(i).dtype).rsplit(".", 1)[-1] for i in range(2)), readers[layer.get_output(0).name])
        for layer in layers
        if kind(layer) == "MATRIX_MULTIPLY"
    )
    del parser
    return count, found


def test_every_linear_and_no_attention(fp16: Path) -> None:
    count, found = products(fp16 / "step.onnx")
    assert count == found.pop(("FLOAT", "FLOAT", "CAST")) == LINEARS
    assert {types[:2] for types in found} == {("HALF", "HALF")} and sum(found.values()) == 2 * ATTENTIONS
    count, found = products(fp16 / "conditioner.onnx")
    assert count == sum(found.values()) > 0 and {types[:2] for types in found} == {("FLOAT", "FLOAT")}


def test_the_kernels_stay_the_same(fp16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT-RTX 1.7.1, to the hash of each kernel that it generated: what it takes for one product stays one."""
    bundle, listed = open_bundle(fp16), []
    for puts_casts in (True, False):
        if not puts_casts:
            monkeypatch.setattr(plan_graph, "sum_in_float32", lambda library, network: 0)
        build_bundle(bundle, BuildOptions("tensorrt-rtx", archs=("sm86",), force=True))
        layers = read_layers(fp16 / "engines" / "tensorrt-rtx" / LAYERS_NAME, "step").layers
        listed.append(sorted((layer.kind, layer.tactic, layer.inputs, layer.outputs) for layer in layers))
    assert listed[0] == listed[1]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_other_types_are_left_alone(gray_bundle: Path, tmp_path: Path, precision: str) -> None:
    """bfloat16 products are summed up in float32 by every kernel."""
    if precision == "bf16":
        convert_bundle(gray_bundle, tmp_path / "low", ConvertOptions("bf16"))
        gray_bundle = tmp_path / "low"
    count, found = products(gray_bundle / "step.onnx")
    assert count == 0 and sum(found.values()) == LINEARS + 2 * ATTENTIONS


def test_of_quantised_graphs_the_float16_products(gray_bundle: Path, tmp_path: Path) -> None:
    """int8: the last layer alone. int4 weights meet float16 numbers: all linears."""
    for precision, wanted in (("int8", 1), ("int4", LINEARS)):
        options = QuantizeOptions(precision, form="tensorrt", samples=2)
        quantize_bundle(gray_bundle, tmp_path / precision, options)
        convert_bundle(tmp_path / precision, tmp_path / f"{precision}-low", ConvertOptions("fp16"))
        assert products(tmp_path / f"{precision}-low" / "step.onnx")[0] == wanted, precision


def test_a_product_that_is_the_output_keeps_its_type(tmp_path: Path) -> None:
    shape = [2, 4]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape) for name in ("x", "y")]
    weight = helper.make_tensor("w", TensorProto.FLOAT16, [4, 4], [0.5] * 16)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = helper.make_model(
        helper.make_graph([node], "g", tensors[:1], tensors[1:], [weight]),
        opset_imports=[helper.make_opsetid("", 20)], ir_version=9,
    )  # fmt: skip
    onnx.save(model, tmp_path / "g.onnx")
    library = load_library("tensorrt-rtx")
    builder = library.module.Builder(make_logger(library, BuildLog()))
    network, parser = parse_graph(library, builder, tmp_path / "g.onnx", [])
    assert sum_in_float32(library, network) == 0 and network.get_output(0).dtype == library.module.DataType.HALF
    del parser
