"""The attention lint against TensorRT-RTX itself, and the readers of kernel lists."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from ditedge.cli import main
from ditedge.runtime.errors import BundleError
from ditedge.runtime.plans import library as tensorrt_library
from ditedge.runtime.plans.attention_trial import lint_graph
from ditedge.runtime.plans.layers import Layer, PlanLayers, element_type, layers_from_json, layers_from_log
from ditedge.runtime.plans.lint import plan_report
from tests.runtime.plans.here import needs_rtx

TYPES = {"float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT, "bfloat16": TensorProto.BFLOAT16}


def attention_graph(
    path: Path, head: int, element: str = "float16", heads: int = 2, tokens: int = 64, *, between: str = ""
) -> Path:
    """A DiT block's attention: x [E, T, D] -> qkv -> MatMul, scale, Softmax, MatMul -> [E, T, D], types as a fp16 bundle has.

    between: "float32 softmax", or "cumsum", a node which the fused kernels have no place for.
    """
    width = heads * head
    low = TYPES[element]
    numbers = {
        "w32": np.random.default_rng(0).standard_normal((width, 3 * width)).astype(np.float32),
        "split": np.array([0, 0, 3, heads, head]),
        "merge": np.array([0, 0, -1]),
        **{f"i{i}": np.array(i) for i in range(3)},
        "scale32": np.array(head**-0.5, np.float32),
        "bias32": np.zeros((1, heads, tokens, tokens), np.float32),
    }
    constants = [numpy_helper.from_array(value, name) for name, value in numbers.items()]
    node = helper.make_node
    nodes = [
        node("Cast", ["x"], ["xl"], to=low),
        node("Cast", ["w32"], ["w"], to=low),
        node("Cast", ["scale32"], ["scale"], to=low),
        node("MatMul", ["xl", "w"], ["qkv"], "qkv_matmul"),
        node("Reshape", ["qkv", "split"], ["qkv5"]),
        node("Transpose", ["qkv5"], ["qkvt"], perm=[2, 0, 3, 1, 4]),
        *(node("Gather", ["qkvt", f"i{i}"], ["qkv"[i]], axis=0) for i in range(3)),
        node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        node("MatMul", ["q", "kt"], ["scores"], "scores_matmul"),
        node("Mul", ["scores", "scale"], ["scaled"], "scale_mul"),
    ]
    if between == "cumsum":
        nodes.append(node("CumSum", ["scaled", "i2"], ["odd"]))
    elif between == "float32 softmax":
        nodes.append(node("Cast", ["scaled"], ["odd"], to=TensorProto.FLOAT))
    last = "odd" if between else "scaled"
    nodes += [
        node("Softmax", [last], ["weights0" if between == "float32 softmax" else "weights"], "the_softmax", axis=-1),
        *([node("Cast", ["weights0"], ["weights"], to=low)] if between == "float32 softmax" else []),
        node("MatMul", ["weights", "v"], ["out4"], "values_matmul"),
        node("Transpose", ["out4"], ["outt"], perm=[0, 2, 1, 3]),
        node("Reshape", ["outt", "merge"], ["outl"]),
        node("Cast", ["outl"], ["out"], to=TensorProto.FLOAT),
    ]  # fmt: skip
    io = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["E", tokens, width]) for n in ("x", "out")]
    graph = helper.make_graph(nodes, "attention", io[:1], io[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def attention_layer_builds(head: int, element: str, heads: int = 2, tokens: int = 64) -> bool:
    """The library's second opinion: its own attention layer, told not to fall back to several kernels."""
    library = tensorrt_library.load_library("tensorrt-rtx")
    trt = library.module
    builder = trt.Builder(tensorrt_library.make_logger(library, lambda *_: None))
    network = builder.create_network(0)
    kind = {"float16": trt.DataType.HALF, "float32": trt.DataType.FLOAT, "bfloat16": trt.DataType.BF16}[element]
    q, k, v = (network.add_input(name, kind, (4, heads, tokens, head)) for name in "qkv")
    attention = network.add_attention(q, k, v, trt.AttentionNormalizationOp.SOFTMAX, False)
    attention.decomposable = False
    network.mark_output(attention.get_output(0))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    return builder.build_serialized_network(network, config) is not None


@needs_rtx
@pytest.mark.parametrize("arch", ["sm86", "sm89", "sm120"])
@pytest.mark.parametrize(("head", "element"), [(64, "float16"), (72, "float16"), (64, "bfloat16"), (72, "bfloat16")])
def test_16_bit_attention_of_every_dit_is_one_kernel(tmp_path: Path, head: int, element: str, arch: str) -> None:
    """64 is the head size of S, B and L, 72 that of XL."""
    found = lint_graph(attention_graph(tmp_path / "a.onnx", head, element), arch)
    (attention,) = found.attention
    assert (attention.fused, attention.why) == (True, "")
    assert (attention.node, attention.element) == ("the_softmax", element)
    assert (attention.heads, attention.tokens, attention.head_size) == (2, 64, head)
    assert found.fused
    assert found.gemms == {element: 3}
    assert found.casts >= 2


