"""Plans of a model that takes prompts, built by TensorRT-RTX without a GPU: sizes, kernels of a step, fused attention.

TensorRT-RTX 1.7.1, x86-64, 2026-11-27. The table is in docs/tensorrt.md.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ditedge.calibration.convert import convert_bundle
from ditedge.calibration.options import ConvertOptions, QuantizeOptions
from ditedge.calibration.quantize import quantize_bundle
from ditedge.cli import main
from ditedge.runtime import open_bundle
from ditedge.runtime.plans.attention_trial import lint_graph
from ditedge.runtime.plans.build import build_bundle
from ditedge.runtime.plans.layers import LAYERS_NAME, read_layers
from ditedge.runtime.plans.lint import lint_plan
from ditedge.runtime.plans.options import BuildOptions
from ditedge.runtime.plans.record import RECORD_NAME, read_build_record
from tests.runtime.plans.here import needs_rtx

BLOCKS = 2
# per block: q, k and v as one product, a bias and transpose of each, attention, its output, gate and residual; q of the
# prompt, its bias and transpose, attention, output and residual; LayerNorm in two, feed-forward in two; residual and
# the next LayerNorm. Before and after all blocks: shapes, gathers, patches, modulation, keys and values of the prompt;
# the final layer, guidance and x0, solver, next state
A_BLOCK, AROUND = 16, 9


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PixArt with heads of 64, which TensorRT has an attention kernel for; those of the small bundle are 8 wide.

    Without VAE and text encoder, whose export takes longer than that of the network.
    """
    pytest.importorskip("diffusers")
    from diffusers import DPMSolverMultistepScheduler

    from ditedge.export import ExportOptions, bundle_from_checkpoint
    from tests.export.pixart_pipelines import small_transformer

    folder = tmp_path_factory.mktemp("wide")
    wide = {"num_attention_heads": 2, "attention_head_dim": 64, "cross_attention_dim": 128, "num_layers": BLOCKS}
    small_transformer(**wide).save_pretrained(folder / "pipeline" / "transformer")
    DPMSolverMultistepScheduler().save_pretrained(folder / "pipeline" / "scheduler")
    index = {"_class_name": "PixArtAlphaPipeline", "scheduler": ["diffusers", "DPMSolverMultistepScheduler"]}
    index["transformer"] = ["diffusers", "PixArtTransformer2DModel"]
    (folder / "pipeline" / "model_index.json").write_text(json.dumps(index))
    bundle_from_checkpoint(folder / "pipeline", folder / "wide", ExportOptions())
    return folder / "wide"


def built(bundle: Path, arch: str = "sm86", sizes: tuple[str, ...] = ()) -> Path:
    build_bundle(open_bundle(bundle), BuildOptions("tensorrt-rtx", archs=(arch,), sizes=sizes, max_batch=2))
    return bundle / "engines" / "tensorrt-rtx"


@needs_rtx
@pytest.mark.parametrize(
    ("precision", "arch"), [("fp16", "sm86"), pytest.param("bf16", "sm120", marks=pytest.mark.slow)]
)
def test_a_16_bit_step_of_prompts_is_sixteen_kernels_a_block(
    wide: Path, tmp_path: Path, precision: str, arch: str
) -> None:
    """The mask of the prompt's padding is added in float32 between the products, and attention is one kernel still."""
    options = ConvertOptions(precision)
    convert_bundle(wide, tmp_path / "low", options)
    trial = lint_graph(tmp_path / "low" / "step.onnx", arch)
    assert trial.fused and len(trial.attention) == 2 * BLOCKS
    engines = built(tmp_path / "low", arch)
    lint = lint_plan(engines / "dit.plan")
    assert lint.fused and len(lint.attention) == 2 * BLOCKS
    assert len(read_layers(engines / LAYERS_NAME, "step").layers) <= A_BLOCK * BLOCKS + AROUND
    assert lint.gemms.get("float32", 0) == (precision == "bf16")  # ONNX has no bfloat16 Conv: the patches


@needs_rtx
def test_a_plan_has_a_profile_for_each_size(wide: Path, tmp_path: Path) -> None:
    low = tmp_path / "low"
    convert_bundle(wide, low, ConvertOptions("fp16"))
    command = ["build", "--engine", low, "--target", "tensorrt-rtx", "--arch", "sm86", "--max-batch", 2]
    command += ["--size", "64x64", "--size", "96x48"]
    result = CliRunner().invoke(main, list(map(str, command)), catch_exceptions=False)
    assert result.exit_code == 0 and "next: ditedge run" in result.output, result.output
    record = read_build_record(low / "engines" / "tensorrt-rtx" / RECORD_NAME)
    counts = {graph: len(plan.profiles) for graph, plan in record.plans.items()}
    assert counts == {"conditioner": 1, "context": 1, "position": 2, "step": 2, "preview": 2}
    assert record.plans["step"].further[0]["state"].max[2:] == [4, 6, 12]
    lint = lint_plan(low / "engines" / "tensorrt-rtx" / "dit.plan")
    assert lint.fused and len(lint.attention) == 2 * 2 * BLOCKS  # the kernels of both
    run = [
        "run",
        "--engine",
        low / "engines" / "tensorrt-rtx" / "dit.plan",
        "--prompt-file",
        tmp_path / "none.safetensors",
    ]
    refused = CliRunner().invoke(main, list(map(str, run)))
    assert refused.exit_code == 2 and "Traceback" not in refused.output


@pytest.mark.slow
@needs_rtx
def test_an_int8_step_of_prompts_in_fp16(wide: Path, tmp_path: Path) -> None:
    """q, k and v of self-attention are one integer product: they share their rounding."""
    quantised = QuantizeOptions(form="tensorrt", samples=2, program="ddim-10", statistics=tmp_path / "s")
    quantize_bundle(wide, tmp_path / "int8", quantised)
    convert_bundle(tmp_path / "int8", tmp_path / "low", ConvertOptions("fp16"))
    engines = built(tmp_path / "low")
    lint = lint_plan(engines / "dit.plan")
    assert lint.fused and lint.gemms["int8"] == 6 * BLOCKS
    assert len(read_layers(engines / LAYERS_NAME, "step").layers) <= 18 * BLOCKS + AROUND


@needs_rtx
def test_what_onnx_runtime_alone_computes_is_refused(tmp_path: Path) -> None:
    from tests.conftest import BUNDLES, PIXART

    quantize_bundle(BUNDLES / PIXART, tmp_path / "int8", QuantizeOptions(program="ddim-10"))
    command = ["build", "--engine", tmp_path / "int8", "--target", "tensorrt-rtx"]
    result = CliRunner().invoke(main, list(map(str, command)))
    assert result.exit_code == 2 and "quantise the float bundle that it was made from with" in result.output
