"""A small DiT of diffusers with random weights, and the golden checkpoints."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import GOLDEN

GRAY = GOLDEN / "gray1_cfg" / "model.safetensors"
LATENT = GOLDEN / "latent4_learned_sigma" / "model.safetensors"
WEIGHTS = "diffusion_pytorch_model.safetensors"
BLOCK1 = "transformer_blocks.1."


def small_vae():
    """Random weights, the same ones at every call: its decoder is exported once."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(1)
    return diffusers.AutoencoderKL(block_out_channels=(32,), latent_channels=4)


def diffusers_model(**options):
    """A small DiTTransformer2DModel with random weights; every block has the same embedders, as trained ones do."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    settings = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "out_channels": 8,
        "num_layers": 2,
        "sample_size": 8,
    }
    model = diffusers.DiTTransformer2DModel(**settings | options).eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # large enough that attention is far from uniform
    for block in model.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    return model
