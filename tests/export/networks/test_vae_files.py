"""A VAE's decoder from every file layout: diffusers folders old and new, latent-diffusion's names, TAESD's own file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from ditedge.cli import main
from ditedge.export import exporter
from ditedge.export.networks.vae import KlConfig, TinyConfig
from ditedge.export.sources.vae_checkpoint import read_vae
from ditedge.export.with_decoder import add_decoder
from ditedge.runtime.errors import CheckpointError, RequestError
from tests.export.networks.vaes import (
    LATENT,
    WEIGHTS,
    assert_same_decoder,
    from_diffusers,
    latents,
    make_tiny,
    make_vae,
)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scaling_factor": 0.3611, "shift_factor": 0.1159, "latent_channels": 16},  # as in SD 3 and Flux
        {"latents_mean": [0.3, -1.0, 2.0], "latents_std": [2.0, 0.7, 5.0], "scaling_factor": 0.5, "latent_channels": 3},
        {"use_post_quant_conv": False, "use_quant_conv": False},
        {"mid_block_add_attention": False},
        {"norm_num_groups": 8, "block_out_channels": (8, 24, 48)},
        {"layers_per_block": 1, "out_channels": 1, "in_channels": 1},
    ],
)
def test_kl_folder(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert_same_decoder(tmp_path, make_vae(tmp_path, **changes))


def test_kl_single_file_and_pipeline_folder(vaes: Path, tmp_path: Path) -> None:
    vae = make_vae(tmp_path / "pipeline" / "vae")
    assert_same_decoder(tmp_path / "pipeline", vae)
    save_file(vae.state_dict(), tmp_path / "alone.safetensors")
    torch.save(vae.state_dict(), tmp_path / "alone.pt")
    for name in ("alone.safetensors", "alone.pt"):
        assert_same_decoder(tmp_path / name, vae)
    config = read_vae(tmp_path / "alone.pt").decoder.config
    assert config == KlConfig(4, 3, (32, 64, 64), 2)
    assert config == read_vae(vaes / "kl").decoder.config


def test_what_was_taken_and_what_was_assumed_is_told(
    vaes: Path, golden_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lone file of 4 channels may be SDXL's, whose scaling is another: before the work, export and add-decoder say it."""
    vae = from_diffusers(vaes / "kl").state_dict()
    torch.save({"state_dict": vae, "state_dict_ema": vae}, tmp_path / "kl.ckpt")
    told: list[str] = []
    bundle = add_decoder(golden_bundle("latent4_learned_sigma"), tmp_path / "kl.ckpt", tmp_path / "b", note=told.append)
    assert bundle.vae is not None and bundle.vae.scaling_factor == 0.18215
    weights, scaling = told
    assert weights == "VAE's weights: 'state_dict_ema', averaged over training (EMA), not 'state_dict'"
    assert scaling.startswith("VAE's scaling: 0.18215 (assumed: ") and "kl.ckpt does not say it" in scaling
    folder, tiny = read_vae(vaes / "kl").notes, read_vae(vaes / "tiny" / WEIGHTS).notes
    assert folder == (f"VAE's weights: kl/{WEIGHTS}",) and len(tiny) == 1

    def work(*_: object) -> None:
        raise RequestError("the work begins")

    monkeypatch.setattr(exporter, "write_graphs", work)
    command = ["export", "--ckpt", str(LATENT), "--heads", "4", "--vae", str(tmp_path / "kl.ckpt")]
    result = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "e")])
    assert result.stderr.splitlines()[-1].endswith("the work begins")
    assert [line.removeprefix("note: ") for line in result.stderr.splitlines() if "note: VAE's" in line] == told


def test_a_file_inside_a_diffusers_folder_takes_its_config(tmp_path: Path) -> None:
    vae = make_vae(tmp_path, scaling_factor=0.13025)
    assert_same_decoder(tmp_path / WEIGHTS, vae)
    (tmp_path / "config.json").write_text('{"_class_name": "DiTTransformer2DModel"}')
    assert read_vae(tmp_path / WEIGHTS).decoder.config.scaling_factor == 0.18215


