"""What a quantised bundle may lose unasked, ceilings that no manifest lifts, and rewrites that must have happened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ditedge.calibration import CompareRequest, Gate, GateFailed, quantize
from ditedge.calibration.convert import convert_bundle
from ditedge.calibration.formats import formats_of, quantised_format
from ditedge.calibration.formats import int8 as int8_module
from ditedge.calibration.options import ConvertOptions, QuantizeOptions
from ditedge.calibration.quality.limits import gate_or_default
from ditedge.calibration.quantize import quantize_bundle
from ditedge.runtime import open_bundle
from ditedge.runtime.bundle.manifest import GoldenInfo
from ditedge.runtime.errors import BundleError, RequestError
from ditedge.runtime.loop.verify import LARGEST_ERROR, Replay

REPORT = CompareRequest(count=2, steps=3, sampler="ddim", speed_rounds=0)


def coarse_weights(levels: int) -> Any:
    """In the place of `quantised_weight`: `levels` steps to each side instead of 127, as a kernel that is wrong."""

    def quantised(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scale = np.maximum(np.abs(matrix).max(axis=0) / levels, 1e-8).astype(np.float32)
        return np.rint(matrix / scale).astype(np.int8), scale

    return quantised


def test_a_bad_bundle_is_refused_by_default(golden_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody set a limit. The sentences name the figures and the options that insist; with these it is written."""
    monkeypatch.setattr(int8_module, "quantised_weight", coarse_weights(8))
    schemes = {name: replace(scheme, ceiling=0.9) for name, scheme in int8_module.FORMAT.schemes.items()}
    monkeypatch.setattr(int8_module, "FORMAT", replace(int8_module.FORMAT, schemes=schemes))
    source, out = golden_bundle("gray1_cfg"), tmp_path / "int8"
    with pytest.raises(
        GateFailed, match=r"PSNR .* is \d+\.?\d* dB, at least 26 dB is allowed \(--min-psnr\)"
    ) as failed:
        quantize_bundle(source, out, QuantizeOptions(quality=REPORT))
    assert not out.exists()
    figures = {result.name: result.measured for result in failed.value.failed}
    insisted = Gate(max_drift=1, min_psnr=figures["psnr"] - 1)
    manifest = quantize_bundle(source, out, QuantizeOptions(quality=REPORT, gate=insisted))
    assert "quality/quality.json" in manifest.files


