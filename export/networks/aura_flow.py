"""AuraFlow (fal 2024): joint blocks, then blocks of one stream, split where `ditedge` cuts.

`conditioner` has the timestep and all adaptive norms, a third of the weights; `context` puts register tokens before the
prompt's. Padding has rows of zeros and no mask, as in the pipeline. Parameter names are those of diffusers'
`AuraFlowTransformer2DModel`.
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
    attend,
    frequencies,
    heads_of,
    modulated,
    packed,
    unpatchified,
    vectors_of,
)

EPS = 1e-5  # of every norm, those of queries and keys among them
REGISTERS = 8
WIDE = 256  # widths of MLPs are multiples of it
THOUSAND = 1000.0


@dataclass(frozen=True)
class AuraFlowConfig(FamilyConfig):
    """Hyper-parameters, as in diffusers' config.json."""

    sample_size: int  # H = W of the latents that it was trained on
    patch_size: int
    in_channels: int  # C
    out_channels: int  # O
    num_heads: int
    head_size: int
    joint_depth: int  # blocks with two streams
    single_depth: int  # blocks with one
    caption_channels: int  # Dh
    position_size: int  # side of the table of positions, in patches
    tokens: int = 256  # T of a prompt

    @property
    def depth(self) -> int:
        return self.joint_depth + self.single_depth


class Modulated(nn.Module):
    def __init__(self, width: int, vectors: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, vectors * width, bias=False)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        inner = -(-int(2 * 4 * width / 3) // WIDE) * WIDE
        self.linear_1, self.linear_2 = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.out_projection = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_projection(F.silu(self.linear_1(x)) * self.linear_2(x))


class Attention(nn.Module):
    """Of one stream, or where `joint` of image tokens with text tokens."""

    def __init__(self, config: AuraFlowConfig, joint: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width, bias=False)])
        self.norm = nn.LayerNorm(config.head_size, EPS, elementwise_affine=False)
        if joint:
            self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(width, width, bias=False) for _ in range(3))
            self.to_add_out = nn.Linear(width, width, bias=False)

    def _heads(self, x: Tensor, q: nn.Module, k: nn.Module, v: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values = (heads_of(part(x), self.num_heads) for part in (q, k, v))
        return self.norm(queries), self.norm(keys), values

    def alone(self, x: Tensor) -> Tensor:
        """[N, S, D] -> [N, S, D]."""
        return self.to_out[0](attend(*self._heads(x, self.to_q, self.to_k, self.to_v)))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """image [N, S, D], text [N, T, D] -> the same of both."""
        of_text = self._heads(text, self.add_q_proj, self.add_k_proj, self.add_v_proj)
        of_image = self._heads(image, self.to_q, self.to_k, self.to_v)
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(of_text, of_image, strict=True))
        found, tokens = attend(q, k, v), text.shape[1]
        return self.to_out[0](found[:, tokens:]), self.to_add_out(found[:, :tokens])


