"""LoRAs, merged into the weights of the network that is read next: W + weight * scale * up @ down, in float32.

What reads a source has only to give its state dict to `merged` before it renames anything: keys are then those that the
LoRA was trained on (diffusers', facebookresearch/DiT's, a network's own), whatever the family.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ...runtime.errors import CheckpointError, RequestError
from .tensor_tree import listed

PREFIXES = ("base_model.model.", "transformer.", "unet.", "model.", "module.")  # before the names of modules


@dataclass(frozen=True)
class Layer:
    """down: [r, in] or [r, in, kh, kw]; up: [out, r] or [out, r, 1, 1]. scale: alpha / r."""

    key: str  # of `down` in the file, for messages
    down: Tensor
    up: Tensor
    scale: float


@dataclass(frozen=True)
class Lora:
    path: Path
    weight: float
    sha256: str  # of the files that say what is added
    layers: Mapping[str, Layer]  # by the name that the file has for the module

    @property
    def sentence(self) -> str:
        ranks = sorted({len(layer.down) for layer in self.layers.values()})
        rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
        return f"lora: {self.path}, weight {self.weight:g}, {len(self.layers)} layers of {rank}"


@dataclass
class _Asked:
    loras: Sequence[Lora]
    used: bool = field(default=False)


_ASKED: ContextVar[_Asked | None] = ContextVar("loras", default=None)


@contextmanager
def merging(loras: Sequence[Lora]) -> Iterator[None]:
    """The network that is read within has them in its weights. Raises RequestError where none was."""
    asked = _Asked(loras)
    token = _ASKED.set(asked)
    try:
        yield
    finally:
        _ASKED.reset(token)
    if loras and not asked.used:
        raise RequestError(f"--lora {loras[0].path}: what is exported here takes none")


def merged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's state dict as its file has it, with the LoRAs that were asked for, if any. Raises CheckpointError."""
    asked, weights = _ASKED.get(), dict(tensors)
    if asked is not None:
        asked.used = True
        for lora in asked.loras:
            _add(lora, weights)
    return weights


def sha256_with(source: str, loras: Sequence[Lora]) -> str:
    """Of a bundle's source: the checkpoint's hash; with LoRAs one of the lines "hash" and "hash  weight" of each."""
    if not loras:
        return source
    lines = [f"{source}\n", *(f"{lora.sha256}  {lora.weight!r}\n" for lora in loras)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _add(lora: Lora, weights: dict[str, Tensor]) -> None:
    places = {key.removesuffix(".weight"): key for key in weights if key.endswith(".weight")}
    joined = {name.replace(".", "_"): key for name, key in places.items()}  # as kohya-ss' scripts write names
    found = {name: _place(name, places) or joined.get(name) for name in lora.layers}
    missing = [lora.layers[name].key for name, key in found.items() if key is None]
    if len(missing) == len(found):
        raise CheckpointError(f"{lora.path} is a LoRA of another model: nothing here fits {listed(missing)}")
    if missing:
        raise CheckpointError(f"{lora.path}: nothing in the model fits {listed(missing)}")
    for name, layer in lora.layers.items():
        key = str(found[name])
        weights[key] = _sum(lora, layer, key, weights[key])


def _place(name: str, places: Mapping[str, str]) -> str | None:
    """The key of the weight of a module, whatever stands before its name."""
    while name not in places:
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
        if prefix is None:
            return None
        name = name.removeprefix(prefix)
    return places[name]


def _sum(lora: Lora, layer: Layer, key: str, weight: Tensor) -> Tensor:
    down, up = layer.down.float().flatten(1), layer.up.float().flatten(1)
    shape = (weight.shape[0], weight[0].numel()) if weight.ndim > 1 else (0, 0)
    if (up.shape[0], down.shape[1]) != shape or up.shape[1] != down.shape[0]:
        shapes = f"has shape {list(layer.down.shape)} and its other half {list(layer.up.shape)}"
        fits = f"which do not fit '{key}', {list(weight.shape)}"
        raise CheckpointError(f"{lora.path} is a LoRA of another model: key '{layer.key}' {shapes}, {fits}")
    total = weight.float() + lora.weight * layer.scale * (up @ down).reshape(weight.shape)
    if not total.isfinite().all():
        raise CheckpointError(f"{lora.path}: key '{layer.key}' makes numbers of '{key}' that are not finite")
    return total
