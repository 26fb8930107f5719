"""FLUX.1 (Black Forest Labs 2024): joint blocks, then blocks of one stream, split where `ditedge` cuts.

`conditioner` has timestep, guidance and all adaptive norms, 28 % of the weights; `position` has cosines and sines of
the image's rows and columns; latents are packed into tokens inside `trunk`. Parameter names are those of diffusers'
`FluxTransformer2DModel`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .interface import Interface
from .parts import (
    SINUSOID,
    FamilyConfig,
    FeedForward,
    Mlp,
    Modulated,
    RmsNorm,
    RotaryAxes,
    attend,
    fed,
    frequencies,
    heads_of,
    modulated,
    packed,
    sinusoid,
    turned,
    vectors_of,
)

EPS = 1e-6  # of every norm
THETA = 10000.0
PACKED = 2  # latent pixels of a token, along a side
THOUSAND = 1000.0  # what the network is told of time and guidance is multiplied by it


@dataclass(frozen=True)
class FluxConfig(FamilyConfig):
    """Hyper-parameters, as in diffusers' config.json, but for latents before they are packed."""

    sample_size: int  # H = W of the latents that it was trained on
    in_channels: int  # C: 16
    out_channels: int  # O
    num_heads: int
    head_size: int
    joint_depth: int  # blocks with two streams
    single_depth: int  # blocks with one
    caption_channels: int  # Dh of T5's rows
    pooled_channels: int  # Dp of CLIP's row
    axes: tuple[int, ...] = (16, 56, 56)  # numbers of a head that turn with each axis
    told_guidance: bool = False
    tokens: int = 512  # T of T5

    @property
    def patch_size(self) -> int:
        return PACKED

    @property
    def depth(self) -> int:
        return self.joint_depth + self.single_depth


class Queries(nn.Module):
    """to_q, to_k and to_v with their norms: of the image, or of the one stream."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.norm_q, self.norm_k = RmsNorm(config.head_size), RmsNorm(config.head_size)

    def own(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N, S, D] -> queries, keys and values [N, heads, S, d], not turned yet."""
        q, k, v = (heads_of(part(x), self.num_heads) for part in (self.to_q, self.to_k, self.to_v))
        return self.norm_q(q), self.norm_k(k), v


