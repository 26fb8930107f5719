"""Quantised bundles that take prompts: calibrated and judged over prompts, in ONNX Runtime's and TensorRT's form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from ditedge.calibration import compare_bundles, read_quality
from ditedge.calibration.formats.smooth import smooth
from ditedge.calibration.graph.linears import find_linears
from ditedge.calibration.graph.surgery import load_graph, save_graph
from ditedge.calibration.options import QuantizeOptions
from ditedge.calibration.pool import pool_of
from ditedge.calibration.quality.report import report_html
from ditedge.calibration.quality.request import CompareRequest
from ditedge.calibration.quantize import quantize_bundle
from ditedge.calibration.statistics.collect import CalibrationSet, Statistics, collect_statistics
from ditedge.cli import main
from ditedge.runtime import Session, generate, open_bundle
from ditedge.runtime.loop.engine import EngineOptions
from ditedge.runtime.loop.engines import open_engine
from tests.conftest import BUNDLES, PIXART

BUNDLE = BUNDLES / PIXART
POINTS = CalibrationSet(samples=2, timesteps=4, groups=2, batch=2)
QUICK = CompareRequest(count=2, steps=4, speed_rounds=0)
LINEARS = 2 * 8 + 1  # of two blocks of self-attention, cross-attention and feed-forward; the last one


def ditedge(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code and (code == 0 or "Traceback" not in result.output), result.output
    return result.output


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "list.txt"
    file.write_text("a red fox\nan ankle boot\nsnow on a handbag\n")
    return file


@pytest.fixture(scope="module")
def statistics(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Statistics]:
    bundle, cache = open_bundle(BUNDLE), tmp_path_factory.mktemp("statistics") / "list.safetensors"
    return cache, collect_statistics(bundle, pool_of(bundle, prompts), bundle.program("ddim-10"), POINTS, cache)


def test_statistics_are_of_every_token_of_prompts_trajectories(
    prompts: Path, statistics: tuple[Path, Statistics], tmp_path: Path
) -> None:
    cache, found = statistics
    assert len(found.layers) == LINEARS
    bundle, tokens = open_bundle(BUNDLE), 4 * 4
    for layer in found.layers.values():  # one sample guided, one not: three evaluations, at two steps of each group
        assert layer.rows.tolist() == [2 * 3 * tokens] * 2
    q, k, v = (found.layers[f"transformer_blocks.0.attn1.to_{name}"] for name in "qkv")
    np.testing.assert_array_equal(q.channel_max, k.channel_max)
    np.testing.assert_array_equal(q.channel_sum, v.channel_sum)
    pool, ran = pool_of(bundle, prompts), []
    again = collect_statistics(
        bundle, pool, bundle.program("ddim-10"), POINTS, cache, lambda what, done, total: ran.append(done)
    )
    assert not ran and again.fingerprint == found.fingerprint
    (tmp_path / "other.txt").write_text("a red fox\n")
    other = pool_of(bundle, tmp_path / "other.txt")
    collected = collect_statistics(bundle, other, bundle.program("ddim-10"), POINTS, tmp_path / "cache")
    assert collected.fingerprint != found.fingerprint


def test_smoothing_changes_no_number_but_those_that_are_rounded(
    statistics: tuple[Path, Statistics], tmp_path: Path
) -> None:
    """q, k and v alike, because they read one value; each in front of its own two nodes, and of what prompts say none:
    a prompt that calibration has not seen would leave the channels' ranges."""
    bundle = open_bundle(BUNDLE)
    step, conditioner = (load_graph(bundle.graph_file(name)) for name in ("step", "conditioner"))
    moved = smooth(step, conditioner, statistics[1], 0.7, online=True)
    names = [value.name for node in step.graph for value in node.outputs]
    assert sum(name.endswith(".smoothed") for name in names) == 2 * 5 + 1
    assert not any("attn2.to_out" in name and name.endswith(".smoothed") for name in names)
    largest = [moved.layers[f"transformer_blocks.0.attn1.to_{name}"].channel_amax for name in "qkv"]
    np.testing.assert_array_equal(largest[0], largest[1])
    np.testing.assert_array_equal(largest[0], largest[2])
    save_graph(step, tmp_path / "step.onnx")
    settings = {"prompts": ["a red fox", "boots"], "seeds": [1, 2], "output": "latents"}
    engines = {"step": open_engine(tmp_path / "step.onnx", EngineOptions())}
    with Session(bundle, engines=engines) as session:
        smoothed = generate(bundle, session=session, **settings)
    exact = generate(bundle, **settings)
    assert np.linalg.norm(smoothed - exact) <= 1e-5 * np.linalg.norm(exact)


