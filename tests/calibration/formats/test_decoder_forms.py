"""`quantize` and `convert` of a latent model's decoder: smaller, the same pictures, refused when they are not."""

from __future__ import annotations

import functools
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from ditedge.calibration import CompareRequest, compare_bundles, psnr
from ditedge.calibration.convert import convert_bundle
from ditedge.calibration.formats import int8_decoder as decoder_module
from ditedge.calibration.formats.half_decoder import halve_decoder
from ditedge.calibration.formats.int8_decoder import quantise_decoder
from ditedge.calibration.formats.static_decoder import calibration_latents
from ditedge.calibration.options import ConvertOptions, QuantizeOptions
from ditedge.calibration.quantize import quantize_bundle
from ditedge.export import ExportOptions, bundle_from_checkpoint
from ditedge.runtime import Session, open_bundle
from ditedge.runtime.bundle.open import Bundle
from ditedge.runtime.errors import BundleError
from ditedge.runtime.loop.decoded import decoded
from ditedge.runtime.loop.noise import SeededNoise
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
    """Weights alone: for TensorRT, and where the decoder is in float16."""
    source, out = latent_bundle(kind, precision), tmp_path / "int8"
    manifest = quantize_bundle(source, out, QuantizeOptions("int4", form="tensorrt"))
    assert manifest.quantization is not None and manifest.quantization.decoder == "int8"
    graph = ir.load(out / "decoder.onnx").graph
    convolutions = [node for node in graph if node.op_type == "Conv"]
    stored = {node.inputs[1].producer().op_type for node in convolutions}
    assert len(convolutions) > 5 and stored == {"DequantizeLinear"}
    assert {node.inputs[1].producer().inputs[0].dtype for node in convolutions} == {ir.DataType.INT8}
    shrunk = (out / "decoder.onnx").stat().st_size / (source / "decoder.onnx").stat().st_size
    assert shrunk < (0.30 if precision == "float32" else 0.56)
    assert 38 < psnr(pictures(source), pictures(out)) < 60, "rounded, and not seen"


def kernels(graph: Path, folder: Path) -> Counter[str]:
    """What ONNX Runtime really computes, by operator."""
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath, settings.log_severity_level = str(folder / "optimised.onnx"), 4
    onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


def softened(bundle: Bundle, folder: Path) -> Bundle:
    """The bundle with a decoder of a third of the contrast: random weights made it black and white, as no picture is."""
    shutil.copytree(bundle.folder, folder)
    model = ir.load(folder / "decoder.onnx")
    last = [node for node in model.graph if node.op_type == "Conv"][-1]
    for value in last.inputs[1:]:
        value.const_value = ir.tensor(value.const_value.numpy() / np.float32(3), name=value.name)
    ir.save(model, folder / "decoder.onnx")
    return Bundle(folder, bundle.manifest, "")


def as_of_a_trained_network(patch: pytest.MonkeyPatch) -> None:
    """Latents of deviation 1, as a VAE's: random networks end at 300, for which its scales would have to suit, too."""
    latents = np.random.default_rng(5).standard_normal((3, 4, 8, 8)).astype(np.float32)
    patch.setattr(decoder_module, "latents_to_decode", lambda bundle: latents)


@pytest.fixture(scope="module")
def static(latent_bundle, tmp_path_factory: pytest.TempPathFactory):
    """static(kind) -> the bundle and its decoder in int8 arithmetic, made once."""
    folder = tmp_path_factory.mktemp("static")

    @functools.cache
    def make(kind: str) -> tuple[Bundle, Path]:
        with pytest.MonkeyPatch.context() as patch:
            as_of_a_trained_network(patch)
            return quantised(kind)

    def quantised(kind: str) -> tuple[Bundle, Path]:
        bundle, path = softened(open_bundle(latent_bundle(kind)), folder / kind), folder / f"{kind}.onnx"
        assert quantise_decoder(bundle, path, "onnxruntime") == "int8-static"
        return bundle, path

    return make


