"""What the graphs need to know of a network that takes prompts: one file of this folder is one family's network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

Shape = tuple[int | str, ...]  # letters are dynamic sizes


@dataclass(frozen=True)
class Interface:
    """The sizes of a family's graphs, and which of their inputs it has; what it does not have is in no graph."""

    modulation: int  # M
    context: int  # W
    multiple: int  # H and W of latents are multiples of it: what one image token stands for
    reads: Mapping[str, Shape]  # what `context` is given, after P: {"hidden": ("T", 4096), "mask": ("T",)}; int64 masks
    tokens: int | str = "T"  # of context; a number where there is no mask, and so no padding to leave out
    biased: bool = False  # `context_bias`: padding has a mask
    vector: int | None = None  # Q: the conditioner reads a vector of each prompt
    scalars: tuple[str, ...] = ()  # numbers that the conditioner is told: `runtime.bundle.text_info.SCALARS`
    renormalised: bool = False  # what guidance makes is rescaled: `graphs.modules.renormalised`
    position: int | None = None  # Dp: numbers of a patch's position; None: no graph `position`


class PromptNetwork(Protocol):
    """A family's network: an `nn.Module` in four parts, each called with the inputs that its `interface` names.

    context makes (context [P, T, W], context_bias [P, T] where `biased`, vector [P, Q] where there is one), in this
    order, or the context alone. `prompt` [N] int64 are rows of context and context_bias, one of each evaluation; x is
    [N, C, H, W] and so is what trunk makes, with O channels.
    """

    config: Any

    @property
    def interface(self) -> Interface: ...
    def conditioner(self, timestep: Tensor, **told: Tensor) -> Tensor: ...  # -> modulation [U, M]
    def context(self, **reads: Tensor) -> Any: ...
    def position(self, rows: Tensor, columns: Tensor) -> Tensor: ...  # [h], [w] float32 from 0 -> [h, w, Dp]
    def trunk(self, x: Tensor, modulation: Tensor, **prompts: Tensor) -> Tensor: ...
