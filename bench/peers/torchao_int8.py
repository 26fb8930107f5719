"""TorchAO's dynamic int8 of every linear: activations per token, weights per channel."""

from __future__ import annotations

import torch

from . import Evaluate, Task
from .compiled import make as compiled
from .eager import make as eager


def make(task: Task, variant: str) -> Evaluate:
    """variant: "compiled" or "eager"."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(task.model, Int8DynamicActivationInt8WeightConfig(), _of_blocks)
    return (compiled if variant == "compiled" else eager)(task, "float32")


def _of_blocks(module: torch.nn.Module, name: str) -> bool:
    return isinstance(module, torch.nn.Linear) and name.startswith("blocks.") and "adaLN" not in name
