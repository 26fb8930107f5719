"""LightningDiT (Yao et al. 2025, arXiv:2501.01423): DiT with SwiGLU, RMSNorm, rotary positions, adaLN without shifts.

Each of them by itself, as its training chose. Parameter names are those of hustvl/LightningDiT's
`models/lightningdit.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dit import Attention, Block, DiT, DiTConfig, FinalLayer, adaln_projection, modulate

THETA = 10000.0  # of the rotary frequencies
QK_EPS = 1e-5  # of a LayerNorm of queries and keys; every other norm has 1e-6


@dataclass(frozen=True)
class LightningConfig(DiTConfig):
    swiglu: bool = True  # else DiT's MLP
    rms_norm: bool = True  # else LayerNorm without weights
    rope: bool = True  # rotary positions of queries and keys, besides pos_embed
    shift: bool = True  # adaLN with shifts: six vectors a block, else four

    @property
    def vectors(self) -> int:
        """adaLN vectors of a block."""
        return 6 if self.shift else 4

    @property
    def modulation_size(self) -> int:
        return (self.vectors * self.depth + 2) * self.hidden_size


class RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6) * self.weight


class RotaryPositions(nn.Module):
    """Pairs of neighbouring channels turn by angles of the row (first half of a head) and of the column."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        cos, sin = rotary_angles(config)
        self.register_buffer("freqs_cos", cos)  # [T, D / heads]
        self.register_buffer("freqs_sin", sin)

    def forward(self, x: Tensor) -> Tensor:
        """[N, heads, T, D / heads] -> the same shape."""
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        return x * self.freqs_cos + torch.stack([-second, first], dim=-1).flatten(-2) * self.freqs_sin


def rotary_angles(config: DiTConfig) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each token's angles [T, D / heads] float32."""
    half, side = config.hidden_size // config.num_heads // 2, config.input_size // config.patch_size
    frequency = 1.0 / THETA ** (torch.arange(0, half, 2).float() / half)
    angles = (torch.arange(side).float()[:, None] * frequency).repeat_interleave(2, dim=1)
    rows, columns = angles[:, None].expand(-1, side, -1), angles[None].expand(side, -1, -1)
    both = torch.cat([rows, columns], dim=-1).flatten(0, 1)
    return both.cos(), both.sin()


class LightningAttention(Attention):
    def __init__(self, config: LightningConfig) -> None:
        super().__init__(config)
        width = config.hidden_size // config.num_heads
        if config.qk_norm:
            norms = [RmsNorm(width) if config.rms_norm else nn.LayerNorm(width, eps=QK_EPS) for _ in range(2)]
            self.q_norm, self.k_norm = norms

    def rotated(self, x: Tensor, positions: nn.Module) -> Tensor:
        """`forward` of x [N, T, D] with positions: what turns queries and keys."""
        q, k, v = self.heads(x)
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        return self.attended(positions(q), positions(k), v)


class SwiGlu(nn.Module):
    def __init__(self, config: LightningConfig) -> None:
        super().__init__()
        width, hidden = config.hidden_size, config.mlp_size
        self.w12, self.w3 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class LightningBlock(Block):
    def __init__(self, config: LightningConfig) -> None:
        super().__init__(config)
        self.attn = LightningAttention(config)
        self.vectors = config.vectors
        self.adaLN_modulation = adaln_projection(config.hidden_size, config.vectors)
        if config.rms_norm:
            self.norm1, self.norm2 = RmsNorm(config.hidden_size), RmsNorm(config.hidden_size)  # type: ignore[assignment]
        if config.swiglu:
            self.mlp = SwiGlu(config)  # type: ignore[assignment]

    def turned(self, x: Tensor, modulation: Tensor, positions: nn.Module) -> Tensor:
        """`forward` of x [N, T, D], modulation [N, 6D or 4D]; positions: what turns queries and keys."""
        parts = modulation.chunk(self.vectors, dim=1)
        if self.vectors == 4:
            scale_attn, gate_attn, scale_mlp, gate_mlp = parts
            shift_attn = shift_mlp = torch.zeros_like(scale_attn)
        else:
            shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = parts
        normed = modulate(self.norm1(x), shift_attn, scale_attn)
        x = x + gate_attn[:, None] * self.attn.rotated(normed, positions)  # type: ignore[operator]
        return x + gate_mlp[:, None] * self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))


class LightningFinalLayer(FinalLayer):
    def __init__(self, config: LightningConfig) -> None:
        super().__init__(config)
        if config.rms_norm:
            self.norm_final = RmsNorm(config.hidden_size)  # type: ignore[assignment]


class LightningDiT(DiT):
    def __init__(self, config: LightningConfig) -> None:
        super().__init__(config)
        self.vectors = config.vectors
        self.blocks = nn.ModuleList(LightningBlock(config) for _ in range(config.depth))
        self.final_layer = LightningFinalLayer(config)
        self.feat_rope = RotaryPositions(config) if config.rope else nn.Identity()

    def trunk(self, x: Tensor, modulation: Tensor) -> Tensor:
        width = self.config.hidden_size
        tokens = self.x_embedder(x) + self.pos_embed
        parts = modulation[:, : -2 * width].split(self.vectors * width, dim=1)
        for block, part in zip(self.blocks, parts, strict=True):
            tokens = block.turned(tokens, part, self.feat_rope)
        return self.unpatchify(self.final_layer(tokens, modulation[:, -2 * width :]))
