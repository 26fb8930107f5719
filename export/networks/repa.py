"""SiT as REPA trains it (Yu et al. 2025, arXiv:2410.06940): DiT, with `--qk-norm` with normalised queries and keys.

Its projectors are of the training alone and not here (export/sources/repa.py).
"""

from __future__ import annotations

from torch import Tensor, nn

from .dit import Attention, DiT, DiTConfig

EPS = 1e-5  # torch's own of LayerNorm, as timm's Attention leaves it; every other norm of the network has 1e-6


class NormalisedAttention(Attention):
    """Each head's queries and keys pass a LayerNorm with weight and bias, which all heads of a block share."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        width = config.hidden_size // config.num_heads
        self.q_norm, self.k_norm = nn.LayerNorm(width, eps=EPS), nn.LayerNorm(width, eps=EPS)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().heads(x)
        return self.q_norm(q), self.k_norm(k), v


class RepaDiT(DiT):
    """DiT itself where its configuration does not say `qk_norm`."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        if config.qk_norm:
            for block in self.blocks:
                block.attn = NormalisedAttention(config)
