"""Lumina 2 (Qin et al. 2025, arXiv:2503.21758): Z-Image's blocks, with fewer heads of keys and values.

`conditioner` has the timestep and all adaptive scales and gates; `context` has the caption's embedder and its refiner,
which are told no time, and where each word stands. Nothing is filled up. Parameter names are those of diffusers'
`Lumina2Transformer2DModel`, but within blocks, where they are Z-Image's: `our_names`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adaln_single import MASKED
from .interface import Interface
from .parts import (
    SINUSOID,
    FamilyConfig,
    Mlp,
    RmsNorm,
    RotaryAxes,
    frequencies,
    patchified,
    sinusoid,
    unpatchified,
    vectors_of,
)
from .z_image import Block

TIME_WIDTH = 1024  # at most, of the timestep's embedding
FINAL_EPS = 1e-6
THETA = 10000.0
THOUSAND = 1000.0
NAMES = {  # of a block, in diffusers' file and here
    r"attn\.": "attention.",
    r"feed_forward\.linear_": "feed_forward.w",
    r"norm1\.linear\.": "adaLN_modulation.0.",
    r"norm1\.(norm\.)?weight": "attention_norm1.weight",
    r"norm2\.": "attention_norm2.",
}


@dataclass(frozen=True)
class Lumina2Config(FamilyConfig):
    """Hyper-parameters, as in diffusers' config.json."""

    sample_size: int  # H = W of the latents that it was trained on
    patch_size: int
    in_channels: int  # C
    out_channels: int  # O
    num_heads: int
    kv_heads: int
    head_size: int
    depth: int  # L
    refiner_depth: int  # blocks of the image alone, and of the text alone
    caption_channels: int  # Dh
    mlp_size: int
    axes: tuple[int, ...] = (32, 32, 32)  # numbers of a head that turn with each axis
    norm_eps: float = 1e-5
    tokens: int = 256  # T of a prompt

    @property
    def time_size(self) -> int:
        return min(self.hidden_size, TIME_WIDTH)


class TimeCaptionEmbed(nn.Module):
    def __init__(self, config: Lumina2Config) -> None:
        super().__init__()
        self.timestep_embedder = Mlp(SINUSOID, config.time_size, nn.SiLU())
        caption = config.caption_channels
        self.caption_embedder = nn.Sequential(RmsNorm(caption, config.norm_eps), nn.Linear(caption, config.hidden_size))
        self.register_buffer("frequency", frequencies(), persistent=False)

    def time(self, time: Tensor) -> Tensor:
        return self.timestep_embedder(sinusoid(time, self.frequency))


class FinalLayer(nn.Module):
    def __init__(self, config: Lumina2Config) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm = nn.LayerNorm(width, FINAL_EPS, elementwise_affine=False)
        self.linear_1 = nn.Linear(config.time_size, width)
        self.linear_2 = nn.Linear(width, config.patch_size**2 * config.out_channels)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.linear_2(self.norm(x) * scale)


class Lumina2(nn.Module):
    """diffusers' Lumina2Transformer2DModel, in Lumina2Pipeline: time and sign are turned around there."""

    def __init__(self, config: Lumina2Config) -> None:
        super().__init__()
        self.config = config
        self.x_embedder = nn.Linear(config.patch_size**2 * config.in_channels, config.hidden_size)
        self.time_caption_embed = TimeCaptionEmbed(config)
        self.noise_refiner = nn.ModuleList(Block(config) for _ in range(config.refiner_depth))
        self.context_refiner = nn.ModuleList(Block(config, told=False) for _ in range(config.refiner_depth))
        self.layers = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm_out = FinalLayer(config)
        self.rotary = RotaryAxes(config.axes, THETA)

    @property
    def interface(self) -> Interface:
        config = self.config
        return Interface(
            modulation=(4 * (config.refiner_depth + config.depth) + 1) * config.hidden_size,
            context=config.hidden_size + config.head_size,
            multiple=config.patch_size,
            reads={"hidden": ("T", config.caption_channels), "mask": ("T",)},
            biased=True,
            position=config.head_size,
            renormalised=True,
        )

    def conditioner(self, timestep: Tensor) -> Tensor:
        """timestep [U] in 1000 .. 0 -> modulation [U, M]: of each block, then the final scale."""
        embedded = F.silu(self.time_caption_embed.time(1 - timestep / THOUSAND))
        rows = [block.vectors(embedded) for block in (*self.noise_refiner, *self.layers)]
        return torch.cat([*rows, 1 + self.norm_out.linear_1(embedded)], dim=1)

    def context(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """hidden [P, T, Dh], mask [P, T] int64 -> context [P, T, D + d], context_bias [P, T]: of each word its row and
        how it is turned. The picture begins behind the prompt, at place 0, so words stand before it."""
        place = torch.cumsum(mask.float(), dim=1) - 1
        turns = self.rotary.line(place - mask.float().sum(dim=1, keepdim=True))
        rows, bias = self.time_caption_embed.caption_embedder(hidden), (1 - mask.float()) * MASKED
        for block in self.context_refiner:
            rows = block.plain(rows, turns[:, None], bias)
        return torch.cat([rows, turns], dim=2), bias

    def position(self, rows: Tensor, columns: Tensor) -> Tensor:
        """rows [h] and columns [w] float32, 0, 1, 2 ... of the tokens -> [h, w, d]: cosines, then sines."""
        return self.rotary.grid(rows, columns)

    def trunk(
        self, x: Tensor, modulation: Tensor, context: Tensor, context_bias: Tensor, prompt: Tensor, position: Tensor
    ) -> Tensor:
        """x [N, C, H, W], modulation [N, M], context [P, T, D + d], context_bias [P, T], prompt [N] int64 (rows of
        both), position [h, w, d] -> network output [N, O, H, W]."""
        config, (h, w) = self.config, position.shape[:2]
        width, patch = config.hidden_size, config.patch_size
        told, bias = context.index_select(0, prompt), context_bias.index_select(0, prompt)
        stream = self.x_embedder(patchified(x, patch, h, w))
        free, turns = stream.new_zeros(stream.shape[:2]), position.flatten(0, 1)[None].expand(told.shape[0], -1, -1)
        for i, block in enumerate(self.noise_refiner):
            stream = block(stream, turns[:, None], free, vectors_of(modulation, 4 * i, 4, width))
        bias, turns = torch.cat([free, bias], dim=1), torch.cat([turns, told[..., width:]], dim=1)[:, None]
        stream = torch.cat([stream, told[..., :width]], dim=1)
        for i, block in enumerate(self.layers, start=config.refiner_depth):
            stream = block(stream, turns, bias, vectors_of(modulation, 4 * i, 4, width))
        (scale,) = vectors_of(modulation, 4 * (config.refiner_depth + config.depth), 1, width)
        return -unpatchified(self.norm_out(stream[:, : free.shape[1]], scale), patch, h, w)


def our_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of diffusers' file by this module's names."""
    return {_our_name(key): tensor for key, tensor in tensors.items()}


def _our_name(key: str) -> str:
    found = re.fullmatch(r"((?:noise_refiner|context_refiner|layers)\.\d+\.)(.+)", key)
    if found is None:
        return key
    for theirs, ours in NAMES.items():
        if re.match(theirs, found[2]):
            return found[1] + re.sub(f"^{theirs}", ours, found[2])
    return key
