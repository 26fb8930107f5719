"""`quantize` and `convert` of a latent model's decoder: smaller, the same pictures, refused when they are not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from ditedge.calibration import psnr
from ditedge.calibration.convert import convert_bundle
from ditedge.calibration.formats import int8_decoder as decoder_module
from ditedge.calibration.formats.half_decoder import halve_decoder
from ditedge.calibration.formats.int8_decoder import quantise_decoder
from ditedge.calibration.options import ConvertOptions, QuantizeOptions
from ditedge.calibration.quantize import quantize_bundle
from ditedge.export import ExportOptions, bundle_from_checkpoint
from ditedge.runtime import Session, open_bundle
from ditedge.runtime.bundle.open import Bundle
from ditedge.runtime.errors import BundleError
from tests.export.networks.vaes import LATENT, make_tiny, make_vae

KINDS = ("kl", "tiny")


@pytest.fixture(scope="module")
def latent_bundle(tmp_path_factory: pytest.TempPathFactory):
    """latent_bundle(kind, precision="fp32") -> the golden latent model's bundle with a decoder of random weights."""
    folder = tmp_path_factory.mktemp("decoders")

    def export(kind: str, precision: str = "fp32") -> Path:
        out, vae = folder / f"{kind}-{precision}", folder / f"vae-{kind}"
        if not vae.exists():
            {"kl": make_vae, "tiny": make_tiny}[kind](vae)
        if not out.exists():
            bundle_from_checkpoint(LATENT, out, ExportOptions(heads=4, vae=vae, vae_precision=precision))
        return out

    return export


def pictures(folder: Path) -> np.ndarray:
    """Of three normal latents, [3, h, w, 3] uint8."""
    z = np.random.default_rng(3).standard_normal((3, 4, 8, 8)).astype(np.float32)
    with Session(open_bundle(folder)) as session:
        return session.images(z)


@pytest.mark.parametrize(
    ("kind", "precision"),
    [("kl", "fp32"), ("tiny", "fp32"), pytest.param("kl", "fp16", marks=pytest.mark.slow)],
)
def test_quantize_stores_the_decoder_in_int8(latent_bundle, tmp_path: Path, kind: str, precision: str) -> None:
    source, out = latent_bundle(kind, precision), tmp_path / "int8"
    manifest = quantize_bundle(source, out, QuantizeOptions())
    assert manifest.quantization is not None and manifest.quantization.decoder == "int8"
    graph = ir.load(out / "decoder.onnx").graph
    convolutions = [node for node in graph if node.op_type == "Conv"]
    stored = {node.inputs[1].producer().op_type for node in convolutions}
    assert len(convolutions) > 5 and stored == {"DequantizeLinear"}
    assert {node.inputs[1].producer().inputs[0].dtype for node in convolutions} == {ir.DataType.INT8}
    shrunk = (out / "decoder.onnx").stat().st_size / (source / "decoder.onnx").stat().st_size
    assert shrunk < (0.30 if precision == "float32" else 0.56)
    assert 38 < psnr(pictures(source), pictures(out)) < 60, "rounded, and not seen"


def test_the_decoder_can_be_left_alone(latent_bundle, tmp_path: Path) -> None:
    source = latent_bundle("tiny")
    untouched = (source / "decoder.onnx").read_bytes()
    manifest = quantize_bundle(source, tmp_path / "int8", QuantizeOptions(decoder=False))
    assert manifest.quantization is not None and manifest.quantization.decoder is None
    assert (tmp_path / "int8" / "decoder.onnx").read_bytes() == untouched
    manifest = convert_bundle(source, tmp_path / "half", ConvertOptions("fp16", decoder=False))
    assert manifest.vae is not None and manifest.vae.precision == "float32"
    assert (tmp_path / "half" / "decoder.onnx").read_bytes() == untouched


def test_a_decoder_that_paints_something_else_is_refused(
    latent_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(latent_bundle("tiny"))
    with pytest.raises(BundleError, match=r"is \d+\.\d dB, at least 90 dB is allowed: leave the decoder alone"):
        quantise_decoder(bundle, tmp_path / "d.onnx", least=90)
    monkeypatch.setattr(decoder_module, "convolutions_at_rest", lambda model: [])
    with pytest.raises(BundleError, match=r"\d+ convolutions kept their float weights"):
        quantise_decoder(bundle, tmp_path / "d.onnx")


@pytest.mark.parametrize(("kind", "name"), [("kl", "fp16"), ("tiny", "bf16")])
def test_convert_makes_a_float16_decoder(latent_bundle, tmp_path: Path, kind: str, name: str) -> None:
    """Of a bfloat16 bundle, too: ONNX has no bfloat16 convolution here."""
    source, out = latent_bundle(kind), tmp_path / "half"
    manifest = convert_bundle(source, out, ConvertOptions(name))
    assert manifest.vae is not None and manifest.vae.precision == "float16"
    onnx.checker.check_model(str(out / "decoder.onnx"), full_check=True)
    graph = ir.load(out / "decoder.onnx").graph
    assert {node.inputs[1].dtype for node in graph if node.op_type == "Conv"} == {ir.DataType.FLOAT16}
    assert (out / "decoder.onnx").stat().st_size < 0.56 * (source / "decoder.onnx").stat().st_size
    assert psnr(pictures(source), pictures(out)) > 50


def test_int8_then_16_bit(latent_bundle, tmp_path: Path) -> None:
    """The weights at rest stay int8; their scales and what reads them become float16."""
    options = QuantizeOptions(form="tensorrt", samples=2, steps=2, sampler="ddim", statistics=tmp_path / "s")
    quantize_bundle(latent_bundle("tiny"), tmp_path / "int8", options)
    convert_bundle(tmp_path / "int8", tmp_path / "both", ConvertOptions("fp16"))
    graph = ir.load(tmp_path / "both" / "decoder.onnx").graph
    weights = [node.inputs[1].producer() for node in graph if node.op_type == "Conv"]
    assert {(node.inputs[0].dtype, node.inputs[1].dtype) for node in weights} == {
        (ir.DataType.INT8, ir.DataType.FLOAT16)
    }
    assert psnr(pictures(latent_bundle("tiny")), pictures(tmp_path / "both")) > 38


def test_a_decoder_beyond_float16_has_float32_islands(latent_bundle, tmp_path: Path) -> None:
    """One convolution makes numbers of 1e6, the next brings them back: both stay float32, the rest does not."""
    bundle = open_bundle(latent_bundle("tiny"))
    model = ir.load(bundle.graph_file("decoder"))
    convolutions = [node for node in model.graph if node.op_type == "Conv"]
    large, back = convolutions[1], convolutions[2]
    for node, factor in ((large, 1e6), (back, 1e-6)):
        for value in node.inputs[1:] if node is large else node.inputs[1:2]:
            value.const_value = ir.tensor(value.const_value.numpy() * np.float32(factor), name=value.name)
    scaled = Bundle(tmp_path / "scaled", bundle.manifest, "")
    shutil.copytree(bundle.folder, scaled.folder)
    ir.save(model, scaled.folder / "decoder.onnx")
    assert halve_decoder(scaled, tmp_path / "half.onnx", tmp_path)
    kinds = [node.inputs[1].dtype for node in ir.load(tmp_path / "half.onnx").graph if node.op_type == "Conv"]
    assert kinds.count(ir.DataType.FLOAT) == 2 and kinds.count(ir.DataType.FLOAT16) > 5
