"""torch.compile, block by block: blocks that are the same are compiled once."""

from __future__ import annotations

import torch

from . import Evaluate, Output, Task
from .eager import Narrow


def make(task: Task, variant: str) -> Evaluate:
    """variant: the dtype. Needs a C++ compiler on the CPU."""
    dtype = getattr(torch, variant)
    model, (x, timestep, label) = Narrow(task.model.to(dtype), dtype), task.inputs
    for block in model.model.blocks:
        block.compile(dynamic=False)
    model.model.final_layer.compile(dynamic=False)

    @torch.no_grad()
    def evaluate() -> Output:
        return model(x, timestep, label)

    return evaluate