@pytest.mark.parametrize(("kind", "float_ones", "parts"), [("kl", 3, 8), ("tiny", 2, 1)])
def test_a_decoder_computes_in_int8_on_the_cpu(static, tmp_path: Path, kind: str, float_ones: int, parts: int) -> None:
    """All but the first convolutions, of latents, and the last one, of colours, which falls into parts."""
    bundle, path = static(kind)
    before, after = (kernels(file, tmp_path) for file in (bundle.graph_file("decoder"), path))
    convolutions = before["Conv"] + before["FusedConv"]
    assert after["QLinearConv"] == convolutions - float_ones
    assert after["Conv"] + after["FusedConv"] == float_ones - 1 + parts
    assert after["Resize"] == before["Resize"] + before["Upsample"], "rounded before it is repeated"
    z = np.random.default_rng(3).standard_normal((3, 4, 8, 8)).astype(np.float32)
    exact, made = decoded(bundle.graph_file("decoder"), bundle, z), decoded(path, bundle, z)
    assert 36 < psnr(made, exact) < 60, "rounded, and not seen, in latents that calibration never saw"
    assert np.array_equal(np.concatenate([decoded(path, bundle, one[None]) for one in z]), made), "alone as in a batch"


def test_weights_of_the_decoder_cannot_saturate_sums(static) -> None:
    """255 x 64 twice is below 32,768: kernels of AVX2, which add two products in 16 bits, are exact."""
    weights = [
        node.inputs[1].producer().inputs[0].const_value.numpy()
        for node in ir.load(static("kl")[1]).graph
        if node.op_type == "Conv" and not node.inputs[1].is_initializer()
    ]
    assert len(weights) > 5 and {weight.dtype for weight in weights} == {np.dtype(np.int8)}
    assert max(np.abs(weight.astype(int)).max() for weight in weights) == 64
    assert all(np.abs(weight.astype(int)).max(axis=(1, 2, 3)).min() >= 62 for weight in weights), "a scale per channel"


def test_the_manifest_says_what_became_of_the_decoder(
    latent_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_of_a_trained_network(monkeypatch)
    source, out = latent_bundle("tiny"), tmp_path / "int8"
    manifest = quantize_bundle(source, out, QuantizeOptions())
    assert manifest.quantization is not None and manifest.quantization.decoder == "int8-static"
    request = CompareRequest(count=3, batch=2, steps=2, sampler="ddim", speed_rounds=0)
    report = compare_bundles(source, out, request)
    found = report.quality.decoding
    assert found is not None and found.latents == 2 and found.ratio is None
    assert compare_bundles(source, source, request).quality.decoding is None, "the same decoder"
    a, b = open_bundle(source), open_bundle(out)
    with Session(a) as session:
        noise = SeededNoise([0, 1], a.manifest.model.latent_shape)
        program = a.program(sampler="ddim", steps=2)
        latents = session.latents(program, [0, 1], a.manifest.defaults.guidance, noise)
    pictures = [decoded(bundle.graph_file("decoder"), a, latents) for bundle in (a, b)]
    assert found.psnr == pytest.approx(psnr(*pictures))


def test_a_decoder_whose_activations_do_not_suit_int8_keeps_them(
    latent_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_module, "STATIC_PSNR", 90.0)
    told: list[str] = []

    def report(what: str, done: int = 0, total: int = 0) -> None:
        told.append(what)

    bundle = open_bundle(latent_bundle("tiny"))
    assert quantise_decoder(bundle, tmp_path / "d.onnx", "onnxruntime", report) == "int8"
    assert "decoder: below 90 dB only its weights become int8: smaller and not quicker" in told
    assert {node.op_type for node in ir.load(tmp_path / "d.onnx").graph}.isdisjoint({"QuantizeLinear"})


def test_calibration_has_flat_areas_and_noise() -> None:
    """A tiny decoder has no norms: its ranges are those of flat colours, which white noise never shows."""
    own = np.zeros((2, 4, 24, 40), np.float32)
    latents = calibration_latents(own, decoder_bytes=5_000_000)
    assert latents.shape == (34, 4, 24, 40) and latents.dtype == np.float32 and not latents[:2].any()
    assert len(calibration_latents(own, decoder_bytes=198_000_000)) == 10
    assert 0.9 < latents[2:].std() < 1.1, "as the network makes them"
    means = np.abs(latents[2:].mean(axis=(2, 3)))
    assert means.max() > 1 and np.median(means) < 0.5
    assert np.array_equal(latents, calibration_latents(own, decoder_bytes=5_000_000)), "the same for everybody"


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
    monkeypatch.setattr(decoder_module, "DECODER_PSNR", 90.0)
    with pytest.raises(BundleError, match=r"is \d+\.\d dB, at least 90 dB is allowed: leave the decoder alone"):
        quantise_decoder(bundle, tmp_path / "d.onnx", "tensorrt")
    monkeypatch.setattr(decoder_module, "convolutions_at_rest", lambda model: [])
    with pytest.raises(BundleError, match=r"\d+ convolutions kept their float weights"):
        quantise_decoder(bundle, tmp_path / "d.onnx", "tensorrt")


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
