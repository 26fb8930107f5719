"""`latents_stats.pt` of LightningDiT's datasets: mean and deviation of each channel of a VAE's latents.

Its networks are trained on (latent - mean) / std * multiplier; the multiplier of its configs is 1.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ...runtime.errors import CheckpointError
from .pickles import load_pickle

STATS_NAME = "latents_stats.pt"


def read_stats(weights: Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """(mean, std) by channel from the file beside a VAE's weights, None where there is none. Raises CheckpointError."""
    path = weights.parent / STATS_NAME
    if not path.is_file():
        return None
    data = load_pickle(path)
    found = []
    for name in ("mean", "std"):
        values = data.get(name) if isinstance(data, dict) else None
        if not isinstance(values, torch.Tensor) or values.numel() != max(values.shape, default=0):
            raise CheckpointError(f"{path}: no tensor '{name}' of one number for each channel: mend it or move it away")
        numbers = values.flatten().double()
        if not torch.isfinite(numbers).all() or (name == "std" and bool((numbers <= 0).any())):
            raise CheckpointError(f"{path}: '{name}' has a number that is not possible: mend it or move it away")
        found.append(tuple(float(number) for number in numbers))
    return found[0], found[1]
