"""VAEs of diffusers with random weights, and what their decoders make; what the tests of decoders share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ditedge.export.sources.vae_checkpoint import read_vae
from tests.conftest import GOLDEN

diffusers = pytest.importorskip("diffusers")

LATENT = GOLDEN / "latent4_learned_sigma" / "model.safetensors"
WEIGHTS = "diffusion_pytorch_model.safetensors"
SMALL: dict[str, Any] = {
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 2,
    "latent_channels": 4,
}


def make_vae(folder: Path, **changes: Any) -> Any:
    """A small AutoencoderKL with contrast in its pictures, saved to `folder`."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(**SMALL | changes).eval()
    with torch.no_grad():
        vae.decoder.conv_out.weight *= 3
    vae.save_pretrained(folder)
    return vae


def make_tiny(folder: Path, **changes: Any) -> Any:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderTiny(**changes).eval()
    with torch.no_grad():
        for name, parameter in vae.decoder.named_parameters():
            if name.endswith("weight"):
                parameter *= 1.7
        vae.decoder.layers[-1].bias += 0.5
    vae.save_pretrained(folder)
    return vae


DC: dict[str, Any] = {
    "latent_channels": 4, "attention_head_dim": 4, "scaling_factor": 0.41407,
    "encoder_block_types": ("ResBlock",) * 3, "encoder_block_out_channels": (8,) * 3, "encoder_layers_per_block": (1,) * 3,
    "decoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"), "decoder_block_out_channels": (8, 8, 16),
    "decoder_layers_per_block": (1, 1, 2), "decoder_qkv_multiscales": ((), (), (5,)),
}  # fmt: skip


def make_dc(folder: Path, **changes: Any) -> Any:
    """A small AutoencoderDC; norms and their statistics are random, too."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderDC(**DC | changes).eval()
    with torch.no_grad():
        for weight in vae.parameters():
            weight += 0.05 * torch.randn_like(weight)
        for buffer in vae.buffers():
            buffer += (0.2 * torch.rand(buffer.shape)).to(buffer.dtype)
    vae.save_pretrained(folder)
    return vae


def from_diffusers(folder: Path) -> Any:
    name = json.loads((folder / "config.json").read_text())["_class_name"]
    return getattr(diffusers, name).from_pretrained(folder, low_cpu_mem_usage=False)


def latents(count: int, channels: int = 4) -> torch.Tensor:
    return torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(5))


def unscaled(vae: Any, z: torch.Tensor) -> torch.Tensor:
    """The VAE's latents of the network's, as diffusers' pipelines compute them (SDXL's with means and deviations)."""
    mean, std = (getattr(vae.config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is None:
        return z / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    return z * std / vae.config.scaling_factor + mean


@torch.no_grad()
def reference_images(vae: Any, z: torch.Tensor) -> np.ndarray:
    """sample_ddp.py's `decode` and rounding, by diffusers."""
    picture = vae.decode(unscaled(vae, z)).sample
    return torch.clamp(127.5 * picture + 128.0, 0, 255).permute(0, 2, 3, 1).to(torch.uint8).numpy()


def assert_same_picture(actual: np.ndarray, expected: np.ndarray) -> None:
    """Within 1 of 255 in 99.9 % of the numbers; the picture must have contrast for that to mean something."""
    assert actual.shape == expected.shape and actual.dtype == np.uint8 and expected.std() > 15
    assert np.mean(np.abs(actual.astype(int) - expected) <= 1) >= 0.999


def assert_same_decoder(path: Path, vae: Any) -> None:
    z = latents(2, vae.config.latent_channels)
    ours = read_vae(path).decoder
    with torch.no_grad():
        expected = vae.decode(unscaled(vae, z)).sample
        torch.testing.assert_close(ours(z), expected, rtol=1e-4, atol=2e-5)
