"""The graphs of a model that takes prompts, as torch modules (docs/format.md, "Prompts").

Families differ in their inputs: each module is told the names of those that it is given in order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..networks.interface import PromptNetwork
from .modules import Tables, next_state


class Named(nn.Module):
    """A module of one family's network. names: of its inputs, in order."""

    def __init__(self, network: PromptNetwork, names: Iterable[str]) -> None:
        super().__init__()
        self.network, self.names = network, tuple(names)

    def named(self, given: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return dict(zip(self.names, given, strict=True))


class PromptConditioner(Named):
    """timestep [U], and what the family is told beside it: vector [U, Q], scalars [U] float32 -> modulation [U, M].

    One row more is computed than asked for, and dropped: see `Conditioner`.
    """

    def forward(self, *given: Tensor) -> Tensor:
        padded = {name: torch.cat([rows, rows[:1]]) for name, rows in self.named(given).items()}
        return self.network.conditioner(**padded)[:-1]


class Context(Named):
    """What the text encoders say of P prompts -> context [P, T, W], and context_bias [P, T], vector [P, Q] if any."""

    def forward(self, *given: Tensor) -> Any:
        return self.network.context(**self.named(given))


class Position(Named):
    """row [h], column [w] float32, counted from 0 -> position [h, w, Dp] float32."""

    def forward(self, row: Tensor, column: Tensor) -> Tensor:
        return self.network.position(row, column)


class PromptStep(Named):
    """One sampler step, see `Step`; P prompts, T tokens, latents of any h p x w p.

    names: of the inputs after noise: context, prompt, and context_bias and position where the family has them.
    """

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
        *given: Tensor,
    ) -> Tensor:  # next_state [B, K, C, H, W]
        x, rows = state[:, 0], modulation.index_select(0, condition)
        output = self.network.trunk(x.index_select(0, sample), rows, **self.named(given))
        tables = Tables(combine, x0_from, x0_bound, log_sigma, mix)
        return next_state(output, x, state, tables, noise, self.network.interface.renormalised)
