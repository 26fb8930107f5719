"""VAE decoders against diffusers, through `decoder.onnx`; previews."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from ditedge.export.graphs import write
from ditedge.export.graphs.decoder import check_decoder
from ditedge.export.graphs.modules import LatentDecoder
from ditedge.export.networks.vae import VaeDecoder, half_precision
from ditedge.export.sources.vae_checkpoint import read_vae
from ditedge.runtime import Session, open_bundle
from ditedge.runtime.bundle import manifest
from ditedge.runtime.errors import BundleError
from ditedge.runtime.loop.engine import EngineOptions
from ditedge.runtime.loop.engines import open_engine
from ditedge.runtime.loop.host_loop import decode_images
from tests.export.networks.vaes import (
    assert_same_decoder,
    assert_same_picture,
    from_diffusers,
    latents,
    make_dc,
    reference_images,
)


def export_decoder(path: Path, vae: VaeDecoder) -> None:
    write.onnx_from_module(
        LatentDecoder(vae), {"latent": torch.randn(2, 4, 8, 8)}, "image", {"latent": {0: "B"}}, path, 20
    )


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        ("kl", "float32"),
        ("tiny", "float32"),
        pytest.param("kl", "float16", marks=pytest.mark.slow),
        ("tiny", "float16"),
        ("dc", "float32"),
        ("dc", "float16"),
    ],
)
def test_decoder_graph_makes_diffusers_pictures(vaes: Path, tmp_path: Path, kind: str, precision: str) -> None:
    ours, vae, z = read_vae(vaes / kind).decoder, from_diffusers(vaes / kind), latents(5)
    export_decoder(tmp_path / "decoder.onnx", half_precision(ours) if precision == "float16" else ours)
    check_decoder(tmp_path / "decoder.onnx", ours, 8, precision)
    size = 8 * ours.config.factor
    with closing(open_engine(tmp_path / "decoder.onnx", EngineOptions())) as engine:
        assert_same_picture(decode_images(engine, z.numpy(), (size, size, 3)), reference_images(vae, z))
    graph = onnx.load(tmp_path / "decoder.onnx").graph
    convolutions = {node.input[1] for node in graph.node if node.op_type == "Conv"}
    types = {tensor.data_type for tensor in graph.initializer if tensor.name in convolutions}
    assert types == {onnx.TensorProto.FLOAT16 if precision == "float16" else onnx.TensorProto.FLOAT}


DC_CHANGES: dict[str, dict] = {
    "interpolated, batch norm": {
        "upsample_block_type": "interpolate", "decoder_norm_types": ("batch_norm", "batch_norm", "rms_norm"),
        "decoder_act_fns": ("relu", "silu", "silu"),
    },
    "no layers at full size": {"decoder_layers_per_block": (0, 1, 1), "decoder_block_out_channels": (4, 8, 16)},
    "no shortcut, no neighbours": {"decoder_in_shortcut": False, "decoder_qkv_multiscales": ((), (), ())},
    "attention everywhere": {"decoder_block_types": "EfficientViTBlock", "decoder_qkv_multiscales": ((3,), (), (3, 5))},
}  # fmt: skip


@pytest.mark.parametrize("changes", DC_CHANGES.values(), ids=DC_CHANGES)
def test_deep_compression_decoders_are_diffusers_own(tmp_path: Path, changes: dict) -> None:
    assert_same_decoder(tmp_path, make_dc(tmp_path, **changes))


@pytest.mark.parametrize("kind", ["kl", "tiny"])
def test_bundle_with_decoder(latent_bundle, vaes: Path, kind: str) -> None:
    bundle, z = open_bundle(latent_bundle(kind)), latents(3)
    with Session(bundle) as session:
        assert_same_picture(session.images(z.numpy()), reference_images(from_diffusers(vaes / kind), z))
    info, scaling = bundle.manifest.vae, 0.18215 if kind == "kl" else 1.0
    assert info is not None and (info.kind, info.precision) == (kind, "float32")
    assert (info.scaling_factor, info.shift_factor) == (scaling, 0.0)
    assert bundle.manifest.graphs["decoder"].outputs[0].shape == ["B", *[{"kl": 32, "tiny": 64}[kind]] * 2, 3]


def test_pictures_are_decoded_a_few_at_a_time(latent_bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    z = latents(5).numpy()
    with Session(open_bundle(latent_bundle("kl"))) as session:
        whole = session.images(z)
        batches, engine = [], session.engine("decoder")
        run = engine.run
        monkeypatch.setattr(engine, "run", lambda i, o: (batches.append(len(i["latent"])), run(i, o)))
        monkeypatch.setattr(manifest, "DECODE_PIXELS", 2 * 32 * 32)
        assert np.array_equal(session.images(z), whole) and batches == [2, 2, 1]
        monkeypatch.setattr(manifest, "DECODE_PIXELS", 1)
        assert np.array_equal(session.images(z), whole) and batches[3:] == [1] * 5


def test_a_wrong_decoder_is_not_handed_over(vaes: Path, tmp_path: Path) -> None:
    vae = read_vae(vaes / "kl").decoder
    export_decoder(tmp_path / "decoder.onnx", vae)
    check_decoder(tmp_path / "decoder.onnx", vae, 8, "float32")
    vae.decoder.conv_out.bias += 0.0005  # less than one level of 255, and seen all the same
    with pytest.raises(BundleError, match=r"decoder\.onnx does not compute"):
        check_decoder(tmp_path / "decoder.onnx", vae, 8, "float32")


def test_float16_out_of_range_says_so(vaes: Path, tmp_path: Path) -> None:
    vae = read_vae(vaes / "kl").decoder
    vae.decoder.up_blocks[1].resnets[0].conv2.weight *= 1e6
    with pytest.raises(BundleError, match="too near float16's limit.*--vae-precision fp32"):
        check_decoder(tmp_path / "decoder.onnx", vae, 8, "float16")


def test_float16_keeps_statistics_and_ends_in_float32(vaes: Path) -> None:
    half = half_precision(read_vae(vaes / "kl").decoder)
    kinds = {name: parameter.dtype for name, parameter in half.named_parameters()}
    assert all((dtype == torch.float32) == ("norm" in name) for name, dtype in kinds.items())
    assert half(latents(1)).dtype == torch.float32