@needs_rtx
@pytest.mark.parametrize(("head", "element"), [(64, "float32"), (320, "float16")])
def test_what_is_not_fused_is_said(tmp_path: Path, head: int, element: str) -> None:
    (attention,) = lint_graph(attention_graph(tmp_path / "a.onnx", head, element)).attention
    assert attention.fused is False
    assert ("float32 attention" if element == "float32" else "head size 320 is over 256") in attention.why


@needs_rtx
def test_a_node_between_the_products_is_named(tmp_path: Path) -> None:
    (attention,) = lint_graph(attention_graph(tmp_path / "a.onnx", 64, between="cumsum")).attention
    assert attention.fused is False
    assert "CUMULATIVE float16" in attention.why


@needs_rtx
def test_a_float32_softmax_between_float16_products_is_still_one_kernel(tmp_path: Path) -> None:
    assert lint_graph(attention_graph(tmp_path / "a.onnx", 64, between="float32 softmax")).fused


@needs_rtx
def test_every_block_is_listed_and_one_trial_serves_all_that_are_alike(golden_bundle, monkeypatch) -> None:
    from ditedge.runtime import open_bundle
    from ditedge.runtime.plans import attention_trial

    trials = []
    real = attention_trial._trial
    monkeypatch.setattr(attention_trial, "_trial", lambda *a: trials.append(a) or real(*a))
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    found = lint_graph(bundle.graph_file("step"))
    assert len(found.attention) == bundle.manifest.model.depth > 1 == len(trials)
    assert not found.fused and set(found.gemms) == {"float32"}


@needs_rtx
@pytest.mark.parametrize(("head", "element"), [(64, "float16"), (72, "float16"), (320, "float16"), (64, "float32")])
def test_the_lint_agrees_with_the_librarys_own_attention_layer(tmp_path: Path, head: int, element: str) -> None:
    assert lint_graph(attention_graph(tmp_path / "a.onnx", head, element)).fused == attention_layer_builds(
        head, element
    )


@needs_rtx
@pytest.mark.parametrize("element", ["float16", "bfloat16", "float32"])
def test_the_plan_of_the_whole_graph_says_what_the_trial_said(tmp_path: Path, element: str) -> None:
    """The trial builds attention alone; here the projections around it are built with it, as `build` does."""
    from ditedge.runtime.plans import graph as build
    from ditedge.runtime.plans.record import ShapeRange

    graph = attention_graph(tmp_path / "a.onnx", 72, element)
    library = tensorrt_library.load_library("tensorrt-rtx")
    log, options = build.BuildLog(), build.BuildOptions("tensorrt-rtx", archs=("sm86",))
    profile = {"x": ShapeRange(min=[1, 64, 144], opt=[4, 64, 144], max=[16, 64, 144])}
    nothing = threading.Event()
    build.build_graph(library, graph, [profile], options, log, lambda *_: None, nothing, tmp_path / "a.plan")
    found = plan_report(log.plan_layers(), "a.plan", 1, library.name)
    assert found.fused == lint_graph(graph).fused == (element != "float32")
    assert len(found.attention) == 1
    products = {"float16": 1, "bfloat16": 1, "float32": 3}  # alone, the fused kernel has no product of its own
    assert found.gemms == {element: products[element]}


@needs_rtx
def test_strict_decides_the_exit_code(tmp_path: Path) -> None:
    def run(*arguments: str) -> int:
        return CliRunner().invoke(main, ["inspect", *arguments, "--lint"]).exit_code

    good, bad = attention_graph(tmp_path / "good.onnx", 64), attention_graph(tmp_path / "bad.onnx", 64, "float32")
    assert (run(str(good), "--strict"), run(str(bad), "--strict"), run(str(bad))) == (0, 1, 0)


@needs_rtx
@pytest.mark.parametrize(
    ("content", "arch", "sentence"),
    [
        (None, "sm86", "no such file"),
        (b"not a graph", "sm86", "refuses the file of graph.onnx"),
        (b"", "sm11", "--arch sm11 is no GPU"),
    ],
)
def test_what_cannot_be_linted_is_a_sentence(tmp_path: Path, content: bytes | None, arch: str, sentence: str) -> None:
    path = tmp_path / "graph.onnx"
    if content is not None:
        path.write_bytes(content)
    result = CliRunner().invoke(main, ["inspect", str(path), "--lint", "--arch", arch])
    assert result.exit_code == 2 and sentence in result.stderr and result.stderr.count("\n") == 1


# The two schemas of EngineInspector's JSON, written by hand from NVIDIA's documentation (the page "Engine Inspector" and
# the migration page of IEngineInspector from 10.x to 11.x): no engine of these versions was read here. The kernels are
# named as TensorRT-RTX 1.7 names them.
def _tensor_10(name: str, form: str) -> dict[str, object]:
    return {"Name": name, "Location": "Device", "Dimensions": [16, 64, 128], "Format/Datatype": form}


