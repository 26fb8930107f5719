"""Every family that takes prompts in 16 bit and int8, and what TensorRT-RTX makes of its step, without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ditedge.calibration.convert import convert_bundle
from ditedge.calibration.graph.linears import find_linears
from ditedge.calibration.graph.surgery import load_graph
from ditedge.calibration.options import ConvertOptions, QuantizeOptions
from ditedge.calibration.quality.request import CompareRequest
from ditedge.calibration.quantize import quantize_bundle
from ditedge.export import ExportOptions, bundle_from_checkpoint
from ditedge.runtime import open_bundle
from ditedge.runtime.plans.attention_trial import lint_graph
from ditedge.runtime.plans.build import build_bundle
from ditedge.runtime.plans.options import BuildOptions
from tests.export import joint_pipelines, lumina2_pipelines, sana_pipelines
from tests.export.flux2_pipelines import klein_pipeline, shallow
from tests.export.hunyuan_dit_pipelines import hunyuan_dit_pipeline
from tests.runtime.plans.here import needs_rtx

FAMILIES: dict[str, tuple[Callable[[Path], Any], int, list[str]]] = {
    # -> attentions with a softmax in the step; linears that take latents in or let them out
    "sd3.5": (lambda _: joint_pipelines.sd3_pipeline(dual=True), 3, ["proj_out"]),
    "flux-dev": (lambda _: joint_pipelines.flux_pipeline(told=True), 3, ["x_embedder", "proj_out"]),
    "sana": (lambda _: sana_pipelines.small_pipeline(), 2, ["proj_out"]),
    "aura-flow": (lambda _: joint_pipelines.aura_flow_pipeline(), 2, ["pos_embed.proj", "proj_out"]),
    "z-image": (lambda _: joint_pipelines.z_image_pipeline(), 3, ["all_x_embedder.2-1", "all_final_layer.2-1.linear"]),
    "lumina2": (lambda _: lumina2_pipelines.lumina2_pipeline(), 3, ["x_embedder", "norm_out.linear_2"]),
    "flux2": (lambda _: klein_pipeline(layers=4), 3, ["x_embedder", "proj_out"]),
    "hunyuan-dit": (hunyuan_dit_pipeline, 8, ["proj_out"]),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    make, folder = FAMILIES[request.param][0], tmp_path_factory.mktemp(request.param)
    make(folder / "tokenizer").save_pretrained(folder / "pipeline")
    with shallow():
        bundle_from_checkpoint(folder / "pipeline", folder / "bundle", ExportOptions())
    return request.param, folder / "bundle"


@pytest.mark.slow
@needs_rtx
def test_16_bit_replays_and_its_attention_is_one_kernel(family: tuple[str, Path], tmp_path: Path) -> None:
    name, bundle = family
    manifest = convert_bundle(bundle, tmp_path / "low", ConvertOptions("fp16"))
    low = {graph for graph, info in manifest.graphs.items() if info.precision == "float16"}
    assert {"conditioner", "context", "step", "text"} <= low and "position" not in low
    lint = lint_graph(tmp_path / "low" / "step.onnx")
    assert lint.fused and len(lint.attention) == FAMILIES[name][1]
    record = build_bundle(open_bundle(tmp_path / "low"), BuildOptions("tensorrt-rtx", archs=("sm86",), max_batch=1))
    assert {"conditioner", "context", "step", "decoder"} <= record.plans.keys() and "text" not in record.plans


@pytest.mark.slow
def test_int8_of_the_step_and_of_every_text_encoder(family: tuple[str, Path], tmp_path: Path) -> None:
    name, bundle = family
    options = QuantizeOptions(
        form="tensorrt", samples=2, steps=4, statistics=tmp_path / "s", text_encoder="int8",
        quality=CompareRequest(count=2, steps=4, speed_rounds=0),
    )  # fmt: skip
    manifest = quantize_bundle(bundle, tmp_path / "int8", options)
    assert manifest.quantization is not None and manifest.quantization.kept == FAMILIES[name][2]
    left = [linear.name for linear in find_linears(load_graph(tmp_path / "int8" / "step.onnx"))]
    assert left == FAMILIES[name][2]
    assert not any(linear.name.startswith("node_") for linear in find_linears(load_graph(bundle / "step.onnx")))
    encoders = {graph: info.precision for graph, info in manifest.graphs.items() if graph.startswith("text")}
    assert set(encoders.values()) == {"int8"} and encoders
