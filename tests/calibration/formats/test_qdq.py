"""Q/DQ graphs: the numbers against numpy, TensorRT-RTX's own opinion of them, and the bundles made of them."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from ditedge.calibration.formats import quantised_format
from ditedge.calibration.formats.fp8 import static_fp8
from ditedge.calibration.formats.int8 import static_int8
from ditedge.calibration.graph.linears import find_linears
from ditedge.calibration.graph.surgery import save_graph
from ditedge.calibration.options import QuantizeOptions
from ditedge.calibration.quantize import quantize_bundle
from ditedge.runtime import Session, open_bundle
from ditedge.runtime.bundle.open import Bundle
from ditedge.runtime.errors import RequestError
from ditedge.runtime.loop.engine import EngineOptions
from ditedge.runtime.loop.engines import open_engine
from ditedge.runtime.loop.verify import relative_error, replay

RNG = np.random.default_rng(0)
MATRIX = (RNG.standard_normal((64, 48)) * 10.0 ** RNG.uniform(-2, 0, 48)).astype(np.float32)
BIAS = RNG.standard_normal(48).astype(np.float32)
X = RNG.standard_normal((2, 5, 64)).astype(np.float32)


def linear_model() -> Any:
    """x [E, T, 64] @ MATRIX + BIAS, as the exporter writes it."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "network.fc.bias"], ["y"])]
    tensors = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["E", "T", s]) for n, s in (("x", 64), ("y", 48))]
    weights = [numpy_helper.from_array(MATRIX, "w"), numpy_helper.from_array(BIAS, "network.fc.bias")]
    graph = helper.make_graph(nodes, "linear", tensors[:1], tensors[1:], weights)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def run_model(model: Any, folder: Path) -> np.ndarray:
    save_graph(model, folder / "model.onnx")
    onnx.checker.check_model(onnx.load(folder / "model.onnx"))
    result = np.empty((*X.shape[:2], MATRIX.shape[1]), np.float32)
    with closing(open_engine(folder / "model.onnx", EngineOptions())) as engine:
        engine.run({"x": X}, {"y": result})
    return result


def test_static_int8_is_the_formula(tmp_path: Path) -> None:
    amax = 2.5  # some of X is larger and must saturate
    assert np.abs(X).max() > amax
    model = linear_model()
    static_int8(model, find_linears(model), {"fc": amax})
    x = np.clip(np.rint(X / np.float32(amax / 127)), -128, 127) * (amax / 127)
    scale = np.abs(MATRIX).max(0) / 127
    expected = x @ (np.rint(MATRIX / scale) * scale) + BIAS
    np.testing.assert_allclose(run_model(model, tmp_path), expected, rtol=1e-4, atol=1e-4)