def _tensor_11(name: str, element: str) -> dict[str, object]:
    return {"Name": name, "Dimensions": [16, 64, 128], "Format": "Row major linear format", "Datatype": element}


def _inspector_json(schema: int) -> str:
    tensor = _tensor_10 if schema == 10 else _tensor_11
    half = "Row major linear FP16 format" if schema == 10 else "Half"
    single = "Row major linear FP32" if schema == 10 else "Float"
    int8 = "Row major Int8 format" if schema == 10 else "Int8"

    def layer(
        name: str, kind: str, source: str, target: str, nodes: tuple[str, ...] = (), tactic: str = ""
    ) -> dict[str, object]:
        metadata = ("\x1f" if schema == 10 else "").join(f"[ONNX Layer: {node}]" for node in nodes)
        return {
            "Name": name, "LayerType": kind, "Inputs": [tensor("in", source)], "Outputs": [tensor("out", target)],
            "TacticName": tactic, "StreamId": 0, "Metadata": metadata,
        }  # fmt: skip

    layers = [
        layer("Reformatting CopyNode for Input Tensor 0", "Reformat", single, half),
        layer("qkv_myl0_1", "gemm", int8, half, ("node_MatMul_1",)),
        layer(
            "_gemm_mha_v2_myl0_2",
            "kgen",
            half,
            half,
            ("node_matmul", "node_softmax", "node_matmul_1"),
            "_gemm_mha_v2_0x1",
        ),
        layer("__myl_ReshTran_myl0_3", "kgen", half, half, ("node_transpose",)),
        layer("__myl_MulMaxrSubExpSumDiv_myl0_4", "kgen", single, single, ("node_softmax_1",)),
    ]
    names = ["x", "y"]
    io = [{"Name": name, "IOMode": "Input", "DataType": "Float", "Location": "Device"} for name in names]
    return json.dumps({"Layers": layers} | ({"Bindings": names} if schema == 10 else {"I/O Tensors": io}))


@pytest.mark.parametrize("schema", [10, 11])
def test_both_inspector_schemas_say_the_same(schema: int) -> None:
    found = plan_report(PlanLayers(tuple(layers_from_json(_inspector_json(schema)))), "dit.plan", 1, "tensorrt")
    assert [(a.node, a.fused) for a in found.attention] == [("node_softmax", True), ("node_softmax_1", False)]
    assert found.gemms == {"int8": 1}
    assert (found.casts, found.copies) == (1, 1)
    assert found.float32 == {"kgen": 1}
    assert not found.fused


def test_a_plan_with_names_only_is_unknown_not_fused() -> None:
    layers = layers_from_json('{"Layers": ["{ForeignNode[node_matmul...node_softmax]}"], "Bindings": ["x"]}')
    found = plan_report(PlanLayers(tuple(layers)), "dit.plan", 1, "tensorrt")
    assert [attention.fused for attention in found.attention] == [None] and not found.fused


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Layers": 3}', '{"Layers": [3]}', '{"Layers": [{}]}'])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match="not understood"):
        layers_from_json(text)


def test_the_builders_list_of_kernels_is_read() -> None:
    line = (
        "Name: _gemm_mha_v2_myl0_8, LayerType: kgen, Inputs: [ { Name: a, Dimensions: [-1,64,64], Strides: [64,-1,1], "
        "StrideOrder: [1,2,0], Datatype: Half, Format: (Arbitrary) Format with stride order = [1,2,0] }, { Name: b, "
        "Dimensions: [-1,64,64], Datatype: Float, Format: (Linear) Row major linear format }], Constants: [], Outputs: "
        "[ { Name: c, Dimensions: [-1,64,64], Datatype: Half, Format: (Linear) Row major linear format }], TacticName: "
        "_gemm_mha_v2_0xf3, StreamId: 0, Metadata: [ONNX Layer: node_matmul_1][ONNX Layer: node_softmax]"
    )
    (layer,) = layers_from_log(f"Layers:\n{line}\n\nI/O Tensors:\n Name: state, IOMode: Input")
    expected = Layer("_gemm_mha_v2_myl0_8", "kgen", ("float16", "float32"), (), ("float16",), "_gemm_mha_v2_0xf3")
    assert layer == Layer(**{**expected.__dict__, "onnx": ("node_matmul_1", "node_softmax")})


@pytest.mark.parametrize(
    ("text", "element"),
    [("Row major linear FP16 format", "float16"), ("Half", "float16"), ("BFloat16", "bfloat16"), ("FP8", "float8"),
     ("Thirty-two wide channel vectorized row major Int8 format", "int8"), ("Float", "float32"), ("", "")],
)  # fmt: skip
def test_element_types(text: str, element: str) -> None:
    assert element_type(text) == element
