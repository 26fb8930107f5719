"""16-bit bundles: the right nodes in 16 bit, trajectories and pictures as in float32, overflows found and avoided."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from ditedge.calibration import accuracy, image_features
from ditedge.calibration.convert import convert_bundle
from ditedge.calibration.graph import lowering, surgery
from ditedge.calibration.options import ConvertOptions, QuantizeOptions
from ditedge.calibration.quantize import quantize_bundle
from ditedge.calibration.statistics.overflow import overflow_scan, too_large
from ditedge.cli import main
from ditedge.export import ExportOptions, bundle_from_checkpoint
from ditedge.runtime import Session, generate, open_bundle
from ditedge.runtime.errors import RequestError
from ditedge.runtime.loop.engine import EngineOptions
from ditedge.runtime.loop.engines import open_engine
from ditedge.runtime.loop.verify import replay
from tests.conftest import CASES, GOLDEN, MODELS, ROOT

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def worst_end(folder: Path) -> float:
    with Session(open_bundle(folder, check_hashes=False)) as session:
        return max(replay(session, golden).error[-1] for golden in session.bundle.manifest.golden)


@pytest.mark.parametrize(("name", "bits"), [("fp16", 11), ("bf16", 8)])
def test_emulation_rounds_like_pytorch(gray_bundle: Path, tmp_path: Path, name: str, bits: int) -> None:
    """The first block's qkv product against torch: operands and result rounded to 16 bit, sums in float32."""
    torch = pytest.importorskip("torch")
    convert_bundle(gray_bundle, tmp_path / "low", ConvertOptions(name))
    model = ir.load(tmp_path / "low" / "step.onnx")
    gemm = next(node for node in model.graph if node.op_type in ("MatMul", "Gemm"))
    weight = gemm.inputs[1].const_value.numpy().astype(np.float32)
    lowering.emulated(model)
    low = {"fp16": torch.float16, "bf16": torch.bfloat16}[name]
    assert np.array_equal(torch.from_numpy(weight).to(low).float().numpy(), weight)
    product = next(node for node in model.graph if node.op_type == gemm.op_type)
    (rounded,) = [use.node for use in product.outputs[0].uses()]
    assert rounded.op_type == "Cast" and rounded.attributes["to"].as_int() == int(
        {"fp16": HALF, "bf16": ir.DataType.BFLOAT16}[name]
    )
    assert {value.dtype for value in product.inputs if value is not None} == {FLOAT}
    for output in (product.outputs[0], rounded.outputs[0]):
        output.name = f"seen_{output.dtype.name}"
    cast = ir.node("Cast", [rounded.outputs[0]], attributes={"to": int(FLOAT)})
    model.graph.append(cast)
    cast.outputs[0].name, cast.outputs[0].dtype, cast.outputs[0].shape = "seen", FLOAT, product.outputs[0].shape
    model.graph.outputs[:] = [product.outputs[0], cast.outputs[0]]
    ir.save(model, tmp_path / "seen.onnx")
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "seen.onnx")
    exact, seen = session.run(None, {k.name: v for k in session.get_inputs() for v in [random_input(k)]})
    assert np.array_equal(torch.from_numpy(exact).to(low).float().numpy(), seen)
    error = np.linalg.norm(seen - exact) / np.linalg.norm(exact)
    assert 0.1 * 2.0**-bits < error < 2.0**-bits


def random_input(tensor) -> np.ndarray:
    shape = [
        size if isinstance(size, int) else 4 if tensor.name == "mix" and size == tensor.shape[2] else 2
        for size in tensor.shape
    ]
    if "int64" in tensor.type:
        return np.zeros(shape, np.int64)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_what_is_built_is_what_was_checked(golden_bundle, tmp_path: Path, name: str) -> None:
    """The 16-bit graphs compile for three architectures, strongly typed, from the very files that were replayed."""
    pytest.importorskip("tensorrt_rtx")
    from ditedge.runtime.plans.build import build_bundle
    from ditedge.runtime.plans.options import BuildOptions

    convert_bundle(golden_bundle("latent4_learned_sigma"), tmp_path / "low", ConvertOptions(name))
    bundle = open_bundle(tmp_path / "low")
    record = build_bundle(bundle, BuildOptions("tensorrt-rtx", archs=("sm86", "sm89", "sm120")))
    assert record.plans["step"].source_sha256 == bundle.manifest.files["step.onnx"].sha256
    assert record.compute_capabilities == ["sm86", "sm89", "sm120"]