def test_static_fp8_is_the_formula(tmp_path: Path) -> None:
    amax = float(np.abs(X).max())
    model = linear_model()
    static_fp8(model, find_linears(model), {"fc": amax})

    def rounded(values: np.ndarray, scale: Any) -> np.ndarray:
        return (values / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale

    expected = rounded(X, np.float32(amax / 448)) @ rounded(MATRIX, np.abs(MATRIX).max(0) / np.float32(448)) + BIAS
    np.testing.assert_allclose(run_model(model, tmp_path), expected, rtol=1e-3, atol=1e-3)
    assert 0.005 < relative_error(expected, X @ MATRIX + BIAS) < 0.06  # 3 bits of mantissa


def test_int4_forms_agree_and_use_16_levels(tmp_path: Path) -> None:
    results = {}
    for runtime in ("tensorrt", "onnxruntime"):
        model = linear_model()
        quantised_format("int4").scheme(runtime).rewrite(model, find_linears(model), {})
        if runtime == "tensorrt":
            stored = model.graph.initializers["fc.weight_rounded"].const_value
            assert stored.dtype == ir.DataType.INT4 and set(np.unique(stored.numpy().astype(int))) == set(range(-8, 8))
        results[runtime] = run_model(model, tmp_path)
    # MatMulNBits may round the activations to 8 bits, depending on the processor
    assert relative_error(results["onnxruntime"], results["tensorrt"]) < 0.02
    assert 0.01 < relative_error(results["tensorrt"], X @ MATRIX + BIAS) < 0.2


@pytest.fixture(scope="module")
def quantised(collected, tmp_path_factory: pytest.TempPathFactory):
    """quantised(**options) -> a bundle of the smallest golden model, made once."""
    made: dict[str, Path] = {}

    def make(**options: Any) -> Bundle:
        key = repr(sorted(options.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("qdq") / "bundle"
            given = {"program": "ddim-10", "samples": 4, "statistics": made[key].parent / "statistics.safetensors"}
            quantize_bundle(collected()[0], made[key], QuantizeOptions(**given, **options))
        return open_bundle(made[key])

    return make


FORMS: list[dict[str, Any]] = [
    {"form": "tensorrt"},
    {"form": "tensorrt", "precision": "fp8"},
    {"form": "tensorrt", "precision": "int4"},
    {"form": "onnxruntime", "precision": "int4"},
]


@pytest.mark.parametrize("options", FORMS, ids=lambda options: "-".join(options.values()))
def test_bundles_run_and_verify_on_the_cpu(quantised, options: dict[str, Any]) -> None:
    bundle = quantised(**options)
    with Session(bundle) as session:
        results = [replay(session, golden) for golden in bundle.manifest.golden]
    assert all(result.passed for result in results)
    assert 1e-4 < max(float(np.max(result.error)) for result in results) < 0.5


def test_static_int8_has_one_pair_per_linear(quantised) -> None:
    bundle = quantised(form="tensorrt")
    linears = 4 * bundle.manifest.model.depth
    kinds = Counter(node.op_type for node in onnx.load(bundle.graph_file("step")).graph.node)
    assert kinds["QuantizeLinear"] == linears and kinds["DequantizeLinear"] == 2 * linears
    info = bundle.manifest.quantization
    assert info is not None and info.activations == "static" and info.smoothing == 0.5 and info.calibration


def test_the_naive_baseline_is_worse(quantised) -> None:
    worst = {}
    for naive in (False, True):
        bundle = quantised(form="tensorrt", naive=naive)
        with Session(bundle) as session:
            worst[naive] = max(float(np.max(replay(session, golden).error)) for golden in bundle.manifest.golden)
    assert bundle.manifest.quantization.kept == [] and worst[True] > worst[False]


def build(path: Path, bundle: Bundle, graph: str, architecture: str) -> str:
    """ "" when TensorRT-RTX builds the graph for this architecture, else what it said."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: nothing can judge Q/DQ graphs")
    said: list[str] = []

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                said.append(message)

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(path)), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, architecture), 0)
    sizes = {"B": (1, 1, 2), "K": (1, 1, 3), "K+2": (3, 3, 5), "E": (1, 2, 4), "U": (1, 2, 4)}
    shapes = {tensor.name: tensor.shape for tensor in bundle.manifest.graphs[graph].inputs}  # type: ignore[index]
    for i in range(network.num_inputs):
        name = network.get_input(i).name
        ranges = [tuple(sizes[d][k] if isinstance(d, str) else d for d in shapes[name]) for k in range(3)]
        profile.set_shape(name, *ranges)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    return "" if plan is not None else " ".join(said)


@pytest.mark.parametrize(
    "options,architecture", [*zip(FORMS[:3], ("SM86", "SM89", "SM86"), strict=True)], ids=("int8", "fp8", "int4")
)
def test_tensorrt_builds_the_step(quantised, options: dict[str, Any], architecture: str) -> None:
    bundle = quantised(**options)
    assert build(bundle.graph_file("step"), bundle, "step", architecture) == ""


def test_tensorrt_builds_the_conditioner(quantised) -> None:
    bundle = quantised(form="tensorrt")
    assert build(bundle.graph_file("conditioner"), bundle, "conditioner", "SM86") == ""


def test_fp8_is_refused_for_gpus_without_it(quantised, collected, tmp_path: Path) -> None:
    """By us, in a sentence, before any work; and TensorRT agrees."""
    with pytest.raises(RequestError, match="sm86 has no FP8 arithmetic"):
        quantize_bundle(collected()[0], tmp_path / "fp8", QuantizeOptions("fp8", "tensorrt", arch="sm86"))
    bundle = quantised(form="tensorrt", precision="fp8")
    assert "fp8" in build(bundle.graph_file("step"), bundle, "step", "SM86").lower()
