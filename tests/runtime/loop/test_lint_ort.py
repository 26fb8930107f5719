"""`inspect --lint` of what is quantised for ONNX Runtime asks ONNX Runtime; TensorRT is not given it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from ditedge.calibration.graph.linears import find_linears
from ditedge.calibration.graph.surgery import load_graph
from ditedge.calibration.options import QuantizeOptions
from ditedge.calibration.quantize import quantize_bundle
from ditedge.cli import main
from ditedge.runtime import open_bundle
from ditedge.runtime.errors import RequestError
from ditedge.runtime.loop.lint_ort import kernel_report, lint_on_onnxruntime
from ditedge.runtime.plans.build import check_form


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_products_are_counted_as_they_run(golden_bundle, tmp_path: Path, precision: str) -> None:
    source, out = golden_bundle("gray1_cfg"), tmp_path / "b"
    quantize_bundle(source, out, QuantizeOptions(precision))
    found = json.loads(CliRunner().invoke(main, ["inspect", str(out), "--lint", "--json"]).stdout)
    kept = open_bundle(out).manifest.quantization.kept
    linears = [linear.name for linear in find_linears(load_graph(source / "step.onnx"))]
    apart = 2 * open_bundle(out).manifest.model.depth if precision == "int8" else 0  # q, k and v: three of one
    assert found["gemms"][precision] == len(linears) - len(kept) + apart > apart, found
    assert found["library"].startswith("ONNX Runtime") and found["bytes"] == (out / "step.onnx").stat().st_size
    in_float = lint_on_onnxruntime(open_bundle(source))
    assert set(in_float.gemms) == {"float32"} and in_float.gemms["float32"] == sum(found["gemms"].values()) - apart
    strict = CliRunner().invoke(main, ["inspect", str(out), "--lint", "--strict"])
    assert strict.exit_code == 1 and "0 of 2 in one kernel" in strict.stdout and "several steps" in strict.stdout


def test_attention_that_is_one_kernel_is_seen(golden_bundle) -> None:
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    kernel = {"op_name": "MultiHeadAttention", "output_type_shape": [{"float": [1, 4]}]}
    assert kernel_report([kernel] * bundle.manifest.model.depth, bundle, "x").fused
    assert not kernel_report([kernel], bundle, "x").fused


def test_forms_that_tensorrt_builds(golden_bundle, tmp_path: Path) -> None:
    """Q/DQ nodes are ONNX's own; integer products and packed weights are ONNX Runtime's."""
    quantize_bundle(golden_bundle("gray1_cfg"), tmp_path / "b", QuantizeOptions("int4"))
    bundle = open_bundle(tmp_path / "b")
    with pytest.raises(RequestError, match=r"is int4 in the form of ONNX Runtime .*with `--form tensorrt`"):
        check_form(bundle)
    quantization = bundle.manifest.quantization.model_copy(update={"form": "tensorrt"})
    check_form(replace(bundle, manifest=bundle.manifest.model_copy(update={"quantization": quantization})))
