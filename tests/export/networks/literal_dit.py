"""facebookresearch/DiT's and SiT's forward pass, written out from the papers: truth for every layout of its weights.

And MeanFlow's (arXiv:2505.13447, section 4.4): the embedding of t - r is added to that of t.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def literal_dit(
    state: dict[str, Tensor], heads: int, x: Tensor, t: Tensor, y: Tensor, interval: Tensor | None = None
) -> Tensor:
    """x [N, C, H, W], t [N], y [N] -> all output channels [N, O, H, W]. Everything but `heads` is in the shapes.

    interval [N]: MeanFlow's t - r.
    """

    def linear(name: str, value: Tensor) -> Tensor:
        return F.linear(value, state[f"{name}.weight"], state[f"{name}.bias"])

    def modulated(value: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(value, value.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    patches = state["x_embedder.proj.weight"]
    half = state["t_embedder.mlp.0.weight"].shape[1] // 2
    tokens = F.conv2d(x, patches, state["x_embedder.proj.bias"], stride=patches.shape[2])
    side = tokens.shape[2]
    h = tokens.flatten(2).transpose(1, 2) + state["pos_embed"]

    def embedded(name: str, number: Tensor) -> Tensor:
        angle = number[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half) / half)
        return linear(f"{name}.mlp.2", F.silu(linear(f"{name}.mlp.0", torch.cat([angle.cos(), angle.sin()], 1))))

    c = embedded("t_embedder", t) + (embedded("h_embedder", interval) if interval is not None else 0)
    c = F.silu(c + state["y_embedder.embedding_table.weight"][y])
    for i in range(sum(key.endswith("attn.qkv.weight") for key in state)):
        name = f"blocks.{i}"
        shift1, scale1, gate1, shift2, scale2, gate2 = linear(f"{name}.adaLN_modulation.1", c).chunk(6, 1)
        qkv = linear(f"{name}.attn.qkv", modulated(h, shift1, scale1))
        q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, 2))
        weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]), -1)
        h = h + gate1[:, None] * linear(f"{name}.attn.proj", (weights @ v).transpose(1, 2).flatten(2))
        hidden = F.gelu(linear(f"{name}.mlp.fc1", modulated(h, shift2, scale2)), approximate="tanh")
        h = h + gate2[:, None] * linear(f"{name}.mlp.fc2", hidden)
    shift, scale = linear("final_layer.adaLN_modulation.1", c).chunk(2, 1)
    out = linear("final_layer.linear", modulated(h, shift, scale))
    p = patches.shape[2]
    grid = out.reshape(len(x), side, side, p, p, -1)
    return torch.einsum("nhwpqc->nchpwq", grid).reshape(len(x), -1, side * p, side * p)
