"""VAE encoders against diffusers, and `encoder.onnx`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ditedge.export.graphs.write_image import write_image_graphs
from ditedge.export.sources.vae_checkpoint import read_vae
from ditedge.export.sources.vae_encoder import read_encoder
from ditedge.runtime import open_bundle
from ditedge.runtime.errors import CheckpointError
from ditedge.runtime.loop.verify import relative_error
from ditedge.runtime.report import silent
from tests.conftest import BUNDLES, PIXART
from tests.export.networks.vaes import WEIGHTS, from_diffusers, make_dc, make_tiny, make_vae

PICTURES = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(3)) * 2 - 1
STATISTICS = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 2.0, 0.5, 1.0]}


@pytest.mark.parametrize(
    "changes", [{}, {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.06}, STATISTICS]
)
@torch.no_grad()
def test_the_mean_of_an_autoencoder_kl(tmp_path: Path, changes: dict) -> None:
    vae = make_vae(tmp_path / "vae", **changes)
    found = read_encoder(tmp_path / "vae", read_vae(tmp_path / "vae"))(PICTURES)
    mean = vae.encode(PICTURES).latent_dist.mode()
    if "latents_mean" in changes:
        middle, width = (torch.tensor(values)[None, :, None, None] for values in STATISTICS.values())
        expected = (mean - middle) * vae.config.scaling_factor / width
    else:
        expected = (mean - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
    assert relative_error(found.numpy(), expected.numpy()) < 1e-6


@torch.no_grad()
def test_an_autoencoder_tiny(tmp_path: Path) -> None:
    vae = make_tiny(tmp_path / "tiny", num_encoder_blocks=(1, 2), encoder_block_out_channels=(16, 16),
                    num_decoder_blocks=(2, 1), decoder_block_out_channels=(16, 16))  # fmt: skip
    found = read_encoder(tmp_path / "tiny", read_vae(tmp_path / "tiny"))(PICTURES)
    assert relative_error(found.numpy(), vae.encode(PICTURES).latents.numpy()) < 1e-6


DC_CHANGES: dict[str, dict] = {
    "shuffled, shortcuts": {"encoder_block_out_channels": (8, 8, 16)},
    "strides, no layers at full size": {"downsample_block_type": "Conv", "encoder_layers_per_block": (0, 1, 1)},
    "attention, no shortcut": {
        "encoder_block_types": ("ResBlock", "EfficientViTBlock", "EfficientViTBlock"), "encoder_out_shortcut": False,
        "encoder_qkv_multiscales": ((), (), (5,)),
    },
}  # fmt: skip


@pytest.mark.parametrize("changes", DC_CHANGES.values(), ids=DC_CHANGES)
@torch.no_grad()
def test_an_autoencoder_dc(tmp_path: Path, changes: dict) -> None:
    vae = make_dc(tmp_path, **{"encoder_qkv_multiscales": ((), (), ())} | changes)
    found = read_encoder(tmp_path, read_vae(tmp_path))(PICTURES)
    assert relative_error(found.numpy(), (vae.encode(PICTURES).latent * vae.config.scaling_factor).numpy()) < 1e-5


def test_an_encoder_whose_levels_do_not_fit_is_refused_and_its_decoder_read(tmp_path: Path) -> None:
    make_dc(tmp_path, encoder_qkv_multiscales=((), (), ()))
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"encoder_layers_per_block": [1, 1]}))
    vae = read_vae(tmp_path)
    with pytest.raises(CheckpointError, match="the levels of its encoder do not fit each other"):
        read_encoder(tmp_path, vae)


@torch.no_grad()
def test_latent_diffusions_names(tmp_path: Path) -> None:
    """The same weights as a Stable Diffusion checkpoint has them: counted from the other end, 1 x 1 convolutions."""
    make_vae(tmp_path / "vae", block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2,
             up_block_types=("UpDecoderBlock2D",) * 2)  # fmt: skip
    state = {ldm_name(key): value for key, value in load_file(tmp_path / "vae" / WEIGHTS).items()}
    state = {k: v[:, :, None, None] if ".attn_1." in k and v.ndim == 2 else v for k, v in state.items()}
    save_file({f"first_stage_model.{k}": v.contiguous() for k, v in state.items()}, tmp_path / "sd.safetensors")
    found = read_encoder(tmp_path / "sd.safetensors", read_vae(tmp_path / "sd.safetensors"))(PICTURES)
    expected = from_diffusers(tmp_path / "vae").encode(PICTURES).latent_dist.mode() * 0.18215
    assert relative_error(found.numpy(), expected.numpy()) < 1e-6


def ldm_name(key: str) -> str:
    """diffusers' name of a tensor of this VAE of two levels under latent-diffusion's."""
    for theirs, name in (
        ("up_blocks.0.resnets.", "up.1.block."), ("up_blocks.1.resnets.", "up.0.block."),
        ("up_blocks.0.upsamplers.0.", "up.1.upsample."), ("down_blocks.0.resnets.", "down.0.block."),
        ("down_blocks.1.resnets.", "down.1.block."), ("down_blocks.0.downsamplers.0.", "down.0.downsample."),
        ("mid_block.resnets.0.", "mid.block_1."), ("mid_block.resnets.1.", "mid.block_2."),
        ("mid_block.attentions.0.group_norm.", "mid.attn_1.norm."), ("mid_block.attentions.0.to_out.0.", "mid.attn_1.proj_out."),
        ("mid_block.attentions.0.to_", "mid.attn_1."), ("conv_norm_out.", "norm_out."), ("conv_shortcut.", "nin_shortcut."),
    ):  # fmt: skip
        key = key.replace(theirs, name)
    return key


def test_a_decoder_alone_is_refused(tmp_path: Path) -> None:
    make_vae(tmp_path / "vae")
    state = {k: v for k, v in load_file(tmp_path / "vae" / WEIGHTS).items() if not k.startswith("encoder.")}
    save_file(state, tmp_path / "vae" / WEIGHTS)
    with pytest.raises(CheckpointError, match="holds a decoder and no encoder"):
        read_encoder(tmp_path / "vae", read_vae(tmp_path / "vae"))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    make_vae(tmp_path / "vae")
    state = load_file(tmp_path / "vae" / WEIGHTS)
    del state["encoder.mid_block.resnets.1.conv2.bias"]
    save_file(state, tmp_path / "vae" / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"encoder\.mid_block\.resnets\.1\.conv2\.bias"):
        read_encoder(tmp_path / "vae", read_vae(tmp_path / "vae"))


def test_an_autoencoder_dcs_graph_takes_pictures_of_any_size(tmp_path: Path) -> None:
    """Compared with PyTorch where it is written, on another size than it was traced with."""
    make_dc(tmp_path / "dc", encoder_qkv_multiscales=((), (), ()))
    vae = read_vae(tmp_path / "dc")
    info = open_bundle(BUNDLES / PIXART).manifest.model  # 4 channels, too
    factor = vae.decoder.config.factor
    made = write_image_graphs(read_encoder(tmp_path / "dc", vae), info, factor, tmp_path, 20, silent, any_size=True)
    assert made["encoder"].outputs[0].shape == ["B", 4, "H", "W"]
