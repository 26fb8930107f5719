"""INT8 for ONNX Runtime: the numbers of the rewrite, the kernels that really run, and the bundle around them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from ditedge.calibration.formats import int8
from ditedge.calibration.formats.int8 import dynamic_int8, quantised_weight
from ditedge.calibration.graph.linears import find_linears
from ditedge.calibration.graph.surgery import load_graph, save_graph
from ditedge.calibration.options import QuantizeOptions
from ditedge.calibration.quantize import quantize_bundle
from ditedge.runtime import Session, open_bundle
from ditedge.runtime.bundle.manifest import MANIFEST_NAME
from ditedge.runtime.bundle.writing import hashed_files
from ditedge.runtime.errors import RequestError
from ditedge.runtime.loop.tables import step_tables
from ditedge.runtime.loop.verify import replay

RNG = np.random.default_rng(0)


def optimised_kernels(graph: Path, folder: Path) -> Counter[str]:
    """Operators of the graph as ONNX Runtime runs it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimised.onnx"), 3
    onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


@pytest.fixture(scope="module")
def quantised(golden_bundle, tmp_path_factory: pytest.TempPathFactory):
    """(float bundle, int8 bundle) of the smallest golden model."""
    made = tmp_path_factory.mktemp("int8") / "bundle"
    quantize_bundle(golden_bundle("gray1_cfg"), made, QuantizeOptions())
    return golden_bundle("gray1_cfg"), made


def test_weights_are_rounded_to_half_a_step_per_column() -> None:
    matrix = (RNG.standard_normal((64, 8)) * 10.0 ** RNG.uniform(-4, 2, 8)).astype(np.float32)
    matrix[:, 3] = 0
    weight, scale = quantised_weight(matrix)
    assert weight.dtype == np.int8 and np.abs(weight).max() == 127
    assert np.all(np.abs(weight * scale - matrix) <= 0.501 * scale)


