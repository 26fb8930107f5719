"""PixArt-alpha and -Sigma (arXiv:2310.00426, 2403.04692), split where `ditedge` cuts a network that takes prompts.

`conditioner` depends on the timestep (and, in PixArt-alpha 1024, on the picture's size), `context` on the prompt,
`position` on the size of the latent, `trunk` on all of them. Parameter names are those of diffusers'
`PixArtTransformer2DModel`: its state dicts load as they are.
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
    FeedForward,
    Mlp,
    PatchEmbed,
    attend,
    frequencies,
    heads_of,
    modulated,
    sinusoid,
    unpatchified,
)


@dataclass(frozen=True)
class PixArtConfig(FamilyConfig):
    """Hyper-parameters, as in diffusers' config.json."""

    sample_size: int  # H = W of the latents that it was trained on
    patch_size: int
    in_channels: int  # C
    out_channels: int  # O
    num_heads: int
    head_size: int
    depth: int  # L
    caption_channels: int  # Dh: width of the text encoder's rows
    interpolation_scale: float = 1.0  # of positions: patches per patch of a picture of 256 pixels
    norm_eps: float = 1e-6
    told_size: bool = False  # PixArt-alpha 1024: the conditioner is told the picture's height and width
    tokens: int = 120  # T: of a prompt, in the pipeline; 300 in PixArt-Sigma's

    @property
    def context_width(self) -> int:
        """W = 2 L D: keys and values of every cross-attention."""
        return 2 * self.depth * self.hidden_size

    @property
    def base_size(self) -> int:
        """Side, in patches, of the grid whose positions are not interpolated."""
        return self.sample_size // self.patch_size


class Embedders(nn.Module):
    """Timestep, and where the model is told it the size of the picture -> [U, D]."""

    def __init__(self, config: PixArtConfig) -> None:
        super().__init__()
        self.timestep_embedder = Mlp(SINUSOID, config.hidden_size, nn.SiLU())
        if config.told_size:
            third = config.hidden_size // 3
            self.resolution_embedder = Mlp(SINUSOID, third, nn.SiLU())
            self.aspect_ratio_embedder = Mlp(SINUSOID, third, nn.SiLU())
        self.register_buffer("frequency", frequencies(), persistent=False)

    def _sinusoid(self, value: Tensor) -> Tensor:
        return sinusoid(value, self.frequency)

    def forward(self, timestep: Tensor, height: Tensor | None, width: Tensor | None) -> Tensor:
        embedded = self.timestep_embedder(self._sinusoid(timestep))
        if height is None or width is None:
            return embedded
        sides = [self.resolution_embedder(self._sinusoid(side)) for side in (height, width)]
        ratio = self.aspect_ratio_embedder(self._sinusoid(height / width))
        return embedded + torch.cat([*sides, ratio], dim=1)


class AdaLayerNormSingle(nn.Module):
    def __init__(self, config: PixArtConfig) -> None:
        super().__init__()
        self.emb = Embedders(config)
        self.linear = nn.Linear(config.hidden_size, 6 * config.hidden_size)

    def forward(self, timestep: Tensor, height: Tensor | None, width: Tensor | None) -> Tensor:
        """-> [U, 7D]: six vectors for every block, and the embedding, which the final layer has its two of."""
        embedded = self.emb(timestep, height, width)
        return torch.cat([self.linear(F.silu(embedded)), embedded], dim=1)


