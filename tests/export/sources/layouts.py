"""A small DiT of nothing standard, with random weights, in raw and averaged form; what the tests of layouts share."""

from __future__ import annotations

import torch
from torch import Tensor

from ditedge.export import DiT, DiTConfig
from tests.export.networks.literal_dit import literal_dit

State = dict[str, Tensor]
# Nothing standard: MLP ratio 2.5, a sinusoid of 64, 5 classes.
CONFIG = DiTConfig(8, 2, 4, 48, 2, 3, num_classes=5, mlp_ratio=2.5, timestep_channels=64, frequency_divisor=32)


def random_state(seed: int, config: DiTConfig = CONFIG) -> State:
    torch.manual_seed(seed)
    return {key: torch.randn_like(value) * 0.3 for key, value in DiT(config).state_dict().items()}


RAW, EMA = random_state(0), random_state(1)


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def output(state: State, heads: int = 3) -> tuple[Tensor, tuple[Tensor, ...]]:
    torch.manual_seed(7)
    inputs = (torch.randn(3, 4, 8, 8), torch.tensor([0.0, 500.0, 999.0]), torch.tensor([0, 4, 5]))
    return literal_dit(state, heads, *inputs), inputs
