"""Proof of parity: replay a bundle's golden trajectories, recorded from PyTorch, on the engine at hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .bundle import Bundle
from .errors import BundleError
from .manifest import GoldenInfo
from .sampler import GivenNoise, Sampler, StepEvent

# Relative error that no bundle may have, whatever its manifest allows. Other seeds of the demo model end 0.45 apart, so
# more than this is nearer to another picture; int4, the coarsest form, is allowed 0.27 there.
LARGEST_ERROR = 0.35


@dataclass(frozen=True)
class Replay:
    """One replayed trajectory. error: relative error at each step, ||x - golden|| / ||golden||."""

    golden: GoldenInfo
    timestep: np.ndarray  # [N]
    error: np.ndarray  # [N] float64

    @property
    def allowed(self) -> float:
        return min(self.golden.tolerance, LARGEST_ERROR)

    @property
    def passed(self) -> bool:
        return bool(np.all(self.error <= self.allowed))  # False for NaN, too


def read_golden(path: Path) -> dict[str, np.ndarray]:
    """z [B,C,H,W], noise [N,B,C,H,W], x [N,B,C,H,W] float32, y [B] int64. Raises BundleError."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise BundleError(f"{path}: not a readable golden file ({error})") from None
    missing = {"z", "noise", "x", "y"} - set(tensors)
    if missing:
        raise BundleError(f"{path}: tensor '{sorted(missing)[0]}' is missing")
    return tensors


def replay(sampler: Sampler, golden: GoldenInfo, on_step: Callable[[StepEvent], None] | None = None) -> Replay:
    """Runs a golden trajectory through the graphs and the loop, and compares every step."""
    bundle: Bundle = sampler.bundle
    tensors = read_golden(bundle.file(golden.file))
    program = bundle.program(golden.program)
    if len(tensors["x"]) != program.steps:
        raise BundleError(f"{golden.file}: {len(tensors['x'])} steps, program {program.name} has {program.steps}")
    errors: list[float] = []

    def compare(event: StepEvent) -> None:
        errors.append(relative_error(event.latents, tensors["x"][event.step - 1]))
        if on_step is not None:
            on_step(event)

    noise = GivenNoise(tensors["z"], tensors["noise"])
    sampler.latents(program, tensors["y"].tolist(), golden.guidance, noise, on_step=compare)
    return Replay(golden, program.timestep, np.array(errors))


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    """||a - b|| / ||b|| in float64."""
    return float(np.linalg.norm(np.float64(a) - np.float64(b)) / np.linalg.norm(np.float64(b)))
