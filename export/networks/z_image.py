"""Z-Image (Tongyi-MAI 2025, arXiv:2511.22699): blocks of one stream of image and text, split where `ditedge` cuts.

`conditioner` has the timestep and all adaptive scales and gates; `context` has the caption's embedder and its refiner,
which are told no time, and where each token stands. Both streams are filled up to multiples of 32 with learnt tokens
that attention sees. Those of a picture are all alike and stay so: one token stands for them, and weighs as much as
they do. Parameter names are those of diffusers' `ZImageTransformer2DModel`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from .adaln_single import MASKED
from .interface import Interface
from .parts import (
    SINUSOID,
    FamilyConfig,
    RmsNorm,
    RotaryAxes,
    SwiGlu,
    attend,
    frequencies,
    heads_of,
    patchified,
    sinusoid,
    turned,
    unpatchified,
    vectors_of,
)

PATCH, KEY = 2, "2-1"  # side of an image token in a latent; diffusers' name of layers of this patch and one frame
QK_EPS, FINAL_EPS = 1e-5, 1e-6
TIME_WIDTH, TIME_HIDDEN = 256, 1024  # at most; of the timestep's embedding, and of the MLP that makes it
FILLED = 32  # both streams have a multiple of so many tokens
THOUSAND = 1000.0


@dataclass(frozen=True)
class ZImageConfig(FamilyConfig):
    """Hyper-parameters, as in diffusers' config.json."""

    sample_size: int  # H = W of the latents that it was trained on
    in_channels: int  # C
    out_channels: int  # O
    num_heads: int
    head_size: int
    depth: int  # L
    refiner_depth: int  # blocks of the image alone, and of the text alone
    caption_channels: int  # Dh
    axes: tuple[int, ...] = (32, 48, 48)  # numbers of a head that turn with each axis
    norm_eps: float = 1e-5
    theta: float = 256.0
    time_scale: float = 1000.0
    tokens: int = 512  # T of a prompt, a multiple of 32

    @property
    def patch_size(self) -> int:
        return PATCH

    @property
    def kv_heads(self) -> int:
        return self.num_heads

    @property
    def mlp_size(self) -> int:
        return int(self.hidden_size / 3 * 8)

    @property
    def time_size(self) -> int:
        return min(self.hidden_size, TIME_WIDTH)


class BlockConfig(Protocol):
    """What a block is told: Z-Image's and Lumina 2's."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_size(self) -> int: ...
    @property
    def mlp_size(self) -> int: ...
    @property
    def time_size(self) -> int: ...
    @property
    def norm_eps(self) -> float: ...


class Attention(nn.Module):
    """Of one stream, turned; where there are fewer heads of keys and values, each serves several of queries."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        width, keys = config.hidden_size, config.kv_heads * config.head_size
        self.num_heads, self.kv_heads = config.num_heads, config.kv_heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k, self.to_v = (nn.Linear(width, keys, bias=False) for _ in range(2))
        self.norm_q, self.norm_k = (RmsNorm(config.head_size, QK_EPS) for _ in range(2))
        self.to_out = nn.ModuleList([nn.Linear(width, width, bias=False)])

    def forward(self, x: Tensor, turns: Tensor, bias: Tensor) -> Tensor:
        """x [N, S, D], turns [N, 1, S, d], bias [N, S] -> [N, S, D]."""
        q = turned(self.norm_q(heads_of(self.to_q(x), self.num_heads)), turns)
        k, v = (heads_of(part(x), self.kv_heads) for part in (self.to_k, self.to_v))
        k, v = (self._shared(part) for part in (turned(self.norm_k(k), turns), v))
        return self.to_out[0](attend(q, k, v, bias))

    def _shared(self, x: Tensor) -> Tensor:
        """[N, heads of keys, S, d] -> [N, heads, S, d]."""
        times = self.num_heads // self.kv_heads
        return x if times == 1 else x[:, :, None].expand(-1, -1, times, -1, -1).flatten(1, 2)


