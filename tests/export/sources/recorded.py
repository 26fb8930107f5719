"""What repositories' own modules computed (tests/golden), as checkpoints and as noise of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from ditedge.runtime import generate, open_bundle
from ditedge.runtime.loop.noise import GivenNoise
from ditedge.runtime.loop.verify import relative_error
from tests.conftest import GOLDEN


@dataclass(frozen=True)
class Recorded:
    """One network of a golden folder; tensors by their names without `kind.`."""

    tensors: dict[str, Tensor]

    @property
    def state(self) -> dict[str, Tensor]:
        """Its state dict, float32; buffers of indices as they are."""
        found = {
            key.removeprefix("weights."): value for key, value in self.tensors.items() if key.startswith("weights.")
        }
        return {key: value.float() if value.is_floating_point() else value.long() for key, value in found.items()}

    def network_error(self, model: object) -> float:
        x, t, y, theirs = (self.tensors[name] for name in ("x", "t", "y", "output"))
        return relative_error(model.trunk(x, model.conditioner(t, y)).numpy(), theirs.numpy())  # type: ignore[attr-defined]

    def sampled(self, folder: Path, program: str, guidance: float, noise: Tensor | None = None) -> np.ndarray:
        """Latents of the recorded labels from the recorded z."""
        bundle = open_bundle(folder)
        z = self.tensors["z"].numpy()
        steps = bundle.program(program).steps
        drawn = noise.numpy() if noise is not None else np.zeros((steps, *z.shape), np.float32)
        labels = self.tensors["labels"].tolist()
        return generate(
            bundle, labels, [0, 0], program=bundle.program(program), guidance=guidance,
            noise=GivenNoise(z, drawn), output="latents",
        )  # fmt: skip


def recorded(folder: str, kind: str = "") -> Recorded:
    tensors = load_file(GOLDEN / folder / "recorded.safetensors")
    start = f"{kind}." if kind else ""
    return Recorded({key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)})


def saved(path: Path, state: dict[str, Tensor], settings: dict[str, object] | None, key: str = "config") -> Path:
    """As training scripts save it: the raw weights, which are not to be taken, beside the average."""
    raw = {name: torch.zeros_like(value) for name, value in state.items()}
    content = {"model": raw, "ema": state, "opt": {}} | ({key: settings} if settings is not None else {})
    torch.save(content, path)
    return path
