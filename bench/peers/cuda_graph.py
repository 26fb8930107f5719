"""PyTorch on an NVIDIA GPU at its best: bfloat16, compiled block by block, replayed as one CUDA graph."""

from __future__ import annotations

import torch

from . import Evaluate, Output, Task
from .eager import Narrow

WARM = 3  # runs on a stream of their own before the capture: compilation, cuBLAS' workspaces


def make(task: Task, variant: str) -> Evaluate:
    """variant: "compiled" or "eager"."""
    if not torch.cuda.is_available():
        raise RuntimeError("needs an NVIDIA GPU, and a PyTorch with CUDA")
    dtype, given = torch.bfloat16, [tensor.cuda() for tensor in task.inputs]
    model = Narrow(task.model.to(dtype), dtype).cuda()
    if variant == "compiled":
        for block in model.model.blocks:
            block.compile(dynamic=False)
    graph, output = _captured(model, given)

    def evaluate() -> Output:
        graph.replay()
        torch.cuda.synchronize()
        return output

    return evaluate


@torch.no_grad()
def _captured(model: torch.nn.Module, given: list[torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM):
            model(*given)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = model(*given)
    return graph, output
