"""HunyuanDiT (Li et al. 2024, arXiv:2405.08748), split where `ditedge` cuts.

`conditioner` has the timestep, what mT5's rows pool to, up to version 1.1 the picture's size, and every block's shift;
`context` has the pooling, and keys and values of every block's cross-attention; `position` has cosines and sines.
What is behind a prompt's words is learnt tokens, which attention sees; the pooling reads mT5's own rows there.
Parameter names are those of diffusers' `HunyuanDiT2DModel`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adaln_single import keys_and_values
from .interface import Interface
from .parts import (
    SINUSOID,
    FamilyConfig,
    FeedForward,
    Mlp,
    Modulated,
    PatchEmbed,
    attend,
    frequencies,
    heads_of,
    modulated,
    sinusoid,
    turned,
    unpatchified,
    vectors_of,
)

EPS = 1e-6  # of every norm
THETA = 10000.0
GRID = 64  # side of the latents whose rows are counted one by one: pictures of 512
POOL_HEADS = 8
ORIGINAL, CROP = 1024.0, 0.0  # the size and corner that the pipeline says a picture of training had
SIZES = 6  # numbers that say sizes


@dataclass(frozen=True)
class HunyuanDiTConfig(FamilyConfig):
    """Hyper-parameters, as in diffusers' config.json."""

    sample_size: int  # H = W of the latents that it was trained on
    patch_size: int
    in_channels: int  # C
    out_channels: int  # O: 2 C
    num_heads: int
    head_size: int
    depth: int  # L
    mlp_size: int
    caption_channels: int  # Dh of BERT's rows
    t5_channels: int  # Dh of mT5's
    pooled_channels: int
    tokens: int = 77  # of BERT
    t5_tokens: int = 256
    told_size: bool = False  # up to version 1.1

    @property
    def all_tokens(self) -> int:
        """T of the context."""
        return self.tokens + self.t5_tokens

    @property
    def middle(self) -> int:
        """The block after those whose outputs are kept, for those behind it."""
        return self.depth // 2


class Projection(nn.Module):
    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class Pooler(nn.Module):
    """Attention of the mean of all rows to them and itself."""

    def __init__(self, config: HunyuanDiTConfig) -> None:
        super().__init__()
        width = config.t5_channels
        self.positional_embedding = nn.Parameter(torch.empty(config.t5_tokens + 1, width))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, config.pooled_channels)

    def forward(self, rows: Tensor) -> Tensor:
        """rows [P, T, Dh] -> [P, pooled]."""
        rows = torch.cat([rows.mean(dim=1, keepdim=True), rows], dim=1) + self.positional_embedding
        q, k, v = self.q_proj(rows[:, :1]), self.k_proj(rows), self.v_proj(rows)
        return self.c_proj(attend(*(heads_of(part, POOL_HEADS) for part in (q, k, v)))[:, 0])


class Embedders(nn.Module):
    def __init__(self, config: HunyuanDiTConfig) -> None:
        super().__init__()
        width, told = config.hidden_size, config.told_size
        self.timestep_embedder, self.pooler = Mlp(SINUSOID, width, nn.SiLU()), Pooler(config)
        if told:
            self.style_embedder = nn.Embedding(1, width)
        beside = SIZES * SINUSOID + width if told else 0
        self.extra_embedder = Projection(config.pooled_channels + beside, 4 * width, width)
        self.register_buffer("frequency", frequencies(), persistent=False)

    def forward(self, timestep: Tensor, pooled: Tensor, height: Tensor | None, width: Tensor | None) -> Tensor:
        """timestep [U], pooled [U, pooled], height and width [U] in pixels, where the model is told them -> [U, D]."""
        if height is not None and width is not None:
            original, crop = torch.full_like(height, ORIGINAL), torch.full_like(height, CROP)
            sizes = [sinusoid(value, self.frequency) for value in (original, original, height, width, crop, crop)]
            style = self.style_embedder.weight.expand(timestep.shape[0], -1)
            pooled = torch.cat([pooled, *sizes, style], dim=1)
        return self.timestep_embedder(sinusoid(timestep, self.frequency)) + self.extra_embedder(pooled)