class Block(nn.Module):
    """Norms before and after attention and MLP. told: of the time, by four vectors."""

    def __init__(self, config: BlockConfig, told: bool = True) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.norm_eps
        self.attention, self.feed_forward = Attention(config), SwiGlu(width, config.mlp_size)
        self.attention_norm1, self.attention_norm2 = RmsNorm(width, eps), RmsNorm(width, eps)
        self.ffn_norm1, self.ffn_norm2 = RmsNorm(width, eps), RmsNorm(width, eps)
        if told:
            self.adaLN_modulation = nn.ModuleList([nn.Linear(config.time_size, 4 * width)])

    def vectors(self, embedded: Tensor) -> Tensor:
        """embedded [U, time] -> [U, 4 D]: scale and gate of attention, scale and gate of the MLP."""
        scale, gate, scale_mlp, gate_mlp = self.adaLN_modulation[0](embedded).chunk(4, dim=1)
        return torch.cat([1 + scale, gate.tanh(), 1 + scale_mlp, gate_mlp.tanh()], dim=1)

    def plain(self, x: Tensor, turns: Tensor, bias: Tensor) -> Tensor:
        """`forward` of a block that is told nothing."""
        x = x + self.attention_norm2(self.attention(self.attention_norm1(x), turns, bias))
        return x + self.ffn_norm2(self.feed_forward(self.ffn_norm1(x)))

    def forward(self, x: Tensor, turns: Tensor, bias: Tensor, vectors: tuple[Tensor, ...]) -> Tensor:
        """x [N, S, D], turns [N, 1, S, d], bias [N, S], four vectors [N, 1, D] -> [N, S, D]."""
        scale, gate, scale_mlp, gate_mlp = vectors
        x = x + gate * self.attention_norm2(self.attention(self.attention_norm1(x) * scale, turns, bias))
        return x + gate_mlp * self.ffn_norm2(self.feed_forward(self.ffn_norm1(x) * scale_mlp))


class TimeEmbedder(nn.Module):
    def __init__(self, config: ZImageConfig) -> None:
        super().__init__()
        first, second = nn.Linear(SINUSOID, TIME_HIDDEN), nn.Linear(TIME_HIDDEN, config.time_size)
        self.mlp = nn.Sequential(first, nn.SiLU(), second)
        self.register_buffer("frequency", frequencies(), persistent=False)

    def forward(self, time: Tensor) -> Tensor:
        return self.mlp(sinusoid(time, self.frequency))


class FinalLayer(nn.Module):
    def __init__(self, config: ZImageConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm_final = nn.LayerNorm(width, FINAL_EPS, elementwise_affine=False)
        self.linear = nn.Linear(width, PATCH**2 * config.out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.time_size, width))

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.linear(self.norm_final(x) * scale)