def test_linears_carry_the_checkpoints_names(golden_bundle) -> None:
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    depth = bundle.manifest.model.depth
    layers = [f"blocks.{i}.{layer}" for i in range(depth) for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    step = find_linears(load_graph(bundle.graph_file("step")))
    assert [linear.name for linear in step] == [*layers, "final_layer.linear"]
    assert [linear.name for linear in step if linear.after_gelu] == [f"blocks.{i}.mlp.fc2" for i in range(depth)]
    names = {linear.name for linear in find_linears(load_graph(bundle.graph_file("conditioner")))}
    assert names >= {f"blocks.{i}.adaLN_modulation.1" for i in range(depth)} | {"t_embedder.mlp.2"}


def test_integer_kernels_run(quantised, tmp_path: Path) -> None:
    """Nothing folds back to float32: an integer kernel of each linear but the protected one, three of qkv."""
    bundle = open_bundle(quantised[1])
    kernels = optimised_kernels(bundle.graph_file("step"), tmp_path)
    integer = kernels["MatMulIntegerToFloat"]
    assert integer == 6 * bundle.manifest.model.depth, kernels
    floats = optimised_kernels(open_bundle(quantised[0]).graph_file("step"), tmp_path)
    products = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm")
    linears = sum(floats[name] for name in products) - sum(kernels[name] for name in products)
    assert linears == 4 * bundle.manifest.model.depth


def test_queries_keys_and_values_are_made_apart_and_no_bit_changes(
    golden_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three products of the same rounded rows instead of one that is taken apart by copying."""
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    tables = step_tables(bundle.program("ddim-25"), bundle.manifest.model, [1, 2], 3.0)
    state = RNG.standard_normal((2, 1, *bundle.manifest.model.latent_shape)).astype(np.float32)
    with Session(bundle) as session:
        inputs = session.step_inputs(tables, 3, state)

    def next_state(name: str) -> np.ndarray:
        model = load_graph(bundle.graph_file("step"))
        dynamic_int8(model, [linear for linear in find_linears(model) if linear.name.startswith("blocks.")])
        save_graph(model, tmp_path / f"{name}.onnx")
        session = onnxruntime.InferenceSession(tmp_path / f"{name}.onnx", providers=["CPUExecutionProvider"])
        names = {tensor.name for tensor in session.get_inputs()}
        return session.run(None, {name: array for name, array in inputs.items() if name in names})[0]

    apart = next_state("apart")
    monkeypatch.setattr(int8, "heads_of", lambda linear: None)
    assert np.array_equal(apart, next_state("whole"))
    slices = [
        Counter(node.op_type for node in onnx.load(tmp_path / f"{name}.onnx").graph.node)["Slice"]
        for name in ("whole", "apart")
    ]
    assert slices[0] - slices[1] == 3 * bundle.manifest.model.depth


def test_int8_stays_near_float_and_verifies(quantised) -> None:
    """Weights and activations of 8 bits: a relative error of about 1 % per linear, a few per cent on a trajectory."""
    float_bundle, int8_bundle = (open_bundle(path) for path in quantised)
    with Session(int8_bundle) as session:
        results = [replay(session, golden) for golden in int8_bundle.manifest.golden]
    assert results and all(result.passed for result in results)
    worst = max(float(np.max(result.error)) for result in results)
    assert 1e-4 < worst < 0.2, "either nothing was rounded, or the network is broken"
    assert int8_bundle.manifest.quantization is not None
    assert int8_bundle.manifest.quantization.source_bundle == float_bundle.sha256


def test_what_is_kept_stays_float(golden_bundle, tmp_path: Path) -> None:
    manifest = quantize_bundle(
        golden_bundle("gray1_cfg"), tmp_path / "kept", QuantizeOptions(keep=("fc2", "blocks.0.attn.qkv"))
    )
    assert manifest.quantization is not None
    kept = {linear.name for linear in find_linears(load_graph(tmp_path / "kept" / "step.onnx"))}
    assert kept == set(manifest.quantization.kept)
    assert {"final_layer.linear", "blocks.0.mlp.fc2", "blocks.0.attn.qkv"} <= kept


def test_weights_in_a_data_file(golden_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A float step graph over 64 MB has its weights in step.onnx.data; the quantised one is small enough without."""
    source = Path(shutil.copytree(golden_bundle("gray1_cfg"), tmp_path / "large"))
    with monkeypatch.context() as patched:
        patched.setattr("ditedge.calibration.graph.surgery.EXTERNAL_DATA_BYTES", 0)
        save_graph(load_graph(golden_bundle("gray1_cfg") / "step.onnx"), source / "step.onnx")
    assert (source / "step.onnx.data").stat().st_size > 10_000
    manifest = json.loads((source / "manifest.json").read_text())
    manifest["files"] = {
        name: info.model_dump() for name, info in hashed_files(source).items() if name != MANIFEST_NAME
    }
    (source / "manifest.json").write_text(json.dumps(manifest))
    files = quantize_bundle(source, tmp_path / "small", QuantizeOptions()).files
    assert "step.onnx" in files and "step.onnx.data" not in files
    open_bundle(tmp_path / "small")
    static = QuantizeOptions(form="tensorrt", samples=2, steps=2, sampler="ddim", statistics=tmp_path / "statistics")
    quantize_bundle(source, tmp_path / "static", static)  # instrumented and smoothed graphs, too


def test_refusals(golden_bundle, quantised, tmp_path: Path) -> None:
    source, done = quantised
    with pytest.raises(RequestError, match="quantised already"):
        quantize_bundle(done, tmp_path / "twice", QuantizeOptions())
    with pytest.raises(RequestError, match="no such layer"):
        quantize_bundle(source, tmp_path / "layer", QuantizeOptions(keep=("blocks.99",)))
    with pytest.raises(RequestError, match="already exists"):
        quantize_bundle(source, done, QuantizeOptions())
    assert list(tmp_path.iterdir()) == []


def test_no_kernel_depends_on_the_processor(quantised, tmp_path: Path) -> None:
    """Softmax is the one kernel of a step whose last bits do (see attention.py)."""
    kernels = optimised_kernels(open_bundle(quantised[1]).graph_file("step"), tmp_path)
    assert kernels["Softmax"] == 0 and kernels["Exp"] >= open_bundle(quantised[0]).manifest.model.depth


def test_a_row_of_the_conditioner_does_not_depend_on_how_many_there_are(quantised) -> None:
    """A product of one row has a kernel of its own in ONNX Runtime, with other last bits."""
    bundle = open_bundle(quantised[1])
    timestep = np.linspace(999, 0, 12).astype(np.float32)
    label = (np.arange(12) % bundle.manifest.model.num_classes).astype(np.int64)
    width = int(bundle.manifest.graphs["conditioner"].outputs[0].shape[1])
    with Session(bundle) as session:

        def rows(part: slice) -> np.ndarray:
            modulation = np.empty((len(timestep[part]), width), np.float32)
            pairs = {"timestep": timestep[part].copy(), "label": label[part].copy()}
            session.engine("conditioner").run(pairs, {"modulation": modulation})
            return modulation

        together = rows(slice(None))
        for i in range(12):
            assert np.array_equal(rows(slice(i, i + 1))[0], together[i])
        assert np.array_equal(rows(slice(3, 8)), together[3:8])
