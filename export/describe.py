"""What a checkpoint is, in numbers: for `inspect`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from .checkpoint import read_checkpoint


def describe_checkpoint(path: Path, heads: int | None = None) -> dict[str, Any]:
    """A JSON-ready summary of a DiT checkpoint. Raises CheckpointError."""
    checkpoint = read_checkpoint(path, heads=heads)
    conditioner = ("t_embedder.", "y_embedder.")
    parameters = {"conditioner": 0, "trunk": 0}
    for key, tensor in checkpoint.weights.items():
        part = "conditioner" if key.startswith(conditioner) or "adaLN_modulation" in key else "trunk"
        parameters[part] += tensor.numel()
    return {
        "kind": "checkpoint",
        "file": str(path),
        "sha256": checkpoint.sha256,
        "bytes": path.stat().st_size,
        "model": asdict(checkpoint.config),
        "parameters": parameters | {"total": sum(parameters.values())},
    }
