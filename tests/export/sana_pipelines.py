"""Small Sana transformers with random weights, of diffusers' own class."""

from __future__ import annotations

from typing import Any

import torch

SIDE = 4  # of latents that the network was trained on, had it been


def small_sana(**changes: Any) -> Any:
    from diffusers import SanaTransformer2DModel

    torch.manual_seed(0)
    settings = {
        "in_channels": 4, "out_channels": 4, "num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2,
        "num_cross_attention_heads": 2, "cross_attention_head_dim": 16, "cross_attention_dim": 32, "sample_size": SIDE,
        "caption_channels": 16, "patch_size": 1,
    }  # fmt: skip
    network = SanaTransformer2DModel(**settings | changes)
    for weight in network.parameters():
        weight.data.add_(0.05 * torch.randn_like(weight))
    return network.eval()
