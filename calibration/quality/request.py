"""What a comparison is asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ...runtime.loop.engine import EngineOptions


@dataclass(frozen=True)
class CompareRequest:
    """How to compare; None means A's default. Image i has seed `seed + i` and class i modulo the number of classes."""

    count: int = 64
    batch: int = 16  # images at a time: bounds memory
    seed: int = 0
    sampler: str | None = None
    steps: int | None = None
    guidance: float | None = None
    features: Path | None = None  # .onnx: image -> logits, features
    reference: Path | None = None  # .npz or a folder of pictures, see `reference`
    pictures: int = 8  # of the report
    speed_rounds: int = 15  # 0: the speed is not measured
    speed_batch: int = 1
    options_a: EngineOptions = field(default_factory=EngineOptions)
    options_b: EngineOptions = field(default_factory=EngineOptions)
