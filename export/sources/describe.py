"""What a checkpoint is, in numbers: for `inspect`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from .read import read_source


def describe_checkpoint(path: Path, heads: int | None = None, weights: str | None = None) -> dict[str, Any]:
    """A JSON-ready summary of a DiT checkpoint or diffusers folder. Raises CheckpointError."""
    checkpoint = read_source(path, heads=heads, weights=weights)
    conditioner = ("t_embedder.", "y_embedder.", "block_embedders.")
    parameters = {"conditioner": 0, "trunk": 0}
    for key, tensor in checkpoint.weights.items():
        part = "conditioner" if key.startswith(conditioner) or "adaLN_modulation" in key else "trunk"
        parameters[part] += tensor.numel()
    return {
        "kind": "checkpoint",
        "file": str(path),
        "sha256": checkpoint.sha256,
        "bytes": sum(file.stat().st_size for file in checkpoint.files),
        "model": asdict(checkpoint.config),
        "notes": dict(note.split(": ", 1) for note in checkpoint.notes),
        "prediction": checkpoint.prediction,
        "schedule": checkpoint.schedule.model_dump() if checkpoint.schedule else None,
        "labels": list(checkpoint.labels),
        "parameters": parameters | {"total": sum(parameters.values())},
    }
