"""FLUX.2 (Black Forest Labs 2025): joint blocks, then blocks of one stream, told by vectors that all of a kind share.

`conditioner` has timestep, guidance and the three modulations; `position` has cosines and sines of the image's rows and
columns. Latents are those of the VAE in squares of 2 x 2, 128 channels, so a pixel of them is a token. Words stand on
an axis of their own, padding among them, which attention sees. Parameter names are those of diffusers'
`Flux2Transformer2DModel`.
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
    Mlp,
    Modulated,
    RmsNorm,
    RotaryAxes,
    attend,
    fed,
    frequencies,
    heads_of,
    modulated,
    sinusoid,
    turned,
    vectors_of,
)

THOUSAND = 1000.0  # what the network is told of time and guidance is multiplied by it
SHARED = 6 + 6 + 3  # vectors: of the image's and of the text's joint blocks, and of those of one stream


@dataclass(frozen=True)
class Flux2Config(FamilyConfig):
    """Hyper-parameters, as in diffusers' config.json."""

    sample_size: int  # H = W of the latents that it was trained on
    in_channels: int  # C: 128
    out_channels: int  # O
    num_heads: int
    head_size: int
    joint_depth: int  # blocks with two streams
    single_depth: int  # blocks with one
    caption_channels: int  # Dh of the text encoder's rows, of several layers beside each other
    mlp_size: int
    axes: tuple[int, ...] = (32, 32, 32, 32)  # numbers of a head that turn with each axis
    theta: float = 2000.0
    eps: float = 1e-6  # of every norm
    told_guidance: bool = False
    tokens: int = 512  # T

    @property
    def patch_size(self) -> int:
        return 1

    @property
    def depth(self) -> int:
        return self.joint_depth + self.single_depth


class FeedForward(nn.Module):
    """SwiGLU, its two inner layers in one."""

    def __init__(self, config: Flux2Config) -> None:
        super().__init__()
        self.linear_in = nn.Linear(config.hidden_size, 2 * config.mlp_size, bias=False)
        self.linear_out = nn.Linear(config.mlp_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_out(gated(self.linear_in(x)))


class JointAttention(nn.Module):
    def __init__(self, config: Flux2Config) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.norm_q, self.norm_k, self.norm_added_q, self.norm_added_k = (
            RmsNorm(config.head_size, config.eps) for _ in range(4)
        )
        self.to_out = nn.ModuleList([nn.Linear(width, width, bias=False)])
        self.to_add_out = nn.Linear(width, width, bias=False)

    def forward(self, image: Tensor, text: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
        """image [N, S, D], text [N, T, D], turns [T + S, d] -> the same of both."""
        q, k, v = (heads_of(part(image), self.num_heads) for part in (self.to_q, self.to_k, self.to_v))
        added = (self.add_q_proj, self.add_k_proj, self.add_v_proj)
        text_q, text_k, text_v = (heads_of(part(text), self.num_heads) for part in added)
        q = turned(torch.cat([self.norm_added_q(text_q), self.norm_q(q)], dim=2), turns)
        k = turned(torch.cat([self.norm_added_k(text_k), self.norm_k(k)], dim=2), turns)
        found, tokens = attend(q, k, torch.cat([text_v, v], dim=2)), text.shape[1]
        return self.to_out[0](found[:, tokens:]), self.to_add_out(found[:, :tokens])


class JointBlock(nn.Module):
    def __init__(self, config: Flux2Config) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, config.eps, elementwise_affine=False)
        self.attn = JointAttention(config)
        self.ff, self.ff_context = FeedForward(config), FeedForward(config)

    def forward(self, image: Tensor, text: Tensor, vectors: tuple[Tensor, ...], turns: Tensor) -> tuple[Tensor, Tensor]:
        """image [N, S, D], text [N, T, D], twelve vectors [N, 1, D], of the image and of the text, turns [T + S, d]."""
        of_image, of_text = vectors[:6], vectors[6:]
        attended, of_words = self.attn(
            modulated(self.norm, image, *of_image[:2]), modulated(self.norm, text, *of_text[:2]), turns
        )
        return (
            fed(self.norm, self.ff, image, attended, of_image),
            fed(self.norm, self.ff_context, text, of_words, of_text),
        )


class ParallelAttention(nn.Module):
    """Attention and MLP beside each other, with one layer before both and one behind."""

    def __init__(self, config: Flux2Config) -> None:
        super().__init__()
        width, mlp = config.hidden_size, config.mlp_size
        self.num_heads, self.parts = config.num_heads, [width, width, width, 2 * mlp]
        self.to_qkv_mlp_proj = nn.Linear(width, 3 * width + 2 * mlp, bias=False)
        self.norm_q, self.norm_k = (RmsNorm(config.head_size, config.eps) for _ in range(2))
        self.to_out = nn.Linear(width + mlp, width, bias=False)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        """x [N, T + S, D], turns [T + S, d] -> [N, T + S, D]."""
        *attention, grown = self.to_qkv_mlp_proj(x).split(self.parts, dim=2)
        q, k, v = (heads_of(part, self.num_heads) for part in attention)
        found = attend(turned(self.norm_q(q), turns), turned(self.norm_k(k), turns), v)
        return self.to_out(torch.cat([found, gated(grown)], dim=2))


class SingleBlock(nn.Module):
    """Of text and image tokens in one stream."""

    def __init__(self, config: Flux2Config) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, config.eps, elementwise_affine=False)
        self.attn = ParallelAttention(config)

    def forward(self, x: Tensor, vectors: tuple[Tensor, ...], turns: Tensor) -> Tensor:
        """x [N, T + S, D], three vectors [N, 1, D], turns [T + S, d] -> [N, T + S, D]."""
        shift, scale, gate = vectors
        return x + gate * self.attn(modulated(self.norm, x, shift, scale), turns)