def test_a_quantised_bundle_in_fp16(gray_bundle: Path, tmp_path: Path) -> None:
    """int8 linears, 16-bit attention: Q/DQ pairs begin and end in 16 bit next to 16-bit nodes, and it compiles."""
    rtx = pytest.importorskip("tensorrt_rtx")
    from ditedge.runtime.plans.build import build_bundle
    from ditedge.runtime.plans.options import BuildOptions

    options = QuantizeOptions(form="tensorrt", samples=2, statistics=tmp_path / "s.safetensors")
    quantize_bundle(gray_bundle, tmp_path / "int8", options)
    convert_bundle(tmp_path / "int8", tmp_path / "low", ConvertOptions("fp16"))
    bundle = open_bundle(tmp_path / "low")
    assert bundle.manifest.quantization is not None and bundle.manifest.graphs["step"].precision == "float16"
    graph = ir.load(tmp_path / "low" / "step.onnx").graph
    back = [node for node in graph if node.op_type == "DequantizeLinear"]
    assert len(back) > 8
    for node in back:
        assert node.inputs[0].dtype == ir.DataType.INT8 or node.inputs[0].producer().op_type == "QuantizeLinear"
        assert node.inputs[1].dtype == node.outputs[0].dtype == HALF
        assert {use.node.op_type for use in node.outputs[0].uses()} <= {"MatMul", "Gemm"}
    assert rtx and build_bundle(bundle, BuildOptions("tensorrt-rtx", archs=("sm86",))).plans["step"].plan.bytes > 0
    with pytest.raises(RequestError, match="quantised for ONNX Runtime"):
        quantize_bundle(gray_bundle, tmp_path / "cpu", QuantizeOptions())
        convert_bundle(tmp_path / "cpu", tmp_path / "x", ConvertOptions("fp16"))


@pytest.mark.parametrize("case", CASES)
def test_fp16_trajectories(golden_bundle, tmp_path: Path, case: str) -> None:
    convert_bundle(golden_bundle(case), tmp_path / "half", ConvertOptions("fp16"))
    assert worst_end(tmp_path / "half") <= 2e-2
    assert open_bundle(tmp_path / "half").manifest.graphs["step"].precision == "float16"


def test_structure(gray_bundle: Path, tmp_path: Path) -> None:
    convert_bundle(gray_bundle, tmp_path / "half", ConvertOptions("fp16"))
    graph = ir.load(tmp_path / "half" / "step.onnx").graph
    assert {v.dtype for v in [*graph.inputs, *graph.outputs]} == {FLOAT, ir.DataType.INT64}
    blocks = open_bundle(gray_bundle).manifest.model.depth
    softmaxes = [node for node in graph if node.op_type == "Softmax"]
    assert len(softmaxes) == blocks
    for node in softmaxes:  # MatMul, scale, Softmax, MatMul: nothing between, all in 16 bit
        scale = node.inputs[0].producer()
        assert scale.op_type == "Mul" and scale.inputs[0].producer().op_type == "MatMul"
        assert [use.node.op_type for use in node.outputs[0].uses()] == ["MatMul"]
        assert node.outputs[0].dtype == scale.outputs[0].dtype == HALF
    for node in graph:
        dtypes = {v.dtype for v in node.inputs if v is not None and v.dtype in (FLOAT, HALF)}
        assert len(dtypes) <= 1, node
        if node.op_type in ("LayerNormalization", "Einsum", "Exp", "Min", "Max"):
            assert dtypes == {FLOAT}
        if node.op_type in ("MatMul", "Gemm", "Conv"):
            assert dtypes == {HALF}
        if node.op_type == "Cast":
            producer = node.inputs[0].producer()
            assert producer is None or producer.op_type != "Cast", "casts that cancel"
    assert all(v.dtype == HALF for v in graph.initializers.values() if len(v.shape) == 2)
    ratio = (tmp_path / "half" / "step.onnx").stat().st_size / (gray_bundle / "step.onnx").stat().st_size
    assert ratio < 0.75, "the graph itself is a third of this tiny file"