class ZImage(nn.Module):
    """diffusers' ZImageTransformer2DModel without SigLIP, in ZImagePipeline: time and sign are turned around there."""

    def __init__(self, config: ZImageConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.all_x_embedder = nn.ModuleDict({KEY: nn.Linear(PATCH**2 * config.in_channels, width)})
        self.all_final_layer = nn.ModuleDict({KEY: FinalLayer(config)})
        self.noise_refiner = nn.ModuleList(Block(config) for _ in range(config.refiner_depth))
        self.context_refiner = nn.ModuleList(Block(config, told=False) for _ in range(config.refiner_depth))
        self.t_embedder = TimeEmbedder(config)
        caption = config.caption_channels
        self.cap_embedder = nn.Sequential(RmsNorm(caption, config.norm_eps), nn.Linear(caption, width))
        self.x_pad_token, self.cap_pad_token = (nn.Parameter(torch.empty(1, width)) for _ in range(2))
        self.layers = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.rotary = RotaryAxes(config.axes, config.theta)

    @property
    def interface(self) -> Interface:
        config = self.config
        return Interface(
            modulation=(4 * (config.refiner_depth + config.depth) + 1) * config.hidden_size,
            context=config.hidden_size + config.head_size,
            multiple=PATCH,
            reads={"hidden": (config.tokens, config.caption_channels), "mask": (config.tokens,)},
            tokens=1 + config.tokens,
            biased=True,
            position=config.head_size + 1,
        )

    def conditioner(self, timestep: Tensor) -> Tensor:
        """timestep [U] in 1000 .. 0 -> modulation [U, M]: of each block, then the final scale."""
        embedded = self.t_embedder((THOUSAND - timestep) / THOUSAND * self.config.time_scale)
        rows = [block.vectors(embedded) for block in (*self.noise_refiner, *self.layers)]
        return torch.cat([*rows, 1 + self.all_final_layer[KEY].adaLN_modulation(embedded)], dim=1)

    def context(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """hidden [P, T, Dh], mask [P, T] int64 -> context [P, 1 + T, D + d], context_bias [P, 1 + T].

        The picture's token that fills up, then those of the prompt; of each its row and how it is turned. The picture
        begins behind the prompt that is filled up, at place 0, so words stand before it; what fills the picture up
        stands before the first word.
        """
        count = filled(mask.float().sum(dim=1, keepdim=True))
        place = torch.arange(-1, self.config.tokens, dtype=torch.float32, device=hidden.device)[None]
        turns = self.rotary.line(place - count)
        bias = (place >= count).float() * MASKED
        rows = torch.where(mask[..., None] > 0, self.cap_embedder(hidden), self.cap_pad_token)
        for block in self.context_refiner:
            rows = block.plain(rows, turns[:, None, 1:], bias[:, 1:])
        fill = self.x_pad_token.expand(hidden.shape[0], 1, -1)
        return torch.cat([torch.cat([fill, rows], dim=1), turns], dim=2), bias

    def position(self, rows: Tensor, columns: Tensor) -> Tensor:
        """rows [h] and columns [w] float32, 0, 1, 2 ... of the tokens -> [h, w, d + 1]: cosines, sines, and the
        logarithm of how many tokens fill the picture up."""
        turns, count = self.rotary.grid(rows, columns), (rows[-1:] + 1) * (columns[-1:] + 1)
        missing = filled(count) - count
        weight = torch.where(missing > 0, missing.clamp(min=1).log(), MASKED)
        return torch.cat([turns, weight.expand(turns.shape[0], turns.shape[1], 1)], dim=2)

    def trunk(
        self, x: Tensor, modulation: Tensor, context: Tensor, context_bias: Tensor, prompt: Tensor, position: Tensor
    ) -> Tensor:
        """x [N, C, H, W], modulation [N, M], context [P, 1 + T, D + d], context_bias [P, 1 + T], prompt [N] int64 (rows
        of both), position [h, w, d + 1] -> network output [N, O, H, W]."""
        (h, w), width = position.shape[:2], self.config.hidden_size
        told, bias = context.index_select(0, prompt), context_bias.index_select(0, prompt)
        image = self.all_x_embedder[KEY](patchified(x, PATCH, h, w))
        places = position[..., :-1].flatten(0, 1)[None].expand(told.shape[0], -1, -1)
        turns = torch.cat([places, told[..., width:]], dim=1)[:, None]
        own = torch.cat([image.new_zeros(image.shape[:2]), bias[:, :1] + position[0, 0, -1]], dim=1)
        stream = torch.cat([image, told[:, :1, :width]], dim=1)
        for i, block in enumerate(self.noise_refiner):
            vectors = vectors_of(modulation, 4 * i, 4, width)
            stream = block(stream, turns[:, :, : stream.shape[1]], own, vectors)
        stream, bias = torch.cat([stream, told[:, 1:, :width]], dim=1), torch.cat([own, bias[:, 1:]], dim=1)
        for i, block in enumerate(self.layers, start=self.config.refiner_depth):
            stream = block(stream, turns, bias, vectors_of(modulation, 4 * i, 4, width))
        (scale,) = vectors_of(modulation, 4 * (self.config.refiner_depth + self.config.depth), 1, width)
        return -unpatchified(self.all_final_layer[KEY](stream[:, : image.shape[1]], scale), PATCH, h, w)


def filled(count: Tensor) -> Tensor:
    """The next multiple of 32."""
    return torch.ceil(count / FILLED) * FILLED