@pytest.mark.parametrize(("form", "precision"), [("onnxruntime", "int8"), ("tensorrt", "int8"), ("tensorrt", "int4")])
def test_every_linear_is_rounded_and_pictures_stay(
    form: str, precision: str, prompts: Path, statistics: tuple[Path, Statistics], tmp_path: Path
) -> None:
    options = QuantizeOptions(
        precision, form, prompts=prompts, statistics=tmp_path / "s", samples=2, program="ddim-10", quality=QUICK
    )
    said: list[str] = []
    manifest = quantize_bundle(BUNDLE, tmp_path / "q", options, lambda what, *_: said.append(what))
    info = manifest.quantization
    assert info is not None and info.kept == ["proj_out"]
    assert (info.calibration is not None) == (form == "tensorrt" and precision == "int8")
    assert [linear.name for linear in find_linears(load_graph(tmp_path / "q" / "step.onnx"))] == ["proj_out"]
    left = [linear.name for linear in find_linears(load_graph(tmp_path / "q" / "context.onnx"))]
    assert left == ["caption_projection.linear_1", "caption_projection.linear_2"]
    bundle, whole = open_bundle(tmp_path / "q"), open_bundle(BUNDLE)
    assert max(golden.tolerance for golden in manifest.golden) < (0.05 if precision == "int8" else 0.35)
    for file in ("text.onnx", "text/tokenizer.json", "text/empty.safetensors", "position.onnx"):
        assert bundle.manifest.files[file] == whole.manifest.files[file]
    quality = read_quality(tmp_path / "q" / "quality" / "quality.json")
    assert quality.settings.prompts == ["a red fox", "an ankle boot"]
    page = (tmp_path / "q" / "quality" / "report.html").read_text()
    assert "2 prompts through both bundles" in page and "Row by row: a red fox; an ankle boot" in page
    if precision == "int8":
        assert 0 < quality.drift.relative < 0.02
    assert not any("no prompts given" in line for line in said)
    ditedge("verify", "--engine", tmp_path / "q")


def test_q_k_and_v_share_their_rounding(prompts: Path, tmp_path: Path) -> None:
    options = QuantizeOptions(form="tensorrt", prompts=prompts, statistics=tmp_path / "s", samples=2, program="ddim-10")
    quantize_bundle(BUNDLE, tmp_path / "q", options)
    graph = ir.load(tmp_path / "q" / "step.onnx").graph
    pairs = [node for node in graph if node.op_type == "QuantizeLinear"]
    assert len(pairs) == 2 * 6  # of 16 linears: q, k and v of self-attention have one
    readers = {len(node.outputs[0].consumers()[0].outputs[0].consumers()) for node in pairs}
    assert readers == {1, 3}


def test_layers_are_ranked_over_prompts(prompts: Path, tmp_path: Path) -> None:
    options = QuantizeOptions("int8", keep_count=2, prompts=prompts, program="ddim-10")
    manifest = quantize_bundle(BUNDLE, tmp_path / "q", options)
    ranking = [entry["layer"] for entry in json.loads((tmp_path / "q" / "sensitivity.json").read_text())]
    assert len(ranking) == LINEARS - 1 and "transformer_blocks.1.attn2.to_q" in ranking
    assert manifest.quantization is not None and manifest.quantization.kept == ["proj_out", *ranking[:2]]


def bytes_of_weights(graph: Path) -> int:
    """Of so small an encoder names are a third of the file."""
    return sum(len(tensor.raw_data) for tensor in onnx.load(graph).graph.initializer)