class TimeAndGuidance(nn.Module):
    def __init__(self, config: Flux2Config) -> None:
        super().__init__()
        self.timestep_embedder = Mlp(SINUSOID, config.hidden_size, nn.SiLU(), bias=False)
        if config.told_guidance:
            self.guidance_embedder = Mlp(SINUSOID, config.hidden_size, nn.SiLU(), bias=False)
        self.register_buffer("frequency", frequencies(), persistent=False)

    def forward(self, timestep: Tensor, guidance: Tensor | None) -> Tensor:
        """timestep [U] in 0 .. 1000 -> [U, D]. The pipeline divides it by 1000, and the network multiplies it again."""
        embedded = self.timestep_embedder(sinusoid(timestep / THOUSAND * THOUSAND, self.frequency))
        if guidance is None:
            return embedded
        return embedded + self.guidance_embedder(sinusoid(guidance * THOUSAND, self.frequency))


class Flux2(nn.Module):
    """diffusers' Flux2Transformer2DModel without pictures to read, and how its pipelines number tokens."""

    def __init__(self, config: Flux2Config) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.time_guidance_embed = TimeAndGuidance(config)
        self.double_stream_modulation_img = Modulated(width, 6, bias=False)
        self.double_stream_modulation_txt = Modulated(width, 6, bias=False)
        self.single_stream_modulation = Modulated(width, 3, bias=False)
        self.x_embedder = nn.Linear(config.in_channels, width, bias=False)
        self.context_embedder = nn.Linear(config.caption_channels, width, bias=False)
        self.transformer_blocks = nn.ModuleList(JointBlock(config) for _ in range(config.joint_depth))
        self.single_transformer_blocks = nn.ModuleList(SingleBlock(config) for _ in range(config.single_depth))
        self.norm = nn.LayerNorm(width, config.eps, elementwise_affine=False)
        self.norm_out = Modulated(width, 2, bias=False)
        self.proj_out = nn.Linear(width, config.out_channels, bias=False)
        self.rotary = RotaryAxes(config.axes, config.theta)
        self.register_buffer("words", _words(config), persistent=False)

    @property
    def interface(self) -> Interface:
        config = self.config
        return Interface(
            modulation=(SHARED + 2) * config.hidden_size,
            context=config.hidden_size,
            multiple=1,
            reads={"hidden": (config.tokens, config.caption_channels)},
            tokens=config.tokens,
            scalars=("guidance",) if config.told_guidance else (),
            position=config.head_size,
        )

    def conditioner(self, timestep: Tensor, guidance: Tensor | None = None) -> Tensor:
        """timestep [U], guidance [U] float32 -> modulation [U, 17 D]: of all blocks, then the final two vectors."""
        embedded = F.silu(self.time_guidance_embed(timestep, guidance))
        shared = (self.double_stream_modulation_img, self.double_stream_modulation_txt, self.single_stream_modulation)
        return torch.cat([part.linear(embedded) for part in (*shared, self.norm_out)], dim=1)

    def context(self, hidden: Tensor) -> Tensor:
        """hidden [P, T, Dh] -> context [P, T, D]."""
        return self.context_embedder(hidden)

    def position(self, rows: Tensor, columns: Tensor) -> Tensor:
        """rows [h] and columns [w] float32, 0, 1, 2 ... of the tokens -> [h, w, d]: cosines, then sines."""
        return self.rotary.grid(rows, columns)

    def trunk(self, x: Tensor, modulation: Tensor, context: Tensor, prompt: Tensor, position: Tensor) -> Tensor:
        """x [N, C, h, w], modulation [N, 17 D], context [P, T, D], prompt [N] int64 (rows of it), position [h, w, d] ->
        network output [N, O, h, w]."""
        width, (h, w) = self.config.hidden_size, position.shape[:2]
        turns = torch.cat([self.words, position.flatten(0, 1)], dim=0)
        image, text = self.x_embedder(x.flatten(2).transpose(1, 2)), context.index_select(0, prompt)
        joint, single = vectors_of(modulation, 0, 12, width), vectors_of(modulation, 12, 3, width)
        for block in self.transformer_blocks:
            image, text = block(image, text, joint, turns)
        stream = torch.cat([text, image], dim=1)
        for block in self.single_transformer_blocks:
            stream = block(stream, single, turns)
        scale, shift = vectors_of(modulation, SHARED, 2, width)
        found = self.proj_out(modulated(self.norm, stream[:, text.shape[1] :], shift, scale))
        return found.transpose(1, 2).unflatten(2, (h, w))


def gated(x: Tensor) -> Tensor:
    """[..., 2 n] -> [..., n]."""
    first, second = x.chunk(2, dim=-1)
    return F.silu(first) * second


def _words(config: Flux2Config) -> Tensor:
    """How words are turned, by their number on the last axis: [T, d], made on the CPU as all constants of a graph."""
    last = config.axes[-1]
    exponent = torch.arange(0, last, 2, dtype=torch.float64, device="cpu") / last
    angle = torch.zeros(config.tokens, config.head_size // 2, dtype=torch.float64, device="cpu")
    angle[:, -(last // 2) :] = torch.arange(config.tokens, device="cpu")[:, None] / config.theta**exponent
    return torch.cat([angle.cos(), angle.sin()], dim=1).float()
