"""Sana, Sana 1.5 and SANA-Sprint (arXiv:2410.10629, 2501.18427, 2503.09641), split where `ditedge` cuts such a network.

`conditioner` depends on the timestep (and, in SANA-Sprint, on the guidance that it was distilled with), `context` on
the prompt, `position`, where a model has any, on the size of the latent, `trunk` on all of them. Parameter names are
those of diffusers' `SanaTransformer2DModel`, but for `time_embed.emb.`, which is `time_embed.` here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adaln_single import NORM_EPS, context_of, final, keys_and_values, six_of, with_table
from .interface import Interface
from .parts import (
    SINUSOID,
    FamilyConfig,
    Mlp,
    PatchEmbed,
    attend,
    frequencies,
    heads_of,
    modulated,
    sinusoid,
    unpatchified,
)
from .pixart import grid_position

CAPTION_EPS, QK_EPS = 1e-5, 1e-5
# Least sum of weights to divide by, where diffusers adds it: the exporter takes x + 1e-15 for x, and 0 / 0 is NaN.
TINY = 1e-15


@dataclass(frozen=True)
class SanaConfig(FamilyConfig):
    """Hyper-parameters, as in diffusers' config.json."""

    sample_size: int  # H = W of the latents that it was trained on
    patch_size: int
    in_channels: int  # C
    out_channels: int  # O
    num_heads: int
    head_size: int
    depth: int  # L
    cross_heads: int
    cross_head_size: int
    caption_channels: int  # Dh: width of the text encoder's rows
    mlp_ratio: float = 2.5
    attention_bias: bool = False
    norm_eps: float = 1e-6
    qk_norm: bool = False  # of queries and keys, over all heads together
    interpolation_scale: float | None = None  # of positions; None: there are none
    guided: bool = False  # SANA-Sprint: the conditioner is told the guidance
    guidance_scale: float = 0.1  # what the guidance is multiplied by
    timestep_scale: float = 1.0  # what the timestep is multiplied by
    tokens: int = 300  # T: of a prompt, in the pipelines

    @property
    def cross_size(self) -> int:
        """Width of a cross-attention's keys and values."""
        return self.cross_heads * self.cross_head_size

    @property
    def context_width(self) -> int:
        """W: keys and values of every cross-attention."""
        return 2 * self.depth * self.cross_size

    @property
    def base_size(self) -> int:
        """Side, in patches, of the grid whose positions are not interpolated."""
        return self.sample_size // self.patch_size