@pytest.mark.parametrize(("weights", "most"), [("int8", 0.02), ("int4", 0.3)])
def test_the_encoders_weights_alone(weights: str, most: float, tmp_path: Path) -> None:
    """Everything else is as it was, and the report is of each side's own encoder."""
    out = ditedge(
        "quantize", "--engine", BUNDLE, "--text-encoder-alone", "--text-encoder", weights, "--count", 2, "--steps", 4,
        "--out", tmp_path / "q",
    )  # fmt: skip
    assert "in float32: all but the text encoder" in out
    bundle, whole = open_bundle(tmp_path / "q"), open_bundle(BUNDLE)
    changed = {name for name, info in bundle.manifest.files.items() if whole.manifest.files.get(name) != info}
    assert changed == {"text.onnx", "quality/quality.json", "quality/report.html"}
    assert bundle.manifest.quantization is None and bundle.manifest.graphs["text"].precision == weights
    assert bytes_of_weights(tmp_path / "q" / "text.onnx") < 0.6 * bytes_of_weights(BUNDLE / "text.onnx")
    quality = read_quality(tmp_path / "q" / "quality" / "quality.json")
    assert 0 < quality.drift.relative < most and quality.settings.prompts[0] == "a red fox in the snow"
    ditedge("convert", "--engine", tmp_path / "q", "--precision", "fp16", "--out", tmp_path / "low")
    low = open_bundle(tmp_path / "low").manifest
    assert low.graphs["text"].precision == weights and low.graphs["step"].precision == "float16"


def test_int4_for_encoder_and_int8_for_the_network(prompts: Path, tmp_path: Path) -> None:
    options = QuantizeOptions(prompts=prompts, text_encoder="int4", program="ddim-10")
    manifest = quantize_bundle(BUNDLE, tmp_path / "q", options)
    assert manifest.graphs["text"].precision == "int4" and manifest.quantization is not None
    kinds = {node.op_type for node in load_graph(tmp_path / "q" / "text.onnx").graph}
    assert "MatMulNBits" in kinds and not find_linears(load_graph(tmp_path / "q" / "text.onnx"))
    ditedge("compare", "--engine", BUNDLE, "--against", tmp_path / "q", "--count", 1, "--speed-rounds", 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("quantize", "--engine", BUNDLE, "--text-encoder-alone"),
            "--text-encoder-alone needs the format of its weights",
        ),
        (
            ("quantize", "--engine", BUNDLES / "gray1_cfg", "--text-encoder", "int4"),
            "has no text encoder: leave --text-encoder",
        ),
        (("quantize", "--engine", BUNDLES / "gray1_cfg", "--prompts", "x.txt"), "takes classes: leave --prompts"),
        (("quantize", "--engine", BUNDLE, "--prompts", "nowhere.txt"), "cannot read nowhere.txt"),
        (("quantize", "--engine", BUNDLE, "--precision", "int4"), "leave it in float32 (--keep-layer"),
        (
            ("compare", "--engine", BUNDLE, "--against", BUNDLES / "gray1_cfg"),
            "cannot be compared: one takes classes, the other prompts",
        ),
        (("compare", "--engine", BUNDLE, "--against", BUNDLE, "--max-accuracy-loss", 1), "models of classes"),
    ],
)
def test_mistakes(arguments: tuple[object, ...], words: str, tmp_path: Path) -> None:
    out = () if arguments[0] == "compare" else ("--out", tmp_path / "out")
    assert words in ditedge(*arguments, *out, code=2)
    assert not list(tmp_path.iterdir())


def test_a_bundle_without_an_encoder_is_compared_over_the_others_prompts(prompts: Path, tmp_path: Path) -> None:
    device = tmp_path / "device"
    ditedge("convert", "--engine", BUNDLE, "--without-text", "--out", device)
    request = CompareRequest(count=2, steps=3, speed_rounds=0, prompts=prompts)
    for a, b in ((BUNDLE, device), (device, BUNDLE)):
        quality = compare_bundles(a, b, request).quality
        assert quality.drift.relative == 0 and quality.settings.prompts == ["a red fox", "an ankle boot"]
    recorded = compare_bundles(device, device, CompareRequest(count=4, steps=3, speed_rounds=0)).quality
    assert recorded.settings.prompts == ["recorded prompt 1", "recorded prompt 2", "(no words)"]


def test_features_of_prompts_are_distances_and_no_accuracy(prompts: Path, tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]>
        f (float[N, 3, H, W] image) => (float[N, 3] logits, float[N, 3] features) {
            logits = ReduceMean <keepdims = 0> (image, axes)
            features = Identity (logits)
        }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 3]), "axes"))
    onnx.save(model, tmp_path / "means.onnx")
    request = CompareRequest(count=4, steps=3, speed_rounds=0, prompts=prompts, features=tmp_path / "means.onnx")
    comparison = compare_bundles(BUNDLE, BUNDLE, request)
    features = comparison.quality.features
    assert features.a.accuracy is None and abs(features.frechet_between) < 1e-6 < features.frechet_between_seeds
    page = report_html(comparison)
    assert "Accuracy" not in page and "kernel to A" in page