class Attention(nn.Module):
    """Of image tokens to themselves, or to keys and values of the prompt."""

    def __init__(self, config: PixArtConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """x [N, S, D]; keys, values [N, T, D]; bias [N, T] -> [N, S, D]."""
        q, k, v = (heads_of(part, self.num_heads) for part in (self.to_q(x), keys, values))
        return self.to_out[0](attend(q, k, v, bias))


class Block(nn.Module):
    """Self-attention and MLP with adaLN-single, and cross-attention without any norm of its own."""

    def __init__(self, config: PixArtConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.scale_shift_table = nn.Parameter(torch.empty(6, width))
        self.norm1, self.norm2 = (nn.LayerNorm(width, config.norm_eps, elementwise_affine=False) for _ in range(2))
        self.attn1, self.attn2, self.ff = Attention(config), Attention(config), FeedForward(width)

    def forward(self, x: Tensor, six: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """x [N, S, D], six [N, 6, D], keys and values of the prompt [N, T, D], bias [N, T] -> [N, S, D]."""
        rows = with_table(self.scale_shift_table, six)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = rows
        inner = modulated(self.norm1, x, shift_msa, scale_msa)
        x = x + gate_msa * self.attn1(inner, self.attn1.to_k(inner), self.attn1.to_v(inner), None)
        x = x + self.attn2(x, keys, values, bias)
        return x + gate_mlp * self.ff(modulated(self.norm2, x, shift_mlp, scale_mlp))


def grid_position(rows: Tensor, columns: Tensor, width: int, base_size: int, scale: float) -> Tensor:
    """rows [h] and columns [w] float32 of patches -> [h, w, width]: columns first, of each [sin, cos].

    base_size: side of the grid, in patches, whose positions are not interpolated; scale: patches per unit of position.
    """
    exponent = torch.arange(width // 4, dtype=torch.float64, device="cpu") / (width // 4)
    omega, parts = (1.0 / 10000**exponent).float(), []
    for count, values in ((rows.shape[0], rows), (columns.shape[0], columns)):
        angle = (values / (count / base_size) / scale)[:, None] * omega[None]
        parts.append(torch.cat([angle.sin(), angle.cos()], dim=1))
    down, across = parts
    h, w = rows.shape[0], columns.shape[0]
    return torch.cat([across[None].expand(h, -1, -1), down[:, None].expand(-1, w, -1)], dim=2)


class PixArt(nn.Module):
    """diffusers' PixArtTransformer2DModel."""

    def __init__(self, config: PixArtConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.pos_embed = PatchEmbed(config.in_channels, config.hidden_size, config.patch_size)
        self.adaln_single = AdaLayerNormSingle(config)
        self.caption_projection = Mlp(config.caption_channels, width, nn.GELU(approximate="tanh"))
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
            scalars=("height", "width") if config.told_size else (),
            position=config.hidden_size,
        )

    def conditioner(self, timestep: Tensor, height: Tensor | None = None, width: Tensor | None = None) -> Tensor:
        """timestep [U] float32; height, width [U] float32 in pixels, where the model is told them -> [U, 7D]."""
        return self.adaln_single(timestep, height, width)

    def context(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """hidden [P, T, Dh] float32, mask [P, T] int64 -> context [P, T, 2LD], context_bias [P, T].

        Of each block in turn its keys and its values.
        """
        prompt = self.caption_projection(hidden)
        rows = [part(prompt) for block in self.transformer_blocks for part in (block.attn2.to_k, block.attn2.to_v)]
        return context_of(rows, mask)

    def position(self, rows: Tensor, columns: Tensor) -> Tensor:
        """rows [h] and columns [w] float32, 0, 1, 2 ... of the patches -> [h, w, D]: columns first, each [sin, cos]."""
        config = self.config
        return grid_position(rows, columns, config.hidden_size, config.base_size, config.interpolation_scale)

    def trunk(
        self, x: Tensor, modulation: Tensor, context: Tensor, context_bias: Tensor, prompt: Tensor, position: Tensor
    ) -> Tensor:
        """x [N, C, H, W], modulation [N, 7D], context [P, T, 2LD], context_bias [P, T], prompt [N] int64 (rows of
        both), position [h, w, D] -> network output [N, O, H, W]."""
        width = self.config.hidden_size
        tokens = self.pos_embed(x) + position.flatten(0, 1)[None]
        six, bias = six_of(modulation, width), context_bias.index_select(0, prompt)
        for i, block in enumerate(self.transformer_blocks):
            tokens = block(tokens, six, *keys_and_values(context, prompt, i, width), bias)
        tokens = self.proj_out(final(self.norm_out, self.scale_shift_table, tokens, modulation))
        return unpatchified(tokens, self.config.patch_size, *position.shape[:2])
