"""Reading a trained DiT: what facebookresearch/DiT and its descendants save, as `.pt`, `.ckpt` or `.safetensors`.

A checkpoint is untrusted: no code in it is run (pickles.py), and no memory taken before its sizes were compared with
the file's. Which weights it means is containers.py's, what its run wrote down settings.py's, the rest is in the shapes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...runtime.errors import CheckpointError
from ...runtime.files import sha256_of_file
from ...runtime.samplers.schedule import ScheduleInfo
from ..networks.dit import DiTConfig, Network, sincos_position_embedding
from ..networks.registry import network_of
from .asked import Asked
from .containers import Weights, any_weights, dit_weights
from .layouts import described
from .merging import merged
from .pickles import load_pickle
from .settings import Settings, read_settings


@dataclass(frozen=True)
class Checkpoint:
    """A DiT's description and weights, and what else its files say: None or empty where they do not.

    `weights` has exactly the keys and shapes of `network_of(config)`, float32, unless the network is `module`, the
    user's own.
    """

    config: DiTConfig
    weights: dict[str, Tensor]
    sha256: str  # of the file, or of a folder's files
    files: tuple[Path, ...] = ()  # what was read
    module: Network | None = None
    labels: tuple[str, ...] = ()
    schedule: ScheduleInfo | None = None
    prediction: str | None = None
    guided_channels: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)  # settings of `make_program`
    guidance: float | None = None  # that its training's scripts sample with
    settings: Settings = Settings()  # what the training run wrote down
    image_size: int | None = None  # of the pictures it was trained on, in pixels, where that was recorded
    notes: tuple[str, ...] = ()  # "what: why" for the user: which weights, and whence what no shape tells

    def model(self) -> Network:
        """The network with these weights, in eval mode; shares their memory."""
        if self.module is not None:
            return self.module
        with torch.device("meta"):
            model = network_of(self.config)
        model.load_state_dict(self.weights, assign=True)
        return model.eval().requires_grad_(False)


def read(path: Path, asked: Asked) -> Checkpoint:
    """Reads and checks a DiT checkpoint; heads are asked for where neither the file nor its run's settings say them.

    Raises CheckpointError naming the file and the key.
    """
    return checkpoint_of(read_file(path), path, asked)


def checkpoint_of(data: Any, path: Path, asked: Asked) -> Checkpoint:
    """The DiT in what the file `path` holds: a state dict, or dicts with some and with settings. Raises as `read`."""
    settings = read_settings(data, path)
    try:
        found = dit_weights(data, path.stat().st_size, asked.weights)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    tensors = merged(found.tensors)
    try:
        family = described(tensors, settings, asked)
        fitted = fitted_weights(family.tensors, family.config)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return Checkpoint(
        family.config,
        fitted,
        sha256_of_file(path),
        (path,),
        prediction=family.prediction,
        guided_channels=family.guided_channels,
        sampling=family.sampling,
        guidance=family.guidance,
        settings=settings,
        image_size=settings.values.get("image_size"),
        notes=(f"weights: {found.sentence}", f"settings: {family.said}", *family.notes),
    )


def without_variance(checkpoint: Checkpoint) -> Checkpoint:
    """The same network without its last C output channels: SiT has them from DiT and uses the first C only."""
    config = checkpoint.config
    if not config.learn_sigma or checkpoint.module is not None:
        return checkpoint
    weights = dict(checkpoint.weights)
    for key in ("final_layer.linear.weight", "final_layer.linear.bias"):
        pixels = weights[key].unflatten(0, (config.patch_size**2, config.out_channels))  # a row per (p, q, channel)
        weights[key] = pixels[:, : config.in_channels].flatten(0, 1).contiguous()
    return replace(checkpoint, config=replace(config, learn_sigma=False), weights=weights)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict of a .safetensors or PyTorch file, EMA weights first. Runs no code. Raises CheckpointError."""
    return load_weights(path).tensors


def load_weights(path: Path) -> Weights:
    """The state dict of any network with the sentence that says which it is. Raises CheckpointError."""
    data = read_file(path)
    try:
        return any_weights(data, path.stat().st_size)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def read_file(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist or is not a file")
    return _load_safetensors(path) if path.suffix == ".safetensors" else load_pickle(path)


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a readable .safetensors file, perhaps cut short ({error})") from None


def fitted_weights(state: dict[str, Tensor], config: DiTConfig) -> dict[str, Tensor]:
    """The weights of a DiT, see `fitted_tensors`; positions that were not saved are computed."""
    with torch.device("meta"):
        expected = network_of(config).state_dict()
    if "pos_embed" in expected:
        state.setdefault("pos_embed", sincos_position_embedding(config))
    return fitted_tensors(state, expected, "a DiT")


def fitted_tensors(state: dict[str, Tensor], expected: dict[str, Tensor], what: str) -> dict[str, Tensor]:
    """The tensors as float32, after every key, shape and number was checked; reports all misfits at once.

    expected: keys and shapes, may be on "meta". what: whose they are, for the message. Raises CheckpointError.
    """
    problems = [problem for key in expected if (problem := misfit(state, key, tuple(expected[key].shape)))]
    raise_misfits(problems + [f"key '{key}' is not part of {what}" for key in state if key not in expected])
    return {key: state[key].float().contiguous() for key in expected}


def misfit(state: dict[str, Tensor], key: str, shape: tuple[int, ...]) -> str | None:
    """What is wrong with one tensor of a state dict, None when it fits."""
    if key not in state:
        return f"key '{key}' is missing"
    if tuple(state[key].shape) != shape:
        return f"key '{key}' has shape {list(state[key].shape)}, expected {list(shape)}"
    if not state[key].is_floating_point():
        return f"key '{key}' has type {state[key].dtype}, expected floating point"
    if not torch.isfinite(state[key]).all():
        return f"key '{key}' has numbers that are not finite"
    return None


def raise_misfits(problems: list[str]) -> None:
    """Raises CheckpointError with the first three problems and the number of the others; nothing when there is none."""
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise CheckpointError("; ".join(problems[:3]) + more)
