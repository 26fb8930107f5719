"""What PixArt and Sana have in common: adaLN-single, and cross-attention to keys and values of the prompt.

Every block has the same six vectors of time, to which it adds a table of its own; the final layer has a table of two.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .parts import modulated

MASKED = -1e4  # added to the scores of tokens that are padding: their weight is exactly 0 then
NORM_EPS = 1e-6  # of the last norm, whatever `norm_eps` is


def with_table(table: Tensor, vectors: Tensor) -> tuple[Tensor, ...]:
    """table [n, D], vectors [N, n or 1, D] -> n sums, [N, 1, D] each."""
    return (table[None] + vectors)[:, :, None].unbind(1)


def context_of(rows: Sequence[Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
    """Of each block in turn its keys and its values [P, T, ...]; mask [P, T] int64 -> context, context_bias [P, T]."""
    return torch.cat(list(rows), dim=2), (1 - mask.float()) * MASKED


def keys_and_values(context: Tensor, prompt: Tensor, block: int, width: int) -> tuple[Tensor, Tensor]:
    """Those of a block, of `width` numbers each, for prompt [N] int64 -> [N, T, width] each."""
    keys, values = (
        context[:, :, part * width : (part + 1) * width].index_select(0, prompt) for part in (2 * block, 2 * block + 1)
    )
    return keys, values


def six_of(modulation: Tensor, width: int) -> Tensor:
    """modulation [N, 7D] -> what every block has of it, [N, 6, D]."""
    return modulation[:, : 6 * width].unflatten(1, (6, width))


def final(norm: nn.Module, table: Tensor, tokens: Tensor, modulation: Tensor) -> Tensor:
    """tokens [N, S, D], modulation [N, 7D] -> tokens as the last linear layer reads them."""
    shift, scale = with_table(table, modulation[:, None, 6 * tokens.shape[2] :])
    return modulated(norm, tokens, shift, scale)