class JointAttention(Queries):
    def __init__(self, config: FluxConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.to_add_out = nn.Linear(width, width)
        self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(width, width) for _ in range(3))
        self.norm_added_q, self.norm_added_k = RmsNorm(config.head_size), RmsNorm(config.head_size)

    def forward(self, image: Tensor, text: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """image [N, S, D], text [N, T, D], position [S, d] -> the same of both."""
        parts = (self.add_q_proj, self.add_k_proj, self.add_v_proj)
        text_q, text_k, text_v = (heads_of(part(text), self.num_heads) for part in parts)
        q, k, v = self.own(image)
        q = torch.cat([self.norm_added_q(text_q), turned(q, position)], dim=2)
        k = torch.cat([self.norm_added_k(text_k), turned(k, position)], dim=2)
        found, tokens = attend(q, k, torch.cat([text_v, v], dim=2)), text.shape[1]
        return self.to_out[0](found[:, tokens:]), self.to_add_out(found[:, :tokens])


class JointBlock(nn.Module):
    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm1, self.norm1_context = Modulated(width, 6), Modulated(width, 6)
        self.norm = nn.LayerNorm(width, EPS, elementwise_affine=False)
        self.attn = JointAttention(config)
        self.ff, self.ff_context = FeedForward(width), FeedForward(width)

    def forward(
        self, image: Tensor, text: Tensor, vectors: tuple[Tensor, ...], position: Tensor
    ) -> tuple[Tensor, Tensor]:
        """image [N, S, D], text [N, T, D], twelve vectors [N, 1, D], of the image and of the text, position [S, d]."""
        of_image, of_text = vectors[:6], vectors[6:]
        attended, of_words = self.attn(
            modulated(self.norm, image, *of_image[:2]), modulated(self.norm, text, *of_text[:2]), position
        )
        return (
            fed(self.norm, self.ff, image, attended, of_image),
            fed(self.norm, self.ff_context, text, of_words, of_text),
        )


class SingleBlock(nn.Module):
    """Attention and MLP beside each other, of text and image tokens in one stream."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm = Modulated(width, 3)
        self.plain = nn.LayerNorm(width, EPS, elementwise_affine=False)
        self.attn = Queries(config)
        self.proj_mlp, self.proj_out = nn.Linear(width, 4 * width), nn.Linear(5 * width, width)

    def forward(self, x: Tensor, vectors: tuple[Tensor, ...], position: Tensor, words: int) -> Tensor:
        """x [N, T + S, D], three vectors [N, 1, D], position [S, d]; words: T -> [N, T + S, D]."""
        shift, scale, gate = vectors
        inner = modulated(self.plain, x, shift, scale)
        q, k, v = self.attn.own(inner)
        q, k = (torch.cat([part[:, :, :words], turned(part[:, :, words:], position)], dim=2) for part in (q, k))
        grown = F.gelu(self.proj_mlp(inner), approximate="tanh")
        return x + gate * self.proj_out(torch.cat([attend(q, k, v), grown], dim=2))


class TimeAndText(nn.Module):
    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.timestep_embedder = Mlp(SINUSOID, width, nn.SiLU())
        self.text_embedder = Mlp(config.pooled_channels, width, nn.SiLU())
        if config.told_guidance:
            self.guidance_embedder = Mlp(SINUSOID, width, nn.SiLU())
        self.register_buffer("frequency", frequencies(), persistent=False)

    def forward(self, timestep: Tensor, guidance: Tensor | None) -> Tensor:
        """timestep [U] in 0 .. 1000 -> [U, D]. The pipeline divides it by 1000, and the network multiplies it again."""
        embedded = self.timestep_embedder(sinusoid(timestep / THOUSAND * THOUSAND, self.frequency))
        if guidance is None:
            return embedded
        return embedded + self.guidance_embedder(sinusoid(guidance * THOUSAND, self.frequency))


class Flux(nn.Module):
    """diffusers' FluxTransformer2DModel, and FluxPipeline's packing of latents."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        self.config = config
        width, numbers = config.hidden_size, PACKED**2
        self.time_text_embed = TimeAndText(config)
        self.context_embedder = nn.Linear(config.caption_channels, width)
        self.x_embedder = nn.Linear(numbers * config.in_channels, width)
        self.transformer_blocks = nn.ModuleList(JointBlock(config) for _ in range(config.joint_depth))
        self.single_transformer_blocks = nn.ModuleList(SingleBlock(config) for _ in range(config.single_depth))
        self.norm = nn.LayerNorm(width, EPS, elementwise_affine=False)
        self.norm_out = Modulated(width, 2)
        self.proj_out = nn.Linear(width, numbers * config.out_channels)
        self.rotary = RotaryAxes(config.axes, THETA)

    @property
    def interface(self) -> Interface:
        config = self.config
        return Interface(
            modulation=(12 * config.joint_depth + 3 * config.single_depth + 2) * config.hidden_size,
            context=config.hidden_size,
            multiple=PACKED,
            reads={"pooled": (config.pooled_channels,), "hidden_2": (config.tokens, config.caption_channels)},
            tokens=config.tokens,
            vector=config.hidden_size,
            scalars=("guidance",) if config.told_guidance else (),
            position=config.head_size,
        )

    def conditioner(self, timestep: Tensor, vector: Tensor, guidance: Tensor | None = None) -> Tensor:
        """timestep [U], vector [U, D], guidance [U] float32 -> modulation [U, M]: of each block, then the final two."""
        embedded = F.silu(self.time_text_embed(timestep, guidance) + vector)
        norms = [norm for block in self.transformer_blocks for norm in (block.norm1, block.norm1_context)]
        norms += [block.norm for block in self.single_transformer_blocks]
        return torch.cat([norm.linear(embedded) for norm in (*norms, self.norm_out)], dim=1)

    def context(self, pooled: Tensor, hidden_2: Tensor) -> tuple[Tensor, Tensor]:
        """CLIP's row [P, 768], T5's rows [P, T, 4096] -> context [P, T, D], vector [P, D]."""
        return self.context_embedder(hidden_2), self.time_text_embed.text_embedder(pooled)

    def position(self, rows: Tensor, columns: Tensor) -> Tensor:
        """rows [h] and columns [w] float32, 0, 1, 2 ... of the tokens -> [h, w, d]: cosines, then sines."""
        return self.rotary.grid(rows, columns)

    def trunk(self, x: Tensor, modulation: Tensor, context: Tensor, prompt: Tensor, position: Tensor) -> Tensor:
        """x [N, C, H, W], modulation [N, M], context [P, T, D], prompt [N] int64 (rows of it), position [h, w, d] ->
        network output [N, O, H, W]."""
        config, (h, w), turns = self.config, position.shape[:2], position.flatten(0, 1)
        image, text = self.x_embedder(packed(x, PACKED, h, w)), context.index_select(0, prompt)
        for i, block in enumerate(self.transformer_blocks):
            image, text = block(image, text, vectors_of(modulation, 12 * i, 12, config.hidden_size), turns)
        stream, words, first = torch.cat([text, image], dim=1), text.shape[1], 12 * config.joint_depth
        for i, block in enumerate(self.single_transformer_blocks):
            stream = block(stream, vectors_of(modulation, first + 3 * i, 3, config.hidden_size), turns, words)
        scale, shift = vectors_of(modulation, first + 3 * config.single_depth, 2, config.hidden_size)
        return _unpacked(self.proj_out(modulated(self.norm, stream[:, words:], shift, scale)), h, w)


def _unpacked(tokens: Tensor, h: int, w: int) -> Tensor:
    """[N, h w, 4 O] -> [N, O, 2 h, 2 w]."""
    grid = tokens.unflatten(2, (-1, PACKED, PACKED)).unflatten(1, (h, w))
    return grid.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
