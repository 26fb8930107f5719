"""MaskDiT (Zheng et al. 2023, arXiv:2306.09305): a DiT, and behind it a narrower one, its decoder.

Names are those of Anima-Lab/MaskDiT's `models/maskdit.py`, but that the decoder's blocks are numbered on. What EDM puts
around the network is the program's (runtime/samplers/edm.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .dit import Block, DiT, DiTConfig, FinalLayer, modulate, sincos_position_embedding

DECODER_HEADS = 16  # at any width


@dataclass(frozen=True)
class MaskConfig(DiTConfig):
    decoder_depth: int = 8  # 0: without a decoder
    decoder_size: int = 512

    @property
    def decoder(self) -> MaskConfig:
        """As if the decoder were the network."""
        return replace(self, hidden_size=self.decoder_size, num_heads=DECODER_HEADS)

    @property
    def last_size(self) -> int:
        """Width of the tokens that the last layer sees."""
        return self.decoder_size if self.decoder_depth else self.hidden_size

    @property
    def modulation_size(self) -> int:
        encoder = 6 * (self.depth - self.decoder_depth) + (2 if self.decoder_depth else 0)
        return encoder * self.hidden_size + 6 * self.decoder_depth * self.decoder_size + 2 * self.last_size


def _conditioned(width: int, vectors: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, vectors))


class ToDecoder(nn.Module):
    """From the encoder's width to the decoder's."""

    def __init__(self, config: MaskConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm_decoder = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, config.decoder_size)
        self.adaLN_modulation = _conditioned(width, 2 * width)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        shift, scale = modulation.chunk(2, dim=1)
        return self.linear(modulate(self.norm_decoder(x), shift, scale))


class MaskDiT(DiT):
    def __init__(self, config: MaskConfig) -> None:
        super().__init__(config)
        width, narrow = config.hidden_size, config.decoder
        self.encoder_depth = config.depth - config.decoder_depth
        if not config.decoder_depth:
            return
        self.decoder_layer = ToDecoder(config)
        self.decoder_pos_embed = nn.Parameter(sincos_position_embedding(narrow), requires_grad=False)
        for i in range(self.encoder_depth, config.depth):
            self.blocks[i] = Block(narrow)
            self.blocks[i].adaLN_modulation = _conditioned(width, 6 * config.decoder_size)
        self.final_layer = FinalLayer(narrow)
        self.final_layer.adaLN_modulation = _conditioned(width, 2 * config.decoder_size)

    def layers(self) -> list[nn.Module]:
        """In the order of the tokens, which is that of modulation."""
        between = [self.decoder_layer] if self.encoder_depth < len(self.blocks) else []
        return [*self.blocks[: self.encoder_depth], *between, *self.blocks[self.encoder_depth :], self.final_layer]

    def conditioner(self, timestep: Tensor, label: Tensor, *told: Tensor) -> Tensor:
        condition = self.t_embedder(timestep) + self.y_embedder(label)
        return torch.cat([layer.adaLN_modulation(condition) for layer in self.layers()], dim=1)  # type: ignore[operator]

    def trunk(self, x: Tensor, modulation: Tensor) -> Tensor:
        layers = self.layers()
        sizes = [layer.adaLN_modulation[1].out_features for layer in layers]  # type: ignore[index, union-attr]
        tokens = self.x_embedder(x) + self.pos_embed
        for layer, part in zip(layers, modulation.split(sizes, dim=1), strict=True):
            tokens = layer(tokens, part)
            if isinstance(layer, ToDecoder):
                tokens = tokens + self.decoder_pos_embed
        return self.unpatchify(tokens)
