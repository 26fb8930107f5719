"""PyTorch as it comes."""

from __future__ import annotations

import torch

from . import Evaluate, Output, Task


def make(task: Task, variant: str) -> Evaluate:
    """variant: the dtype of weights and arithmetic."""
    dtype = getattr(torch, variant)
    model, (x, timestep, label) = Narrow(task.model.to(dtype), dtype), task.inputs

    @torch.no_grad()
    def evaluate() -> Output:
        return model(x, timestep, label)

    return evaluate


class Narrow(torch.nn.Module):
    """The network in `dtype` between float32 tensors: timesteps have their sines in float32, and no more."""

    def __init__(self, model: torch.nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype
        model.t_embedder.float()

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        model = self.model
        first = model.t_embedder(timestep).to(self.dtype) + model.y_embedder(label)
        layers = [*model.blocks, model.final_layer]
        modulation = torch.cat([layer.adaLN_modulation(first) for layer in layers], dim=1)
        return model.trunk(x.to(self.dtype), modulation).float()
