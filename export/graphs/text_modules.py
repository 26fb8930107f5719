"""The graphs of a model that takes prompts, as torch modules (docs/format.md, "Prompts")."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from .modules import Tables, next_state


class PromptNetwork(Protocol):
    """What the graphs need of a network that takes prompts (`PixArt`)."""

    def conditioner(self, timestep: Tensor, height: Tensor | None, width: Tensor | None) -> Tensor: ...
    def context(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]: ...
    def position(self, row: Tensor, column: Tensor) -> Tensor: ...
    def trunk(
        self, x: Tensor, modulation: Tensor, context: Tensor, context_bias: Tensor, prompt: Tensor, position: Tensor
    ) -> Tensor: ...


class PromptConditioner(nn.Module):
    """timestep [U], and height and width [U] in pixels where the model is told them, float32 -> modulation [U, M].

    One row more is computed than asked for, and dropped: see `Conditioner`.
    """

    def __init__(self, network: PromptNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, timestep: Tensor, height: Tensor | None = None, width: Tensor | None = None) -> Tensor:
        padded = [None if row is None else torch.cat([row, row[:1]]) for row in (timestep, height, width)]
        return self.network.conditioner(*padded)[:-1]  # type: ignore[arg-type]  # the first is given


class Context(nn.Module):
    """hidden [P, T, Dh] float32, mask [P, T] int64 -> context [P, T, W], context_bias [P, T] float32."""

    def __init__(self, network: PromptNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.network.context(hidden, mask)


class Position(nn.Module):
    """row [h], column [w] float32, counted from 0 -> position [h, w, D] float32."""

    def __init__(self, network: PromptNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, row: Tensor, column: Tensor) -> Tensor:
        return self.network.position(row, column)


class PromptStep(nn.Module):
    """One sampler step, see `Step`; P prompts, T tokens, latents of any h p x w p."""

    def __init__(self, network: PromptNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        state: Tensor,  # [B, K, C, H, W]
        sample: Tensor,  # [E] int64
        condition: Tensor,  # [E] int64
        modulation: Tensor,  # [U, M]
        combine: Tensor,  # [B, E, O]
        x0_from: Tensor,  # [B, 2]
        x0_bound: Tensor,  # [B]
        log_sigma: Tensor,  # [B, 2]
        mix: Tensor,  # [B, K, K + 2]
        noise: Tensor,  # [B, C, H, W]
        context: Tensor,  # [P, T, W]
        context_bias: Tensor,  # [P, T]
        prompt: Tensor,  # [E] int64: which row of context an evaluation uses
        position: Tensor,  # [h, w, D]
    ) -> Tensor:  # next_state [B, K, C, H, W]
        x, rows = state[:, 0], modulation.index_select(0, condition)
        output = self.network.trunk(x.index_select(0, sample), rows, context, context_bias, prompt, position)
        return next_state(output, x, state, Tables(combine, x0_from, x0_bound, log_sigma, mix), noise)