class Attention(nn.Module):
    """Of image tokens to themselves, or to keys and values of the prompt. inputs: numbers of what keys are made of."""

    def __init__(self, config: HunyuanDiTConfig, inputs: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads, self.to_q = config.num_heads, nn.Linear(width, width)
        self.to_k, self.to_v = nn.Linear(inputs, width), nn.Linear(inputs, width)
        self.norm_q, self.norm_k = nn.LayerNorm(config.head_size, EPS), nn.LayerNorm(config.head_size, EPS)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def keys(self, rows: Tensor) -> Tensor:
        """[N, T, inputs] -> [N, heads, T, d]."""
        return self.norm_k(heads_of(self.to_k(rows), self.num_heads))

    def forward(self, x: Tensor, k: Tensor, v: Tensor, position: Tensor) -> Tensor:
        """x [N, S, D], k [N, heads, T, d], v [N, T, D], position [S, d] -> [N, S, D]."""
        q = turned(self.norm_q(heads_of(self.to_q(x), self.num_heads)), position)
        return self.to_out[0](attend(q, k, heads_of(v, self.num_heads)))


class ShiftedNorm(Modulated):
    def __init__(self, width: int) -> None:
        super().__init__(width, 1)
        self.norm = nn.LayerNorm(width, EPS)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        return self.norm(x) + shift


class Block(nn.Module):
    """skip: it reads what an earlier block made, too."""

    def __init__(self, config: HunyuanDiTConfig, skip: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm1 = ShiftedNorm(width)
        self.norm2, self.norm3 = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.attn1, self.attn2 = Attention(config, width), Attention(config, config.caption_channels)
        self.ff = FeedForward(width, config.mlp_size)
        if skip:
            self.skip_norm, self.skip_linear = nn.LayerNorm(2 * width, EPS), nn.Linear(2 * width, width)

    def joined(self, x: Tensor, skip: Tensor) -> Tensor:
        """[N, S, D] both -> the same."""
        return self.skip_linear(self.skip_norm(torch.cat([x, skip], dim=2)))

    def forward(self, x: Tensor, shift: Tensor, keys: Tensor, values: Tensor, position: Tensor) -> Tensor:
        """x [N, S, D], shift [N, 1, D], keys and values of the prompt [N, T, D], position [S, d] -> [N, S, D]."""
        inner = self.norm1(x, shift)
        x = x + self.attn1(inner, turned(self.attn1.keys(inner), position), self.attn1.to_v(inner), position)
        x = x + self.attn2(self.norm2(x), heads_of(keys, self.attn2.num_heads), values, position)
        return x + self.ff(self.norm3(x))


class HunyuanDiT(nn.Module):
    """diffusers' HunyuanDiT2DModel, and how HunyuanDiTPipeline numbers places."""

    def __init__(self, config: HunyuanDiTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.pos_embed = PatchEmbed(config.in_channels, width, config.patch_size)
        self.time_extra_emb = Embedders(config)
        self.text_embedder = Projection(config.t5_channels, 4 * config.t5_channels, config.caption_channels)
        self.text_embedding_padding = nn.Parameter(torch.empty(config.all_tokens, config.caption_channels))
        self.blocks = nn.ModuleList(Block(config, i > config.middle) for i in range(config.depth))
        self.norm = nn.LayerNorm(width, EPS, elementwise_affine=False)
        self.norm_out = Modulated(width, 2)
        self.proj_out = nn.Linear(width, config.patch_size**2 * config.out_channels)
        exponent = torch.arange(0, config.head_size // 2, 2, dtype=torch.float64, device="cpu")
        omega = (1.0 / THETA ** (exponent / (config.head_size // 2))).float()
        self.register_buffer("omega", omega, persistent=False)

    @property
    def interface(self) -> Interface:
        config = self.config
        return Interface(
            modulation=(config.depth + 2) * config.hidden_size,
            context=2 * config.depth * config.hidden_size,
            multiple=config.patch_size,
            reads={
                "hidden": (config.tokens, config.caption_channels),
                "mask": (config.tokens,),
                "hidden_2": (config.t5_tokens, config.t5_channels),
                "pooled_2": (1,),
            },
            tokens=config.all_tokens,
            vector=config.pooled_channels,
            scalars=("height", "width") if config.told_size else (),
            position=config.head_size,
        )

    def conditioner(
        self, timestep: Tensor, vector: Tensor, height: Tensor | None = None, width: Tensor | None = None
    ) -> Tensor:
        """timestep [U], vector [U, pooled], height, width [U] in pixels, where the model is told them -> [U, M]: a
        shift of each block, then the final two vectors."""
        embedded = F.silu(self.time_extra_emb(timestep, vector, height, width))
        norms = [*(block.norm1 for block in self.blocks), self.norm_out]
        return torch.cat([norm.linear(embedded) for norm in norms], dim=1)

    def context(self, hidden: Tensor, mask: Tensor, hidden_2: Tensor, pooled_2: Tensor) -> tuple[Tensor, Tensor]:
        """BERT's rows [P, 77, Dh] and mask [P, 77] int64, mT5's rows [P, 256, Dh] and how many of them are words
        [P, 1] -> context [P, T, 2LD], of each block in turn its keys and its values, and vector [P, pooled]."""
        number = torch.arange(self.config.t5_tokens, device=hidden.device)[None]
        known = torch.cat([mask > 0, number < pooled_2], dim=1)[..., None]
        rows = torch.cat([hidden, self.text_embedder(hidden_2)], dim=1)
        rows = torch.where(known, rows, self.text_embedding_padding)
        parts: list[Callable[[Tensor], Tensor]] = []
        for block in self.blocks:
            parts += [block.attn2.keys, block.attn2.to_v]
        made = [part(rows) for part in parts]
        flat = [own.transpose(1, 2).flatten(2) if own.ndim == 4 else own for own in made]
        return torch.cat(flat, dim=2), self.time_extra_emb.pooler(hidden_2)

    def position(self, rows: Tensor, columns: Tensor) -> Tensor:
        """rows [h] and columns [w] float32, 0, 1, 2 ... of the tokens -> [h, w, d]: cosines, then sines, of columns
        first. The longer side of a picture is as long as that of a square of 512 pixels, the other is in its middle."""
        side, h, w = float(GRID // self.config.patch_size), rows[-1] + 1, columns[-1] + 1
        sides = [torch.where(own >= other, side, torch.round(side * own / other)) for own, other in ((h, w), (w, h))]
        down, across = (
            _places(*own)[:, None] * self.omega for own in ((rows, sides[0], side), (columns, sides[1], side))
        )
        angle = torch.cat(
            [across[None].expand(rows.shape[0], -1, -1), down[:, None].expand(-1, columns.shape[0], -1)], dim=2
        )
        return torch.cat([angle.cos(), angle.sin()], dim=2)

    def trunk(self, x: Tensor, modulation: Tensor, context: Tensor, prompt: Tensor, position: Tensor) -> Tensor:
        """x [N, C, H, W], modulation [N, M], context [P, T, 2LD], prompt [N] int64 (rows of it), position [h, w, d] ->
        network output [N, O, H, W]."""
        config, turns = self.config, position.flatten(0, 1)
        tokens = self.pos_embed(x)
        kept: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            tokens = block.joined(tokens, kept.pop()) if i > config.middle else tokens
            (shift,) = vectors_of(modulation, i, 1, config.hidden_size)
            tokens = block(tokens, shift, *keys_and_values(context, prompt, i, config.hidden_size), turns)
            if i < config.middle - 1:
                kept.append(tokens)
        scale, shift = vectors_of(modulation, config.depth, 2, config.hidden_size)
        tokens = self.proj_out(modulated(self.norm, tokens, shift, scale))
        return unpatchified(tokens, config.patch_size, *position.shape[:2])


def _places(numbers: Tensor, length: Tensor, side: float) -> Tensor:
    """numbers [n], 0, 1, 2 ... -> where they stand on `length` in the middle of `side`: from its begin to one n-th
    before its end."""
    count, begin = numbers[-1] + 1, torch.round((side - length) / 2)
    last = (begin + length) * (count - 1) / count
    return begin + numbers * (last - begin) / (count - 1).clamp(min=1)
