"""ExecuTorch: the whole network lowered to XNNPACK, run by its Python binding."""

from __future__ import annotations

import torch

from . import Evaluate, Output, Task


def make(task: Task, variant: str) -> Evaluate:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    with torch.no_grad():
        exported = torch.export.export(task.model, task.inputs, strict=False)
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    path = task.folder / "whole.pte"
    with path.open("wb") as file:
        lowered.write_to_file(file)
    program = Runtime.get().load_program(path)
    method, given = program.load_method("forward"), list(task.inputs)

    def evaluate() -> Output:
        return method.execute(given)[0]

    evaluate.program = program  # type: ignore[attr-defined]  # the method reads on in it
    return evaluate
