"""MeanFlow's DiT (Geng et al. 2025, arXiv:2505.13447): told a time and how far a step goes, it says its mean velocity.

x = (1 - t) x0 + t eps; one evaluation goes from t to r: x - (t - r) u(x, t, t - r). Parameter names are those of
Gsunshine/meanflow: DiT's, and a second timestep embedder, of the interval h = t - r. Guidance is in the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .dit import Block, DiTConfig, FinalLayer, TimestepEmbedder
from .repa import RepaDiT


@dataclass(frozen=True)
class MeanFlowConfig(DiTConfig):
    @property
    def told(self) -> tuple[str, ...]:
        return ("interval",)


class MeanFlow(RepaDiT):
    """x [N, C, H, W], timestep [N] in (0, 1], label [N], interval [N] in [0, timestep] -> velocity [N, C, H, W]."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        self.h_embedder = TimestepEmbedder(config)

    def conditioner(self, timestep: Tensor, label: Tensor, *told: Tensor) -> Tensor:
        """timestep [U] float32, label [U] int64, interval [U] float32 -> modulation [U, M] float32."""
        [interval] = told
        condition = self.t_embedder(timestep) + self.h_embedder(interval) + self.y_embedder(label)
        layers: list[Block | FinalLayer] = [*self.blocks, self.final_layer]
        return torch.cat([layer.adaLN_modulation(condition) for layer in layers], dim=1)
