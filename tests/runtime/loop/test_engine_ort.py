"""Integer products through the engine, against numpy: exact on every processor, also where u8 x s8 kernels saturate.

`make test-avx2` runs this file on the kernels of a processor that has AVX2 and no VNNI.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ditedge.runtime.errors import EngineError
from ditedge.runtime.loop import engine_ort
from ditedge.runtime.loop.engine import EngineOptions
from ditedge.runtime.loop.engines import open_engine

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (5, 192)).astype(np.uint8)
WEIGHT = RNG.integers(-127, 128, (192, 48)).astype(np.int8)
SCALE = RNG.uniform(0.5, 2, 48).astype(np.float32)


def run(folder: Path, nodes: list[Any], weights: dict[str, np.ndarray], inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The graph's output y, float32 [5, 48]."""

    def info(name: str, array: np.ndarray) -> Any:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)

    result = np.empty((5, 48), np.float32)
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", [info(*pair) for pair in inputs.items()], [info("y", result)], tensors)
    domains = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=10), folder / "g.onnx")
    with closing(open_engine(folder / "g.onnx", EngineOptions())) as engine:
        engine.run(inputs, {"y": result})
    return result


def test_sums_of_the_per_token_kernel_are_exact(tmp_path: Path) -> None:
    """The sums reach 192 * 255 * 127, and pairs of products exceed 16 bits almost everywhere."""
    node = helper.make_node("MatMulIntegerToFloat", ["x", "w", "one", "s", "z"], ["y"], domain="com.microsoft")
    weights = {"w": WEIGHT, "one": np.float32(1), "s": np.ones(48, np.float32), "z": np.uint8(128)}
    exact = (X.astype(np.int64) - 128) @ WEIGHT.astype(np.int64)
    assert np.array_equal(run(tmp_path, [node], {k: np.asarray(v) for k, v in weights.items()}, {"x": X}), exact)


def test_sums_of_the_per_tensor_kernel_are_exact(tmp_path: Path) -> None:
    """DynamicQuantizeLinear, MatMulInteger, Cast, Mul, Mul: the five that ONNX Runtime makes one kernel of."""
    x = RNG.uniform(-1, 3, X.shape).astype(np.float32)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s_x", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z", "zero"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["s_x", "s"], ["scale"]),
        helper.make_node("Mul", ["f", "scale"], ["y"]),
    ]
    step = np.float32((x.max() - x.min()) / np.float32(255))
    zero = np.rint(-x.min() / step)
    rounded = np.clip(np.rint(x / step) + zero, 0, 255) - zero
    actual = run(tmp_path, nodes, {"w": WEIGHT, "zero": np.array(0, np.int8), "s": SCALE}, {"x": x})
    np.testing.assert_allclose(actual, rounded @ WEIGHT.astype(float) * (step * SCALE), rtol=1e-5, atol=2e-3)


def test_sums_of_the_static_form_are_exact(tmp_path: Path) -> None:
    """A Q/DQ pair and dequantised weights with a scale per column: ONNX Runtime makes one integer product of them."""
    x = RNG.uniform(-3, 3, X.shape).astype(np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s_x", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s_x", "zero"], ["r"]),
        helper.make_node("DequantizeLinear", ["w", "s", "zeros"], ["d"], axis=1),
        helper.make_node("MatMul", ["r", "d"], ["y"]),
    ]
    step = np.float32(2.5 / 127)
    zeros = {"zeros": np.zeros(48, np.int8), "zero": np.array(0, np.int8)}
    weights = {"w": WEIGHT, "s": SCALE, "s_x": np.array(step), **zeros}
    expected = (np.clip(np.rint(x / step), -128, 127) * step) @ (WEIGHT * SCALE.astype(float))
    np.testing.assert_allclose(run(tmp_path, nodes, weights, {"x": x}), expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("transposed", [True, False], ids=["Gemm", "Conv"])
def test_weights_at_rest_are_float32_again_when_they_compute(tmp_path: Path, transposed: bool) -> None:
    """A scale per row of the weight: no other operator takes its place, and none rounds the activations."""
    x = RNG.uniform(-3, 3, X.shape).astype(np.float32)
    stored = np.ascontiguousarray(WEIGHT.T)
    product = helper.make_node("Gemm", ["x", "d"], ["y"], transB=1)
    nodes = [helper.make_node("DequantizeLinear", ["w", "s", "zeros"], ["d"], axis=0), product]
    weights = {"w": stored, "s": SCALE, "zeros": np.zeros(48, np.int8)}
    if not transposed:
        weights |= {"w": stored[..., None, None], "to": np.array([5, 192, 1, 1]), "back": np.array([5, 48])}
        nodes[1:] = [
            helper.make_node("Reshape", ["x", "to"], ["pixels"]),
            helper.make_node("Conv", ["pixels", "d"], ["c"]),
            helper.make_node("Reshape", ["c", "back"], ["y"]),
        ]
    expected = x.astype(float) @ (WEIGHT * SCALE.astype(float))
    np.testing.assert_allclose(run(tmp_path, nodes, weights, {"x": x}), expected, rtol=1e-5, atol=1e-2)


def test_the_setting_is_made_where_sums_saturate_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With VNNI it would make right sums slower. What the session was told is read back from it."""
    import onnxruntime

    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g",
                              [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])])  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "g.onnx")
    made: list[Any] = []
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, settings, **kw: (made.append(settings), session(path, settings, **kw))[1],
    )
    for saturate in (True, False):
        monkeypatch.setattr(engine_ort, "integer_sums_saturate", lambda saturate=saturate: saturate)
        open_engine(tmp_path / "g.onnx", EngineOptions()).close()
    assert made[0].get_session_config_entry("session.x64quantprecision") == "1"
    with pytest.raises(RuntimeError):
        made[1].get_session_config_entry("session.x64quantprecision")


def test_names_in_a_graph_command_no_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """ONNX Runtime would log them as they are, when a graph is loaded and when it runs: both fail here, and are raised."""
    for kind, complaint in (("Gather", "ONNX Runtime failed"), ("NoSuchOperator", "cannot load")):
        tensors = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
                   helper.make_tensor_value_info("i", TensorProto.INT64, [1])]  # fmt: skip
        node = helper.make_node(kind, ["x", "i"], ["y"], name="\x1b[2J", axis=0)
        outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])]
        graph = helper.make_graph([node], "g", tensors, outputs)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.save(model, tmp_path / "g.onnx")
        with pytest.raises(EngineError, match=complaint):
            engine = open_engine(tmp_path / "g.onnx", EngineOptions())
            inputs = {"x": np.zeros(2, np.float32), "i": np.array([7], np.int64)}
            engine.run(inputs, {"y": np.zeros(1, np.float32)})
        printed = capfd.readouterr()  # under qemu its own warnings, too
        assert printed.out == "" and "\x1b" not in printed.err and "onnxruntime" not in printed.err


def test_the_probe_is_the_graph_that_it_says() -> None:
    model = onnx.load_from_string(engine_ort.PROBE_GRAPH)
    onnx.checker.check_model(model, full_check=True)
    (node,), (weight,) = model.graph.node, model.graph.initializer
    assert node.op_type == "MatMulInteger" and numpy_helper.to_array(weight).tolist() == [[127]] * 4