class RmsNorm(nn.Module):
    """Root mean square normalisation of the last axis, in float32."""

    def __init__(self, width: int, eps: float, bias: bool = False) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.empty(width)), eps
        self.bias = nn.Parameter(torch.empty(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight
        return normed if self.bias is None else normed + self.bias


class TimeEmbed(nn.Module):
    """Timestep, and where the model is told it the guidance -> [U, 7D]: six vectors for every block, the embedding."""

    def __init__(self, config: SanaConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.config = config
        self.timestep_embedder = Mlp(SINUSOID, width, nn.SiLU())
        if config.guided:
            self.guidance_embedder = Mlp(SINUSOID, width, nn.SiLU())
        self.linear = nn.Linear(width, 6 * width)
        self.register_buffer("frequency", frequencies(), persistent=False)

    def forward(self, timestep: Tensor, guidance: Tensor | None) -> Tensor:
        embedded = self.timestep_embedder(sinusoid(timestep * self.config.timestep_scale, self.frequency))
        if guidance is not None:
            turned = sinusoid(guidance * self.config.guidance_scale, self.frequency)
            embedded = embedded + self.guidance_embedder(turned)
        return torch.cat([self.linear(F.silu(embedded)), embedded], dim=1)


class LinearAttention(nn.Module):
    """Attention with ReLU for a softmax: the sums over tokens come first, so that its cost is linear in them."""

    def __init__(self, config: SanaConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, config.attention_bias) for _ in range(3))
        self.norm_q, self.norm_k = (RmsNorm(width, QK_EPS) if config.qk_norm else nn.Identity() for _ in range(2))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        """x [N, S, D] -> the same shape. Sums over all tokens are float32: they are beyond float16's range."""
        rows = (self.norm_q(self.to_q(x)), self.norm_k(self.to_k(x)), self.to_v(x))
        q, k, v = (part.unflatten(2, (self.num_heads, -1)).permute(0, 2, 3, 1).float() for part in rows)  # [N, h, d, S]
        q, k = F.relu(q), F.relu(k)
        summed = (v @ k.transpose(2, 3)) @ q
        attended = summed / (k.sum(dim=3)[:, :, None] @ q).clamp(min=TINY)
        return self.to_out[0](attended.flatten(1, 2).transpose(1, 2).to(x.dtype))


class CrossAttention(nn.Module):
    """Of image tokens to keys and values of the prompt."""

    def __init__(self, config: SanaConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.cross_size
        self.num_heads = config.cross_heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, inner) for _ in range(3))
        self.norm_q, self.norm_k = (RmsNorm(inner, QK_EPS) if config.qk_norm else nn.Identity() for _ in range(2))
        self.to_out = nn.ModuleList([nn.Linear(inner, width)])

    def of_prompt(self, prompt: Tensor) -> list[Tensor]:
        """prompt [P, T, D] -> keys and values [P, T, cross_size]."""
        return [self.norm_k(self.to_k(prompt)), self.to_v(prompt)]

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """x [N, S, D]; keys, values [N, T, cross_size]; bias [N, T] -> [N, S, D]."""
        q, k, v = (heads_of(part, self.num_heads) for part in (self.norm_q(self.to_q(x)), keys, values))
        return self.to_out[0](attend(q, k, v, bias))


class GluMbConv(nn.Module):
    """A gated feed-forward of convolutions, one over neighbours: without positions, what a model sees them by."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        inner = int(ratio * width)
        self.conv_inverted = nn.Conv2d(width, 2 * inner, 1)
        self.conv_depth = nn.Conv2d(2 * inner, 2 * inner, 3, padding=1, groups=2 * inner)
        self.conv_point = nn.Conv2d(inner, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, D, h, w] -> the same shape."""
        hidden, gate = self.conv_depth(F.silu(self.conv_inverted(x))).chunk(2, dim=1)
        return self.conv_point(hidden * F.silu(gate))


class Block(nn.Module):
    """Linear attention and the convolutional feed-forward with adaLN-single, cross-attention without a norm."""

    def __init__(self, config: SanaConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.scale_shift_table = nn.Parameter(torch.empty(6, width))
        self.norm1, self.norm2 = (nn.LayerNorm(width, config.norm_eps, elementwise_affine=False) for _ in range(2))
        self.attn1, self.attn2 = LinearAttention(config), CrossAttention(config)
        self.ff = GluMbConv(width, config.mlp_ratio)

    def forward(
        self, x: Tensor, six: Tensor, keys: Tensor, values: Tensor, bias: Tensor, sides: tuple[int, int]
    ) -> Tensor:
        """x [N, S, D], six [N, 6, D], keys and values of the prompt [N, T, ...], bias [N, T], S = h w -> [N, S, D]."""
        rows = with_table(self.scale_shift_table, six)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = rows
        x = x + gate_msa * self.attn1(modulated(self.norm1, x, shift_msa, scale_msa))
        x = x + self.attn2(x, keys, values, bias)
        inner = modulated(self.norm2, x, shift_mlp, scale_mlp).unflatten(1, sides).permute(0, 3, 1, 2)
        return x + gate_mlp * self.ff(inner).flatten(2).transpose(1, 2)


class Sana(nn.Module):
    """diffusers' SanaTransformer2DModel."""

    def __init__(self, config: SanaConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.patch_embed = PatchEmbed(config.in_channels, width, config.patch_size)
        self.time_embed = TimeEmbed(config)
        self.caption_projection = Mlp(config.caption_channels, width, nn.GELU(approximate="tanh"))
        self.caption_norm = RmsNorm(width, CAPTION_EPS)
        self.transformer_blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm_out = nn.LayerNorm(width, NORM_EPS, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.empty(2, width))
        self.proj_out = nn.Linear(width, config.patch_size**2 * config.out_channels)

    @property
    def interface(self) -> Interface:
        config = self.config
        return Interface(
            modulation=7 * config.hidden_size,
            context=config.context_width,
            multiple=config.patch_size,
            reads={"hidden": ("T", config.caption_channels), "mask": ("T",)},
            biased=True,
            scalars=("guidance",) if config.guided else (),
            position=config.hidden_size if config.interpolation_scale is not None else None,
        )

    def conditioner(self, timestep: Tensor, guidance: Tensor | None = None) -> Tensor:
        """timestep [U] float32, guidance [U] float32 where the model is told it -> [U, 7D]."""
        return self.time_embed(timestep, guidance)

    def context(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """hidden [P, T, Dh] float32, mask [P, T] int64 -> context [P, T, W], context_bias [P, T].

        Of each block in turn its keys and its values.
        """
        prompt = self.caption_norm(self.caption_projection(hidden))
        rows = [part for block in self.transformer_blocks for part in block.attn2.of_prompt(prompt)]
        return context_of(rows, mask)

    def position(self, rows: Tensor, columns: Tensor) -> Tensor:
        """rows [h] and columns [w] float32, counted from 0 -> [h, w, D], of a model that has positions."""
        config = self.config
        return grid_position(rows, columns, config.hidden_size, config.base_size, config.interpolation_scale or 1.0)

    def trunk(
        self,
        x: Tensor,
        modulation: Tensor,
        context: Tensor,
        context_bias: Tensor,
        prompt: Tensor,
        position: Tensor | None = None,
    ) -> Tensor:
        """x [N, C, H, W], modulation [N, 7D], context [P, T, W], context_bias [P, T], prompt [N] int64 (rows of both),
        position [h, w, D] where there is any -> network output [N, O, H, W]."""
        width, patch = self.config.hidden_size, self.config.patch_size
        tokens = self.patch_embed(x)
        tokens = tokens if position is None else tokens + position.flatten(0, 1)[None]
        six, bias = six_of(modulation, width), context_bias.index_select(0, prompt)
        sides = (x.shape[2] // patch, x.shape[3] // patch)
        for i, block in enumerate(self.transformer_blocks):
            tokens = block(tokens, six, *keys_and_values(context, prompt, i, self.config.cross_size), bias, sides)
        tokens = self.proj_out(final(self.norm_out, self.scale_shift_table, tokens, modulation))
        return unpatchified(tokens, patch, *sides)
