"""VAE files that do not fit are refused, naming the file and the key."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ditedge.export import ExportOptions, bundle_from_checkpoint
from ditedge.export.sources.vae_checkpoint import read_vae
from ditedge.runtime.errors import CheckpointError, RequestError
from tests.conftest import GOLDEN
from tests.export.networks.vaes import (
    LATENT,
    WEIGHTS,
    make_vae,
)


def edited_state(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        state = load_file(folder / "kl" / WEIGHTS)
        edit(state)
        save_file(state, folder / "alone.safetensors")
        return folder / "alone.safetensors"

    return make


def edited_config(kind: str = "kl", **changes: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / kind / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return folder / kind

    return make


def written(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return (folder / name) if "/" not in name else (folder / name).parent

    return make


def truncated(folder: Path) -> Path:
    raw = (folder / "kl" / WEIGHTS).read_bytes()
    (folder / "kl" / WEIGHTS).write_bytes(raw[: len(raw) // 2])
    return folder / "kl"


BIAS = "decoder.conv_in.bias"
BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nothing": (lambda f: f / "nope", "nope does not exist"),
    "folder without config": (lambda f: f, r"has no config\.json"),
    "folder without weights": (lambda f: [(f / "kl" / WEIGHTS).unlink(), f / "kl"][1], ": no weights, expected"),
    "truncated": (truncated, "cut short"),
    "pickle that is none": (written("x.bin", b"\x80\x02nonsense"), r"x\.bin: not a readable"),
    "missing key": (edited_state(lambda s: s.pop(BIAS)), BIAS),
    "unknown key": (edited_state(lambda s: s.update({"decoder.extra.weight": torch.ones(2)})), r"decoder\.extra\.weight"),
    "wrong shape": (edited_state(lambda s: s.update({BIAS: torch.ones(3)})), rf"{BIAS}' has shape \[3\]"),
    "not finite": (edited_state(lambda s: s[BIAS].fill_(torch.nan)), f"{BIAS}' has numbers"),
    "integers": (edited_state(lambda s: s.update({BIAS: torch.ones(64, dtype=torch.int32)})), BIAS),
    "no convolution": (edited_state(lambda s: s.update({"decoder.conv_in.weight": torch.ones(4)})), "conv_in.weight"),
    "encoder only": (
        edited_state(lambda s: [s.pop(key) for key in list(s) if key.startswith("decoder.")]),
        "not the decoder of an AutoencoderKL",
    ),
    "a key that asks for many layers": (
        edited_state(lambda s: s.update({"decoder.up_blocks.0.resnets.9999.x": torch.ones(1)})),
        "not an AutoencoderKL",
    ),
    "widths for another number of groups": (
        lambda f: [make_vae(f / "g", norm_num_groups=8, block_out_channels=(8, 24, 48)), (f / "g" / "config.json").unlink(), f / "g" / WEIGHTS][2],
        "not multiples of 32",
    ),
    "16 channels without config": (
        lambda f: [make_vae(f / "c", latent_channels=16), (f / "c" / "config.json").unlink(), f / "c" / WEIGHTS][2],
        "scaling of its 16-channel latents",
    ),
    "a DiT": (lambda f: LATENT, "not the decoder of an AutoencoderKL"),
    "config is no JSON": (written("kl/config.json", b'{"_class'), r"config\.json: not valid JSON"),
    "config of another class": (
        edited_config(_class_name="AutoencoderOobleck"),
        "AutoencoderOobleck'; understood are AutoencoderKL, AutoencoderTiny, AutoencoderDC",
    ),
    "config of a DC one with KL weights": (edited_config(_class_name="AutoencoderDC"), "is missing"),
    "DC config with other levels": (edited_config("dc", decoder_layers_per_block=[1, 1]), "has 2 levels"),
    "DC config with another norm": (edited_config("dc", decoder_norm_types="layer_norm"), "decoder_norm_types"),
    "DC config with an empty level": (edited_config("dc", decoder_layers_per_block=[1, 0, 1]), "level without layers"),
    "DC config with odd widths": (edited_config("dc", decoder_block_out_channels=[8, 12, 16]), "do not become"),
    "DC config with odd latents": (edited_config("dc", latent_channels=3), "multiple of latent_channels"),
    "DC config with odd heads": (edited_config("dc", attention_head_dim=3), "multiples of attention_head_dim"),
    "DC config with other widths": (edited_config("dc", decoder_block_out_channels=[8, 8, 8]), "expected"),
    "config with another activation": (edited_config(act_fn="gelu"), "act_fn"),
    "config with other blocks": (edited_config(up_block_types=["UpBlock2D"]), "up_block_types"),
    "config with latent means alone": (edited_config(latents_mean=[0.0] * 4), "latents_mean and latents_std come together"),
    "config with too few means": (edited_config(latents_mean=[0.0], latents_std=[1.0]), "each of 4 channels"),
    "config with a deviation of zero": (edited_config(latents_mean=[0.0] * 4, latents_std=[0.0] * 4), "latents_std"),
    "config with scaling zero": (edited_config(scaling_factor=0), "scaling_factor"),
    "config with groups that do not divide": (edited_config(norm_num_groups=48), "norm_num_groups 48"),
    "config with other widths": (edited_config(block_out_channels=[32, 64, 96]), "expected"),
    "config with absurd layers": (edited_config(layers_per_block=10**9), "layers_per_block"),
    "config of a tiny one with KL weights": (edited_config(_class_name="AutoencoderTiny"), "act_fn"),
    "config of a KL one with tiny weights": (
        edited_config("tiny", _class_name="AutoencoderKL", act_fn="silu"),
        "not of the class",
    ),
    "tiny config with uneven lists": (edited_config("tiny", num_decoder_blocks=[1, 2]), "differ in length"),
    "tiny config with another upsampling": (edited_config("tiny", upsample_fn="bilinear"), "upsample_fn"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", BAD)
def test_files_that_do_not_fit_are_refused(vaes: Path, tmp_path: Path, mistake: str) -> None:
    shutil.copytree(vaes, tmp_path, dirs_exist_ok=True)
    make, complaint = BAD[mistake]
    path = make(tmp_path)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        read_vae(path)
    assert str(tmp_path) in str(caught.value) or str(LATENT) in str(caught.value)


@pytest.mark.parametrize(
    ("checkpoint", "vae", "complaint"),
    [
        ("gray1_cfg", "kl", "decodes 4 channels to 3, the model makes 1"),
        ("latent4_learned_sigma", "wide", "decodes 16 channels"),
    ],
)
def test_a_vae_that_does_not_fit_the_model(
    vaes: Path, tmp_path: Path, checkpoint: str, vae: str, complaint: str
) -> None:
    make_vae(tmp_path / "wide", latent_channels=16)
    folder = tmp_path / "wide" if vae == "wide" else vaes / vae
    with pytest.raises(RequestError, match=complaint):
        options = ExportOptions(heads={"gray1_cfg": 2}.get(checkpoint, 4), vae=folder)
        bundle_from_checkpoint(GOLDEN / checkpoint / "model.safetensors", tmp_path / "b", options)
    assert not (tmp_path / "b").exists()