def test_weights_beside_the_graph(gray_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surgery, "EXTERNAL_DATA_BYTES", 1000)
    convert_bundle(gray_bundle, tmp_path / "half", ConvertOptions("fp16"))
    assert "step.onnx.data" in open_bundle(tmp_path / "half").manifest.files
    assert worst_end(tmp_path / "half") <= 2e-2


def test_weights_beside_the_source_alone(gray_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that shrinks below the limit takes the weights that stay float32 out of the source's .data file."""
    monkeypatch.setattr("ditedge.calibration.graph.surgery.EXTERNAL_DATA_BYTES", 100_000)
    bundle_from_checkpoint(GOLDEN / "gray1_cfg" / "model.safetensors", tmp_path / "big", ExportOptions(heads=2))
    assert (tmp_path / "big" / "step.onnx.data").exists()
    convert_bundle(tmp_path / "big", tmp_path / "half", ConvertOptions("fp16"))
    assert not (tmp_path / "half" / "step.onnx.data").exists()
    assert worst_end(tmp_path / "half") <= 2e-2


def test_planted_overflow(tmp_path: Path) -> None:
    weights = load_file(GOLDEN / "gray1_cfg" / "model.safetensors")
    for name in ("weight", "bias"):
        weights[f"blocks.0.mlp.fc1.{name}"] = weights[f"blocks.0.mlp.fc1.{name}"] * np.float32(1e6)
    weights["blocks.0.mlp.fc2.weight"] = weights["blocks.0.mlp.fc2.weight"] * np.float32(1e-6)
    save_file(weights, tmp_path / "m.safetensors")
    source = tmp_path / "planted"
    bundle_from_checkpoint(tmp_path / "m.safetensors", source, ExportOptions(heads=2))
    found = too_large(overflow_scan(open_bundle(source), tmp_path)["step"])
    assert any("gelu" in name for name in found), found
    naive = Path(shutil.copytree(source, tmp_path / "naive"))
    model = ir.load(source / "step.onnx")
    lowering.lower(model, HALF)
    (naive / "step.onnx").unlink()
    surgery.save_graph(model, naive / "step.onnx")
    with pytest.raises(Exception, match=r"match its hash"):
        open_bundle(naive)
    convert_bundle(source, tmp_path / "fixed", ConvertOptions("fp16"))
    assert worst_end(tmp_path / "fixed") <= 2e-2
    shutil.copyfile(naive / "step.onnx", tmp_path / "fixed" / "step.onnx")
    step = open_engine(naive / "step.onnx", EngineOptions())
    with Session(open_bundle(source), engines={"step": step}) as session:
        assert not np.isfinite(replay(session, session.bundle.manifest.golden[0]).error[-1])


@pytest.mark.parametrize(("label", "seconds"), [(5, 60.0), (7, 60.0), (5, 0.0)])
def test_a_class_that_no_trajectory_visits(
    golden_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: int, seconds: float
) -> None:
    """One class of ten overflows float16: it is found, kept in float32, and its picture is what it was.

    seconds 0: there is time for one class only, and it is the one with the largest conditioning.
    """
    from ditedge.calibration.statistics import overflow
    from tests.conftest import overheat

    monkeypatch.setattr(overflow, "SCAN_SECONDS", seconds)
    source = overheat(Path(shutil.copytree(golden_bundle("gray1_cfg"), tmp_path / "hot")), label, 1e5)
    said: list[str] = []
    convert_bundle(
        source, tmp_path / "half", ConvertOptions("fp16"), report=lambda what, done=0, total=0: said.append(what)
    )
    (scanned,) = [line for line in said if line.startswith("scanned")]
    assert ("all 10 classes" if seconds else "the 1 of 10 classes with the largest conditioning") in scanned, scanned
    assert f"class {', '.join(map(str, sorted([0, 3, 6, 9, label])))};" in scanned
    assert any("kept in float32" in line for line in said)
    labels, program = [label, 0], {"program": open_bundle(source).program(steps=3), "output": "latents"}
    half, full = (generate(open_bundle(tmp_path / name), labels, [1, 2], **program) for name in ("half", "hot"))
    assert np.isfinite(full).all() and np.linalg.norm(half - full) <= 2e-2 * np.linalg.norm(full)


def test_extremes_of_programs(golden_bundle) -> None:
    from ditedge.calibration.statistics.overflow import extreme_rows

    bundle = open_bundle(golden_bundle("gray1_cfg"))
    assert extreme_rows(bundle.program(sampler="ddim", steps=6)) == [0, 5]
    rows = extreme_rows(bundle.program(sampler="euler-ancestral", steps=6))
    assert rows[0] == 0 and rows[-1] == 5 and len(rows) <= 4


def test_command_line(gray_bundle: Path, tmp_path: Path) -> None:
    def ditedge(*arguments: object):
        return CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)

    brain, half = tmp_path / "brain", tmp_path / "half"
    result = ditedge("convert", "--engine", gray_bundle, "--precision", "bf16", "--out", brain)
    assert result.exit_code == 0, result.output
    onnx.checker.check_model(str(brain / "step.onnx"), full_check=True)
    for arguments, complaint in (
        (["verify", "--engine", brain], "cannot run"),
        (["run", "--engine", brain, "-o", tmp_path / "x.png"], "cannot run"),
        (["convert", "--engine", brain, "--precision", "fp16", "--out", half], "already in 16 bit"),
        (["convert", "--engine", gray_bundle, "--precision", "fp16", "--out", brain], "--force"),
        (
            ["convert", "--engine", gray_bundle, "--precision", "fp16", "--out", gray_bundle, "--force"],
            "another --out",
        ),
    ):
        result = ditedge(*arguments)
        assert result.exit_code == 2 and complaint in result.stderr and not half.exists(), result.output
    checkpoint = GOLDEN / "gray1_cfg" / "model.safetensors"
    result = ditedge("export", "--ckpt", checkpoint, "--heads", 2, "--precision", "fp16", "--out", half)
    assert result.exit_code == 0 and ditedge("verify", "--engine", half).exit_code == 0, result.output


WITHOUT_TORCH = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "diffusers") or name.startswith("ditedge.export"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
from ditedge.cli import main
main(sys.argv[1:])
"""


def test_it_needs_no_pytorch(gray_bundle: Path, tmp_path: Path) -> None:
    command = ["convert", "--engine", str(gray_bundle), "--precision", "bf16", "--out", str(tmp_path / "low")]
    result = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *command], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "bf16, checked" in result.stdout, result.stderr


@pytest.mark.slow
def test_trained_model(tmp_path: Path) -> None:
    bundle_from_checkpoint(MODELS / "fashion-dit.safetensors", tmp_path / "f", ExportOptions(heads=3))
    convert_bundle(tmp_path / "f", tmp_path / "h", ConvertOptions("fp16"))
    assert worst_end(tmp_path / "h") <= 2e-2
    labels, found = [i % 10 for i in range(300)], []
    for name in ("f", "h"):
        bundle = open_bundle(tmp_path / name)
        images = generate(bundle, labels, seeds=range(300), program=bundle.program(steps=25), batch=25)
        logits, _ = image_features(MODELS / "fashion_classifier.onnx", images)
        found.append(accuracy(logits, np.array(labels)))
    print(found)
    assert abs(found[0] - found[1]) <= 0.01
