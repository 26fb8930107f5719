"""What `ditedge schedule` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ...runtime.options import option


@dataclass(frozen=True)
class ScheduleRequest:
    """A diffusers scheduler to compile into a program of so many steps."""

    source: Path = field(metadata=option("--from", help="A diffusers scheduler_config.json."))
    steps: int = field(metadata=option("--steps", help="Inference steps.", range=(1, 1000)))
    out: Path = field(metadata=option("-o", "--out", help="Program file to write."))
    eta: float | None = field(
        default=None, metadata=option("--eta", help="Given to every step, for the schedulers that take it (DDIM).")
    )
