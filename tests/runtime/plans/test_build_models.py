"""Whole models built for three GPUs: the demo model, and a DiT-S/2 at 256."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ditedge.runtime import open_bundle
from ditedge.runtime.plans.build import build_bundle
from ditedge.runtime.plans.options import BuildOptions
from ditedge.runtime.plans.record import RECORD_NAME, read_build_record
from tests.conftest import ROOT
from tests.runtime.plans.here import needs_rtx


@needs_rtx
@pytest.mark.slow
def test_export_and_build_in_one_go_of_the_demo_model(tmp_path: Path) -> None:
    model = ROOT / "models" / "fashion-dit"
    arguments = ["--ckpt", f"{model}.safetensors", "--heads", "3", "--classes", f"{model}.classes.txt"]
    command = [
        sys.executable,
        ROOT / "cli.py",
        "export",
        *arguments,
        "--out",
        tmp_path / "f",
        "--target",
        "tensorrt-rtx",
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    record = read_build_record(tmp_path / "f" / "engines" / "tensorrt-rtx" / RECORD_NAME)
    assert set(record.plans) == {"conditioner", "step", "decoder"} and record.compute_capabilities == []


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The float32 bundle of the demo model, or of a DiT-S/2 at 256 with random weights."""
    folder = tmp_path_factory.mktemp("exported")

    def export(name: str) -> Path:
        from ditedge.export import ExportOptions, bundle_from_checkpoint

        if not (folder / name).exists():
            checkpoint, heads = ROOT / "models" / "fashion-dit.safetensors", 3
            if name == "S":
                sys.path.insert(0, str(ROOT / "bench"))
                from export_size import random_checkpoint

                checkpoint, heads = folder / "s.pt", 6
                random_checkpoint("S", 256, 2, checkpoint)
            bundle_from_checkpoint(checkpoint, folder / name, ExportOptions(heads=heads))
        return folder / name

    return export


@needs_rtx
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "fp16", "bf16"])
@pytest.mark.parametrize(("name", "blocks", "heads", "tokens"), [("demo", 6, 3, 64), ("S", 12, 6, 256)])
def test_models_build_for_three_gpus(
    exported: Callable[[str], Path], tmp_path: Path, name: str, precision: str, blocks: int, heads: int, tokens: int
) -> None:
    """The very graphs that were verified with ONNX Runtime; attention is one kernel in 16 bit, and never in float32."""
    from ditedge.calibration.convert import convert_bundle
    from ditedge.calibration.options import ConvertOptions
    from ditedge.runtime.plans.attention_trial import lint_graph

    folder = exported(name)
    if precision != "float32":
        convert_bundle(folder, tmp_path / "low", ConvertOptions(precision))
        folder = tmp_path / "low"
    bundle = open_bundle(folder)
    options = BuildOptions("tensorrt-rtx", archs=("sm86", "sm89", "sm120"), force=True)
    record = build_bundle(bundle, options)
    assert record.compute_capabilities == ["sm86", "sm89", "sm120"]
    assert record.plans["step"].source_sha256 == bundle.manifest.files["step.onnx"].sha256
    assert record.plans["step"].plan.bytes > bundle.manifest.files["step.onnx"].bytes / 2
    found = lint_graph(folder / "step.onnx", "sm89")
    assert [(a.heads, a.head_size, a.tokens) for a in found.attention] == [(heads, 64, tokens)] * blocks
    assert found.fused == (precision != "float32")
