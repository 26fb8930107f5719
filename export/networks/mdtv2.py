"""MDTv2 (Gao et al. 2023, arXiv:2303.14389): DiT with long skip connections and a bias of relative positions.

Its blocks are numbered on here: half of the encoder, the half that each takes a skip from it, and the decoder, whose
blocks all take the skip from the embedded image. The side-interpolater is of the training alone
(export/sources/mdtv2.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .dit import Attention, Block, DiT, DiTConfig, modulate, sincos_position_embedding

SPARE_ROWS = 3  # of the bias table: BEiT's, for a class token that MDT has not


@dataclass(frozen=True)
class MdtConfig(DiTConfig):
    decoder_depth: int = 4  # blocks of the decoder; the others are two halves of the encoder

    @property
    def half(self) -> int:
        return (self.depth - self.decoder_depth) // 2


class RelativeBias(nn.Module):
    def __init__(self, config: MdtConfig) -> None:
        super().__init__()
        side = config.input_size // config.patch_size
        rows = (2 * side - 1) ** 2 + SPARE_ROWS
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, config.num_heads))

    def forward(self, index: Tensor) -> Tensor:
        """index [T, T] int64, of `relative_index` -> bias [heads, T, T]."""
        return self.relative_position_bias_table[index].permute(2, 0, 1)


def relative_index(config: MdtConfig) -> Tensor:
    """The row of the bias table for each pair of tokens [T, T]: of how far apart they are, rows and columns."""
    side = config.input_size // config.patch_size
    place = torch.arange(side, device="cpu")
    row, column = (axis.flatten() for axis in torch.meshgrid(place, place, indexing="ij"))
    rows, columns = (axis[:, None] - axis[None] + side - 1 for axis in (row, column))
    return rows * (2 * side - 1) + columns


class MdtAttention(Attention):
    def __init__(self, config: MdtConfig) -> None:
        super().__init__(config)
        self.rel_pos_bias = RelativeBias(config)

    def biased(self, x: Tensor, index: Tensor) -> Tensor:
        """`forward` of x [N, T, D] with index of `relative_index`."""
        return self.attended(*self.heads(x), self.rel_pos_bias(index))


class MdtBlock(Block):
    def __init__(self, config: MdtConfig, skip: bool) -> None:
        super().__init__(config)
        self.attn = MdtAttention(config)
        self.skip_linear = nn.Linear(2 * config.hidden_size, config.hidden_size) if skip else nn.Identity()

    def joined(self, x: Tensor, modulation: Tensor, index: Tensor, skip: Tensor | None = None) -> Tensor:
        """`forward` of x [N, T, D], modulation [N, 6D]; skip: tokens [N, T, D] from an earlier block."""
        x = self.skip_linear(x if skip is None else torch.cat([x, skip], dim=-1))
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = modulation.chunk(6, dim=1)
        normed = modulate(self.norm1(x), shift_attn, scale_attn)
        x = x + gate_attn[:, None] * self.attn.biased(normed, index)  # type: ignore[operator]
        return x + gate_mlp[:, None] * self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))


class MdtV2(DiT):
    def __init__(self, config: MdtConfig) -> None:
        super().__init__(config)
        self.half = config.half
        self.blocks = nn.ModuleList(MdtBlock(config, skip=i >= config.half) for i in range(config.depth))
        self.decoder_pos_embed = nn.Parameter(sincos_position_embedding(config), requires_grad=False)
        self.register_buffer("relative_index", relative_index(config), persistent=False)

    def trunk(self, x: Tensor, modulation: Tensor) -> Tensor:
        width, half = self.config.hidden_size, self.half
        image = self.x_embedder(x) + self.pos_embed
        tokens, skips = image, list[Tensor]()
        parts = modulation[:, : -2 * width].split(6 * width, dim=1)
        for i, (block, part) in enumerate(zip(self.blocks[: 2 * half], parts[: 2 * half], strict=True)):
            tokens = block.joined(tokens, part, self.relative_index, skips.pop() if i >= half else None)
            if i < half:
                skips.append(tokens)
        tokens = tokens + self.decoder_pos_embed
        for block, part in zip(self.blocks[2 * half :], parts[2 * half :], strict=True):
            tokens = block.joined(tokens, part, self.relative_index, image)
        return self.unpatchify(self.final_layer(tokens, modulation[:, -2 * width :]))
