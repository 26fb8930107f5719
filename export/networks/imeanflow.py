"""Improved MeanFlow (Geng et al. 2025, arXiv:2512.02012): conditions are tokens before those of the image.

A row of modulation is these tokens: of the class, of the guidance asked for, of the times between which it acts, and of
how far the step goes. The network is not told the time itself. Names are those of Lyy-iiis/imeanflow (branch
torch) without its wrappers; the blocks of the shared part and of the head that is sampled with are counted on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .dit import DiT, DiTConfig, LabelEmbedder, TimestepEmbedder
from .parts import PatchEmbed, RmsNorm, SwiGlu, attend, heads_of, turned

THETA = 10000.0  # of the rotary frequencies
CONDITIONS = ("class", "omega", "t_min", "t_max", "time")  # in the order of the tokens


@dataclass(frozen=True)
class ImprovedConfig(DiTConfig):
    tokens_of: tuple[int, ...] = (8, 4, 2, 2, 4)  # of each of CONDITIONS
    guided: tuple[float, float] = (0.0, 1.0)  # times between which the guidance asked for acts

    @property
    def told(self) -> tuple[str, ...]:
        return "interval", "guidance"

    @property
    def modulation_size(self) -> int:
        return sum(self.tokens_of) * self.hidden_size


class RotaryAttention(nn.Module):
    """Pairs of neighbouring channels of queries and keys turn by angles of the place in the row of all tokens."""

    def __init__(self, config: ImprovedConfig) -> None:
        super().__init__()
        width, self.heads = config.hidden_size, config.num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.q_norm, self.k_norm = RmsNorm(width // config.num_heads), RmsNorm(width // config.num_heads)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        """x [N, T, D], turns [T, D / heads] -> [N, T, D]."""
        q, k, v = (heads_of(linear(x), self.heads) for linear in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(attend(turned(self.q_norm(q), turns), turned(self.k_norm(k), turns), v))


def rotary_turns(config: ImprovedConfig) -> Tensor:
    """Of every token, conditions included: cosines, then sines [T, D / heads] float32."""
    size = config.hidden_size // config.num_heads
    frequency = 1.0 / THETA ** (torch.arange(0, size, 2, dtype=torch.float32, device="cpu") / size)
    place = torch.arange(sum(config.tokens_of) + config.tokens, dtype=torch.float32, device="cpu")
    angle = torch.outer(place, frequency)
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class ImprovedBlock(nn.Module):
    def __init__(self, config: ImprovedConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm1, self.norm2 = RmsNorm(width), RmsNorm(width)
        self.attn, self.mlp = RotaryAttention(config), SwiGlu(config.hidden_size, config.mlp_size)
        self.attn_scale, self.mlp_scale = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), turns) * self.attn_scale
        return x + self.mlp(self.norm2(x)) * self.mlp_scale


class ImprovedFinalLayer(nn.Module):
    def __init__(self, config: ImprovedConfig) -> None:
        super().__init__()
        self.norm = RmsNorm(config.hidden_size)
        self.linear = nn.Linear(config.hidden_size, config.patch_size**2 * config.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


class ImprovedMeanFlow(DiT):
    """A DiT to whoever exports it: nothing of DiT's own layers is in it."""

    def __init__(self, config: ImprovedConfig) -> None:
        nn.Module.__init__(self)
        self.config: ImprovedConfig = config
        self.x_embedder = PatchEmbed(config.in_channels, config.hidden_size, config.patch_size)
        self.y_embedder = LabelEmbedder(config)
        self.h_embedder, self.omega_embedder = TimestepEmbedder(config), TimestepEmbedder(config)
        self.cfg_t_start_embedder, self.cfg_t_end_embedder = TimestepEmbedder(config), TimestepEmbedder(config)
        for name, count in zip(CONDITIONS, config.tokens_of, strict=True):
            self.register_parameter(f"{name}_tokens", nn.Parameter(torch.empty(count, config.hidden_size)))
        self.blocks = nn.ModuleList(ImprovedBlock(config) for _ in range(config.depth))
        self.final_layer = ImprovedFinalLayer(config)  # type: ignore[assignment]
        self.register_buffer("turns", rotary_turns(config), persistent=False)

    def conditioner(self, timestep: Tensor, label: Tensor, *told: Tensor) -> Tensor:
        """label [U] int64; interval and guidance [U] float32 -> tokens [U, M] float32, one condition after another.

        timestep [U] float32 is read by nobody.
        """
        interval, guidance = told
        low, high = (torch.full_like(interval, time) for time in self.config.guided)
        embedded = (
            self.y_embedder(label),
            self.omega_embedder(1 - 1 / guidance),
            self.cfg_t_start_embedder(low),
            self.cfg_t_end_embedder(high),
            self.h_embedder(interval),
        )
        rows = [getattr(self, f"{name}_tokens") + row[:, None] for name, row in zip(CONDITIONS, embedded, strict=True)]
        return torch.cat(rows, dim=1).flatten(1)

    def trunk(self, x: Tensor, modulation: Tensor) -> Tensor:
        before = sum(self.config.tokens_of)
        tokens = torch.cat([modulation.unflatten(1, (before, self.config.hidden_size)), self.x_embedder(x)], dim=1)
        for block in self.blocks:
            tokens = block(tokens, self.turns)
        return self.unpatchify(self.final_layer(tokens[:, before:]))
