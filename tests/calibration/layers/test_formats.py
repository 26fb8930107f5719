"""Every format as its command writes it: right, and so no tensor of it stands for another one under its old name."""

from __future__ import annotations

from pathlib import Path

import pytest

from ditedge.calibration.convert import convert_bundle
from ditedge.calibration.layers.compare import compare_layers
from ditedge.calibration.layers.pairing import GONE, SMOOTHED
from ditedge.calibration.layers.request import LayersOptions
from ditedge.calibration.options import ConvertOptions, QuantizeOptions
from ditedge.calibration.quantize import quantize_bundle
from ditedge.runtime.loop.verification import VerifyRequest

FORMATS = {  # -> (largest jump, what is not compared)
    "fp16": (1e-3, {GONE: 2}),
    "bf16": (1e-2, {GONE: 2}),
    "int8": (0.05, {GONE: 2}),
    "int4": (0.3, {}),
}


def write(source: Path, out: Path, name: str) -> None:
    if name in ("fp16", "bf16"):
        convert_bundle(source, out, ConvertOptions(name))
    else:
        quantize_bundle(source, out, QuantizeOptions(name))


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_passes(gray: Path, tmp_path: Path, name: str) -> None:
    write(gray, tmp_path / name, name)
    found = compare_layers(VerifyRequest(tmp_path / name), LayersOptions(True, gray))
    jump, missing = FORMATS[name]
    assert found.passed, "\n".join(found.lines())
    assert 0 < (found.largest_jump or pytest.fail("equal"))[1].jump < jump
    reasons = [tensor.reason for _, tensor in found.unmatched]
    assert {reason: reasons.count(reason) for reason in set(reasons)} == missing


def test_static_int8_passes(collected, tmp_path: Path) -> None:
    """Smoothed: what is on another scale on purpose is not compared, and the rest is right."""
    source, _, _ = collected()
    options = QuantizeOptions("int8", "tensorrt", samples=4, statistics=tmp_path / "statistics")
    quantize_bundle(source, tmp_path / "int8", options)
    found = compare_layers(VerifyRequest(tmp_path / "int8"), LayersOptions(True, source))
    assert found.passed, "\n".join(found.lines())
    assert {tensor.reason for _, tensor in found.unmatched} == {SMOOTHED}
    assert 0 < (found.largest_jump or pytest.fail("equal"))[1].jump < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), [("tiny", "int8"), ("kl", "int8"), ("kl", "fp16")])
def test_a_decoder_is_compared_too(tmp_path: Path, kind: str, name: str) -> None:
    """A VAE's, of random weights: the latents that the step began with, decoded."""
    from ditedge.export import ExportOptions, bundle_from_checkpoint
    from tests.export.networks.vaes import LATENT, make_tiny, make_vae

    {"kl": make_vae, "tiny": make_tiny}[kind](tmp_path / "vae")
    source = tmp_path / "float"
    bundle_from_checkpoint(LATENT, source, ExportOptions(heads=4, vae=tmp_path / "vae"))
    write(source, tmp_path / name, name)
    found = compare_layers(VerifyRequest(tmp_path / name), LayersOptions(True, source, step=10))
    (decoder,) = [graph for graph in found.graphs if graph.graph == "decoder"]
    errors = {row.layer: row.error for row in decoder.rows() if row.error is not None}
    assert len(errors) > 5 and all(1e-5 < error < 0.1 for error in errors.values()), errors
    assert [name for name in errors if "conv_out" in name or "." in name], "layers have the network's names"
    assert not [tensor for tensor in decoder.tensors if tensor.error is None]