class JointBlock(nn.Module):
    def __init__(self, config: AuraFlowConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm1, self.norm1_context = Modulated(width, 6), Modulated(width, 6)
        self.norm = nn.LayerNorm(width, EPS, elementwise_affine=False)
        self.attn = Attention(config, joint=True)
        self.ff, self.ff_context = FeedForward(width), FeedForward(width)

    def forward(self, image: Tensor, text: Tensor, vectors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """image [N, S, D], text [N, T, D], twelve vectors [N, 1, D], of the image and of the text -> both."""
        of_image, of_text = vectors[:6], vectors[6:]
        attended = self.attn(modulated(self.norm, image, *of_image[:2]), modulated(self.norm, text, *of_text[:2]))
        return (
            _fed(self.norm, self.ff, image, attended[0], of_image),
            _fed(self.norm, self.ff_context, text, attended[1], of_text),
        )


class SingleBlock(nn.Module):
    def __init__(self, config: AuraFlowConfig) -> None:
        super().__init__()
        self.norm1 = Modulated(config.hidden_size, 6)
        self.norm = nn.LayerNorm(config.hidden_size, EPS, elementwise_affine=False)
        self.attn = Attention(config, joint=False)
        self.ff = FeedForward(config.hidden_size)

    def forward(self, x: Tensor, vectors: tuple[Tensor, ...]) -> Tensor:
        return _fed(self.norm, self.ff, x, self.attn.alone(modulated(self.norm, x, *vectors[:2])), vectors)


def _fed(norm: nn.Module, feed: nn.Module, x: Tensor, attended: Tensor, vectors: tuple[Tensor, ...]) -> Tensor:
    """The MLP sees attention's sum, which goes no other way: the residual is what it was before both."""
    _, _, gate, shift_mlp, scale_mlp, gate_mlp = vectors
    return x + gate_mlp * feed(modulated(norm, x + gate * attended, shift_mlp, scale_mlp))


class PatchEmbed(nn.Module):
    def __init__(self, config: AuraFlowConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(config.patch_size**2 * config.in_channels, config.hidden_size)
        self.pos_embed = nn.Parameter(torch.empty(1, config.position_size**2, config.hidden_size))


class AuraFlow(nn.Module):
    """diffusers' AuraFlowTransformer2DModel."""

    def __init__(self, config: AuraFlowConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.pos_embed = PatchEmbed(config)
        self.time_step_proj = Mlp(SINUSOID, width, nn.SiLU())
        self.context_embedder = nn.Linear(config.caption_channels, width, bias=False)
        self.register_tokens = nn.Parameter(torch.empty(1, REGISTERS, width))
        self.joint_transformer_blocks = nn.ModuleList(JointBlock(config) for _ in range(config.joint_depth))
        self.single_transformer_blocks = nn.ModuleList(SingleBlock(config) for _ in range(config.single_depth))
        self.norm_out = Modulated(width, 2)
        self.proj_out = nn.Linear(width, config.patch_size**2 * config.out_channels, bias=False)
        self.register_buffer("frequency", frequencies(), persistent=False)

    @property
    def interface(self) -> Interface:
        config = self.config
        return Interface(
            modulation=(12 * config.joint_depth + 6 * config.single_depth + 2) * config.hidden_size,
            context=config.hidden_size,
            multiple=config.patch_size,
            reads={"hidden": (config.tokens, config.caption_channels)},
            tokens=REGISTERS + config.tokens,
            position=config.hidden_size,
        )

    def conditioner(self, timestep: Tensor) -> Tensor:
        """timestep [U] in 0 .. 1000 -> modulation [U, M]: of each block, then the final two."""
        angle = THOUSAND * ((timestep / THOUSAND)[:, None] * self.frequency[None])
        embedded = F.silu(self.time_step_proj(torch.cat([angle.cos(), angle.sin()], dim=1)))
        norms = [norm for block in self.joint_transformer_blocks for norm in (block.norm1, block.norm1_context)]
        norms += [block.norm1 for block in self.single_transformer_blocks]
        return torch.cat([norm.linear(embedded) for norm in (*norms, self.norm_out)], dim=1)

    def context(self, hidden: Tensor) -> Tensor:
        """hidden [P, T, Dh], zeros where nothing is -> context [P, 8 + T, D]."""
        registers = self.register_tokens.expand(hidden.shape[0], -1, -1)
        return torch.cat([registers, self.context_embedder(hidden)], dim=1)

    def position(self, rows: Tensor, columns: Tensor) -> Tensor:
        """rows [h] and columns [w] float32, 0, 1, 2 ... of the patches -> [h, w, D]: the middle of the table."""
        side = self.config.position_size
        down, across = (places.long() + (side // 2 - places.shape[0] // 2) for places in (rows, columns))
        return self.pos_embed.pos_embed[0].unflatten(0, (side, side)).index_select(0, down).index_select(1, across)

    def trunk(self, x: Tensor, modulation: Tensor, context: Tensor, prompt: Tensor, position: Tensor) -> Tensor:
        """x [N, C, H, W], modulation [N, M], context [P, 8 + T, D], prompt [N] int64, position [h, w, D] ->
        network output [N, O, H, W]."""
        config, (h, w) = self.config, position.shape[:2]
        width, patch = config.hidden_size, config.patch_size
        patches = packed(x, patch, h, w)
        image, text = self.pos_embed.proj(patches) + position.flatten(0, 1)[None], context.index_select(0, prompt)
        for i, block in enumerate(self.joint_transformer_blocks):
            image, text = block(image, text, vectors_of(modulation, 12 * i, 12, width))
        stream, words, first = torch.cat([text, image], dim=1), text.shape[1], 12 * config.joint_depth
        for i, block in enumerate(self.single_transformer_blocks):
            stream = block(stream, vectors_of(modulation, first + 6 * i, 6, width))
        scale, shift = vectors_of(modulation, first + 6 * config.single_depth, 2, width)
        tokens = self.proj_out(stream[:, words:] * (1 + scale) + shift)
        return unpatchified(tokens, patch, h, w)