def test_a_golden_error_beyond_the_ceiling_is_refused(
    golden_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is sampled and whatever limits are given: a tolerance that says nothing is not written."""
    monkeypatch.setattr(int8_module, "quantised_weight", coarse_weights(3))
    with pytest.raises(BundleError, match=r"relative error 0\.\d+, at most 0\.13 is allowed; keep more layers"):
        quantize_bundle(golden_bundle("latent4_learned_sigma"), tmp_path / "int8", QuantizeOptions())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", formats_of("quantize"))
def test_the_drift_of_wrong_sums_is_refused_in_every_form(golden_bundle, precision: str) -> None:
    """int8 whose sums saturated drifted 20 % at 20.6 dB and had a golden error of 0.25."""
    pictures, none = (open_bundle(golden_bundle(case)) for case in ("gray1_cfg", "latent4_learned_sigma"))
    form = quantised_format(precision)
    gate = gate_or_default(Gate(), form.limits, REPORT, pictures)
    assert gate.max_drift is not None and gate.max_drift < 0.20 and gate.min_psnr is not None
    assert all(1.5 * 0.25 > scheme.ceiling for scheme in form.schemes.values())
    assert quantised_format("int8").limits["min_psnr"] > 20.6
    assert gate_or_default(Gate(max_drift=0.5), form.limits, REPORT, none) == Gate(max_drift=0.5)


def test_the_baseline_that_is_bad_on_purpose_may_be_made() -> None:
    """--naive of the demo model has a golden error of 0.19; sums that are wrong leave even its bound."""
    int8 = quantised_format("int8")
    assert int8.naive is not None
    assert int8.scheme("tensorrt").ceiling < 1.5 * 0.19 < int8.naive.ceiling <= LARGEST_ERROR < 1.5 * 0.25


def test_verify_has_a_bound_of_its_own() -> None:
    def replayed(error: float, tolerance: float) -> Replay:
        golden = GoldenInfo(file="golden/x.safetensors", program="ddim-10", guidance=1, tolerance=tolerance)
        return Replay(golden, np.array([1.0]), np.array([error]))

    assert replayed(0.3, 0.94).passed and not replayed(0.4, 0.94).passed and not replayed(0.3, 0.29).passed
    assert replayed(0.4, 0.94).allowed == LARGEST_ERROR


def test_a_bundle_in_16_bit_is_refused_with_the_order_that_works(golden_bundle, tmp_path: Path) -> None:
    """Its linears are no longer float32, so nothing would be quantised and the copy would be called int8."""
    convert_bundle(golden_bundle("gray1_cfg"), tmp_path / "half", ConvertOptions("fp16"))
    for options in (
        QuantizeOptions(),
        QuantizeOptions("int4"),
        QuantizeOptions("fp8", "tensorrt"),
        QuantizeOptions(form="tensorrt", naive=True),
    ):
        with pytest.raises(RequestError, match="is in 16 bit: quantise the float32 bundle .* then `convert`"):
            quantize_bundle(tmp_path / "half", tmp_path / "int8", options)
    assert not (tmp_path / "int8").exists()


@pytest.mark.parametrize("form", ["int8", "int4", "conditioner"])
def test_a_rewrite_that_leaves_a_layer_is_found(
    golden_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    def all_but_one(whole: Any) -> Any:
        return lambda model, linears, *more: whole(model, linears[1:], *more)

    if form == "conditioner":
        monkeypatch.setattr(quantize, "int8_at_rest", all_but_one(quantize.int8_at_rest))
    else:
        known, module = quantised_format(form), f"ditedge.calibration.formats.{form}"
        schemes = {name: replace(scheme, rewrite=all_but_one(scheme.rewrite)) for name, scheme in known.schemes.items()}
        monkeypatch.setattr(f"{module}.FORMAT", replace(known, schemes=schemes))
    options = QuantizeOptions("int4" if form == "int4" else "int8")
    with pytest.raises(BundleError, match=r"1 of \d+ linears kept their float weights, blocks\.0"):
        quantize_bundle(golden_bundle("gray1_cfg"), tmp_path / "out", options)
    assert list(tmp_path.iterdir()) == []


def test_nothing_asked_is_refused(golden_bundle, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="every linear layer would stay in float32"):
        quantize_bundle(golden_bundle("gray1_cfg"), tmp_path / "out", QuantizeOptions(keep=("blocks",)))
    with pytest.raises(RequestError, match="every linear layer would stay in float32"):
        options = QuantizeOptions(keep_count=999, program="ddim-10")
        quantize_bundle(golden_bundle("gray1_cfg"), tmp_path / "out", options)


def test_a_conversion_that_changes_nothing_is_refused(
    golden_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ditedge.calibration.convert.too_large", lambda maxima: frozenset(maxima))
    with pytest.raises(BundleError, match=r"every matrix product would stay in float32 .*--precision bf16"):
        convert_bundle(golden_bundle("gray1_cfg"), tmp_path / "half", ConvertOptions("fp16"))
    monkeypatch.undo()
    with pytest.raises(BundleError, match="relative error .* allowed 1e-06"):
        convert_bundle(golden_bundle("gray1_cfg"), tmp_path / "half", ConvertOptions("fp16", max_error=1e-6))
    with pytest.raises(RequestError, match="--max-error 0.9 is not above 0 and at most 0.35"):
        convert_bundle(golden_bundle("gray1_cfg"), tmp_path / "half", ConvertOptions("fp16", max_error=0.9))
    assert list(tmp_path.iterdir()) == []


def test_int4_of_odd_widths(golden_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model 48 wide has blocks of 16; what no block divides is named before ONNX Runtime refuses the graph."""
    bundle = open_bundle(golden_bundle("pixel3_no_null_class"))
    assert bundle.manifest.model.hidden_size == 48
    manifest = quantize_bundle(bundle.folder, tmp_path / "int4", QuantizeOptions("int4"))
    assert max(golden.tolerance for golden in manifest.golden) < quantised_format("int4").scheme("onnxruntime").ceiling
    monkeypatch.setattr("ditedge.calibration.formats.int4.BLOCK_SIZES", (128, 64, 32))
    with pytest.raises(RequestError, match=r"blocks\.0\.attn\.qkv has 48 input channels.*--keep-layer blocks\.0"):
        quantize_bundle(bundle.folder, tmp_path / "none", QuantizeOptions("int4"))
