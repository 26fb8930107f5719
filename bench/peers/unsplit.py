"""The whole network as one ONNX graph, as torch.onnx.export makes it: what one would do without ditedge."""

from __future__ import annotations

from pathlib import Path

import torch

from . import Task

NAMES = ("x", "timestep", "label")


def unsplit_onnx(task: Task) -> Path:
    """Exported once into the task's folder; peers that come later find it."""
    path = task.folder / "unsplit.onnx"
    if not path.exists():
        batch = torch.export.Dim.DYNAMIC
        program = torch.onnx.export(
            task.model, task.inputs, dynamo=True, input_names=list(NAMES), output_names=["output"],
            dynamic_shapes=tuple({0: batch} for _ in NAMES), verbose=False,
        )  # fmt: skip
        made = task.folder / "unsplit-made.onnx"
        program.save(str(made), external_data=True)
        made.rename(path)  # its weights' file keeps its name
    return path


def feed(task: Task) -> dict[str, object]:
    """The task's inputs by name, as arrays."""
    return {name: tensor.cpu().numpy() for name, tensor in zip(NAMES, task.inputs, strict=True)}
