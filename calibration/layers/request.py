"""What `verify` can be told: golden trajectories, or layer by layer. Imported for its help, so no onnx is."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from ...runtime.errors import RequestError
from ...runtime.loop.verification import VerifyRequest
from ...runtime.options import OPTION, option


@dataclass(frozen=True)
class LayersOptions:
    """How to compare layer by layer."""

    layers: bool = field(
        default=False,
        metadata=option("--layers", help="Instead: compare every tensor of one step with --reference."),
    )
    reference: Path | None = field(
        default=None,
        metadata=option(
            "--reference", help="Layers: the float32 bundle that --engine was made from. [default: its own graphs]"
        ),
    )
    step: int | None = field(
        default=None,
        metadata=option(
            "--step", help="Layers: which step of the trajectory, from 1. [default: the middle]", range=(1, 100_000)
        ),
    )
    tolerance: float | None = field(
        default=None,
        metadata=option("--tolerance", help="Layers: relative error of a tensor. [default: what suits the precision]"),
    )
    page: Path | None = field(
        default=None, metadata=option("--report", help="Layers: write the table and its curve to this HTML page.")
    )


@dataclass(frozen=True)
class VerifyCommand:
    """`verify`: the bundle, the engine, and whether layers are compared."""

    verify: VerifyRequest
    options: LayersOptions = LayersOptions()

    def check(self) -> None:
        """Raises RequestError for options that go together with another, which is missing."""
        given = [
            some.metadata[OPTION].names[0]
            for some in fields(self.options)
            if getattr(self.options, some.name) != some.default
        ]
        if given and not self.options.layers:
            raise RequestError(f"{given[0]} is for --layers: give both, or neither")
        tolerance = self.options.tolerance
        if tolerance is not None and not 0 < tolerance < 1:
            raise RequestError(f"--tolerance {tolerance:g} is not a relative error above 0 and below 1")