@pytest.mark.parametrize("name", ["AutoencoderOfAnother", ["AutoencoderKL"], {}, None])
def test_a_folder_of_another_class_is_refused(tmp_path: Path, name: object) -> None:
    make_vae(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(CheckpointError, match="_class_name is .*; understood are AutoencoderKL"):
        read_vae(tmp_path)


def test_half_precision_weights_in_a_bin_file(tmp_path: Path) -> None:
    vae = make_vae(tmp_path).half()
    (tmp_path / WEIGHTS).unlink()
    torch.save(vae.state_dict(), tmp_path / "diffusion_pytorch_model.fp16.bin")
    assert_same_decoder(tmp_path, vae.float())


OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def test_attention_names_of_old_diffusers(tmp_path: Path) -> None:
    vae = make_vae(tmp_path)
    state = {}
    for key, value in vae.state_dict().items():
        for new, old in OLD_NAMES.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        state[key] = value
    assert "decoder.mid_block.attentions.0.proj_attn.bias" in state
    save_file(state, tmp_path / WEIGHTS)
    assert_same_decoder(tmp_path, vae)


def latent_diffusion_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The decoder under CompVis latent-diffusion's names, with its 1 x 1 convolutions in the attention."""
    renamed = {}
    for key, value in state.items():
        if key.startswith(("encoder.", "quant_conv.")):
            continue
        if ".attentions.0." in key and value.ndim == 2:
            value = value[:, :, None, None]
        key = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{2 - int(m[1])}.block.", key)
        key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f"up.{2 - int(m[1])}.upsample.", key)
        key = re.sub(r"mid_block\.resnets\.(\d)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", key)
        for ours, theirs in (
            ("group_norm", "norm"),
            ("to_q", "q"),
            ("to_k", "k"),
            ("to_v", "v"),
            ("to_out.0", "proj_out"),
        ):
            key = key.replace(f"mid_block.attentions.0.{ours}.", f"mid.attn_1.{theirs}.")
        renamed[key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")] = value
    return renamed


def test_latent_diffusion_names(tmp_path: Path) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    vae = make_vae(tmp_path / "v")
    state = latent_diffusion_names(vae.state_dict())
    back = convert_ldm_vae_checkpoint(dict(state), vae.config)  # diffusers agrees that these are the names
    assert all(torch.equal(back[key], value) for key, value in vae.state_dict().items() if key.startswith("decoder."))
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "ldm.safetensors")
    whole = {f"first_stage_model.{key}": value for key, value in state.items()} | {"model.x": torch.ones(1)}
    torch.save({"state_dict": whole}, tmp_path / "sd.ckpt")
    for name in ("ldm.safetensors", "sd.ckpt"):
        assert_same_decoder(tmp_path / name, vae)


@pytest.mark.parametrize("changes", [{}, {"latent_channels": 16, "scaling_factor": 1.5, "shift_factor": 0.2}])
def test_tiny_folder_and_its_own_layout(tmp_path: Path, changes: dict[str, Any]) -> None:
    vae = make_tiny(tmp_path / "t", **changes)
    assert_same_decoder(tmp_path / "t", vae)
    own = {
        f"{int(key.split('.')[1]) + 1}.{key.split('.', 2)[2]}": value for key, value in vae.decoder.state_dict().items()
    }
    assert {"1.weight", "3.conv.0.weight", "7.weight", "19.bias"} <= set(own)  # taesd_decoder.safetensors
    save_file(own, tmp_path / "taesd_decoder.safetensors")
    ours = read_vae(tmp_path / "taesd_decoder.safetensors")
    channels = changes.get("latent_channels", 4)
    assert ours.kind == "tiny" and ours.decoder.config == TinyConfig(channels, 3, (64,) * 4, (3, 3, 3, 1))
    z = latents(2, channels)
    with torch.no_grad():
        torch.testing.assert_close(ours.decoder(z), vae.decode(z).sample, rtol=1e-5, atol=1e-5)


def test_tiny_decoder_squashes_large_latents(vaes: Path) -> None:
    """tanh(z / 3) * 3: latents far out give the picture of the bound."""
    decoder = read_vae(vaes / "tiny").decoder
    torch.testing.assert_close(decoder(torch.full((1, 4, 4, 4), 1e4)), decoder(torch.full((1, 4, 4, 4), 50.0)))
