"""How many kernels a step is, held: each is a launch, and what TensorRT cuts apart it reads and writes once more.

TensorRT-RTX 1.7.1, x86-64, no GPU, 2026-11-27. The whole table, with what it was before, is in docs/tensorrt.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ditedge.calibration.convert import convert_bundle
from ditedge.calibration.options import ConvertOptions, QuantizeOptions
from ditedge.calibration.quantize import quantize_bundle
from ditedge.runtime import open_bundle
from ditedge.runtime.plans.build import build_bundle
from ditedge.runtime.plans.layers import LAYERS_NAME, Layer, read_layers
from ditedge.runtime.plans.lint import Lint, lint_plan
from ditedge.runtime.plans.options import BuildOptions
from tests.runtime.plans.here import needs_rtx

BLOCKS = 2  # of the bundle
# per block: qkv, its bias and transposes, attention, proj, LayerNorm and modulate, fc1, fc2, LayerNorm and modulate;
# before and after all blocks: shapes, gathers, patches, modulation; unpatchify, guidance and x0, solver, next state
A_BLOCK, AROUND = 8, 8


def kernels(bundle: Path, arch: str, one_image: bool = False) -> tuple[tuple[Layer, ...], Lint]:
    build_bundle(open_bundle(bundle), BuildOptions("tensorrt-rtx", archs=(arch,), one_image=one_image))
    engines = bundle / "engines" / "tensorrt-rtx"
    return read_layers(engines / LAYERS_NAME, "step").layers, lint_plan(engines / "dit.plan")


@needs_rtx
@pytest.mark.parametrize(
    ("precision", "arch", "more"), [("fp16", "sm86", 0), ("bf16", "sm120", 0), ("fp16", "sm75", 2)]
)
def test_a_16_bit_step_is_eight_kernels_a_block(
    gray_bundle: Path, tmp_path: Path, precision: str, arch: str, more: int
) -> None:
    """30 before: q, k and v had a kernel each for bias and transpose. sm75 builds: no float32 product is left."""
    convert_bundle(gray_bundle, tmp_path / "low", ConvertOptions(precision))
    layers, lint = kernels(tmp_path / "low", arch)
    assert len(layers) - more <= A_BLOCK * BLOCKS + AROUND
    assert lint.fused and len(lint.attention) == BLOCKS
    assert lint.gemms.get("float32", 0) == (precision == "bf16")  # ONNX has no bfloat16 Conv: the patches


@needs_rtx
def test_one_image_is_three_kernels_fewer(gray_bundle: Path, tmp_path: Path) -> None:
    """The plan has both profiles' kernels: nothing is computed of shapes, and guidance and solver are one."""
    convert_bundle(gray_bundle, tmp_path / "low", ConvertOptions("fp16"))
    layers, lint = kernels(tmp_path / "low", "sm86", one_image=True)
    first = A_BLOCK * BLOCKS + AROUND
    assert first < len(layers) <= first + first - 3
    assert lint.fused and len(lint.attention) == 2 * BLOCKS


@needs_rtx
def test_a_quantised_step_in_fp16(gray_bundle: Path, tmp_path: Path) -> None:
    """34 before, and qkv was no integer product. Two more a block than fp16: GELU, and what attention made, moved."""
    quantize_bundle(gray_bundle, tmp_path / "int8", QuantizeOptions(form="tensorrt", samples=2))
    convert_bundle(tmp_path / "int8", tmp_path / "low", ConvertOptions("fp16"))
    layers, lint = kernels(tmp_path / "low", "sm86")
    assert len(layers) <= (A_BLOCK + 2) * BLOCKS + AROUND
    assert lint.fused and lint.gemms["int8"] == 4 * BLOCKS
    assert not any("int8" in layer.constants and not layer.inputs for layer in layers), "a weight is made float again"
