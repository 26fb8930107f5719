"""Reading a trained DiT: facebookresearch/DiT's flat `.pt`, its train.py's `.pt` (the "ema" weights), `.safetensors`.

A checkpoint is untrusted: pickles are read with `weights_only=True` and one class allowed, argparse.Namespace, which
train.py stores its arguments in. Every hyper-parameter but the number of heads is read from the shapes.
"""

from __future__ import annotations

import argparse
import math
import pickle
import re
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..runtime.errors import CheckpointError
from ..runtime.files import sha256_of_file
from ..runtime.manifest import ScheduleInfo
from .network import DiT, DiTConfig, Network, sincos_position_embedding

STANDARD_HEADS = {(384, 12): 6, (768, 12): 12, (1024, 24): 16, (1152, 28): 16}  # (D, L) of DiT-S, B, L, XL
LATENT_FACTOR = 8  # a Stable Diffusion VAE makes one latent pixel of 8 x 8
USUAL_FACTORS = {1: 1, 4: LATENT_FACTOR}  # by channels, where no VAE says it: gray pictures, Stable Diffusion's latents
WRAPPERS = ("module.", "_orig_mod.")  # left in the keys by DistributedDataParallel and torch.compile


@dataclass(frozen=True)
class Checkpoint:
    """A DiT's description and weights, and what else its files say: None or empty where they do not.

    `weights` has exactly the keys and shapes of `DiT(config)`, float32, unless the network is `module`, the user's own.
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
    image_size: int | None = None  # of the pictures it was trained on, in pixels, where that was recorded
    notes: tuple[str, ...] = ()  # what was chosen among several and why, for the user

    def model(self) -> Network:
        """The network with these weights, in eval mode; shares their memory."""
        if self.module is not None:
            return self.module
        with torch.device("meta"):
            model = DiT(self.config)
        model.load_state_dict(self.weights, assign=True)
        return model.eval().requires_grad_(False)


def read_checkpoint(
    path: Path,
    *,
    heads: int | None = None,
    null_class: bool | None = None,
    image_size: int | None = None,
    factor: int | None = None,
) -> Checkpoint:
    """Reads and checks a DiT checkpoint.

    heads: needed for sizes other than S, B, L and XL. null_class: whether the last row of the label table is "no
    class"; None believes train.py's recorded arguments, else yes. image_size: the picture's size in pixels, checked.
    factor: picture pixels per pixel of the network along a side, where it is known: 1, or the VAE's.
    Raises CheckpointError naming the file and the key.
    """
    state, arguments = _state_and_arguments(path)
    try:
        config = _config(state, arguments, heads, null_class, image_size, factor)
        weights = fitted_weights(state, config)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    size = getattr(arguments, "image_size", None)
    recorded = size if isinstance(size, int) and size > 0 else None
    return Checkpoint(config, weights, sha256_of_file(path), (path,), image_size=recorded)


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
    return _state_and_arguments(path)[0]


def _state_and_arguments(path: Path) -> tuple[dict[str, Tensor], argparse.Namespace | None]:
    """The state dict (EMA weights first) and train.py's arguments where the file has them."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist or is not a file")
    data: Any = _load_safetensors(path) if path.suffix == ".safetensors" else _load_pickle(path)
    arguments = data.get("args") if isinstance(data, dict) else None
    if isinstance(data, dict):
        data = next((data[key] for key in ("ema", "model", "state_dict") if isinstance(data.get(key), dict)), data)
    if not isinstance(data, dict) or not any(isinstance(value, Tensor) for value in data.values()):
        raise CheckpointError(f"{path}: holds no state dict of tensors")
    state = {_unwrapped(str(key)): value for key, value in data.items() if isinstance(value, Tensor)}
    return state, arguments if isinstance(arguments, argparse.Namespace) else None


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable .safetensors file, perhaps cut short ({error})") from None


def _load_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of foreign pickles before it refuses them
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap can only be used" not in str(error):
                    raise
                return torch.load(path, map_location="cpu", weights_only=True)  # written before torch 1.6
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise CheckpointError(
                f"{path}: refused, it would run code when read ({refused[1]}); save the state dict alone"
            ) from None
        raise CheckpointError(f"{path}: not a readable PyTorch checkpoint, perhaps cut short") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = str(error).split("\n")[0][:150]
        raise CheckpointError(f"{path}: not a readable PyTorch checkpoint, perhaps cut short ({reason})") from None


def _unwrapped(key: str) -> str:
    for wrapper in WRAPPERS:
        key = key.removeprefix(wrapper)
    return key


def _shape(state: dict[str, Tensor], key: str, dimensions: int) -> tuple[int, ...]:
    if key not in state:
        raise CheckpointError(f"key '{key}' is missing: not a DiT of facebookresearch/DiT's layout")
    if state[key].ndim != dimensions:
        raise CheckpointError(f"key '{key}' has shape {list(state[key].shape)}, expected {dimensions} dimensions")
    return tuple(state[key].shape)


def _config(
    state: dict[str, Tensor],
    arguments: argparse.Namespace | None,
    heads: int | None,
    null_class: bool | None,
    image_size: int | None,
    factor: int | None,
) -> DiTConfig:
    hidden, channels, patch, _ = _shape(state, "x_embedder.proj.weight", 4)
    depth = 1 + max((int(m[1]) for key in state if (m := re.match(r"blocks\.(\d+)\.", key))), default=-1)
    if depth == 0:
        raise CheckpointError("no key starts with 'blocks.': not a DiT of facebookresearch/DiT's layout")
    rows, _ = _shape(state, "y_embedder.embedding_table.weight", 2)
    outputs, odd = divmod(_shape(state, "final_layer.linear.weight", 2)[0], patch * patch)
    if odd or outputs not in (channels, 2 * channels):
        raise CheckpointError(
            f"key 'final_layer.linear.weight' makes {outputs} channels of {channels}: "
            f"expected {channels} or {2 * channels}"
        )
    recorded_classes = getattr(arguments, "num_classes", None)
    if null_class is None:
        null_class = recorded_classes != rows
    if null_class and rows < 2:
        raise CheckpointError("the label table has one row, so there is no null class: give --no-null-class")
    return DiTConfig(
        input_size=_input_size(state, image_size, factor or USUAL_FACTORS.get(channels), patch, hidden),
        patch_size=patch,
        in_channels=channels,
        hidden_size=hidden,
        depth=depth,
        num_heads=checked_heads(heads or getattr(arguments, "num_heads", None), hidden, depth),
        num_classes=rows - int(null_class),
        learn_sigma=outputs == 2 * channels,
        null_class=null_class,
    )


def checked_heads(heads: int | None, hidden: int, depth: int) -> int:
    """The given number of heads, or the standard size's."""
    heads = heads or STANDARD_HEADS.get((hidden, depth))
    if heads is None:
        raise CheckpointError(
            f"width {hidden} with {depth} blocks is not a standard size (S, B, L, XL), and the number of attention "
            "heads cannot be read from the weights: give --heads N"
        )
    if heads < 1 or hidden % heads:
        raise CheckpointError(f"--heads {heads} does not divide the width {hidden}")
    return heads


def _input_size(state: dict[str, Tensor], image_size: int | None, factor: int | None, patch: int, hidden: int) -> int:
    """The latent's side, from pos_embed or, where that was not saved, from the image size."""
    if "pos_embed" not in state:
        if image_size is None:
            raise CheckpointError("key 'pos_embed' is missing, so the size is unknown: give --image-size N")
        if factor is None:
            raise CheckpointError("key 'pos_embed' is missing: give --image-size with --vae FOLDER, or with --pixels")
        if image_size % (factor * patch):
            raise CheckpointError(f"--image-size {image_size} is not a multiple of {factor * patch}")
        return image_size // factor
    tokens = _shape(state, "pos_embed", 3)[1]
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise CheckpointError(f"key 'pos_embed' has {tokens} positions, which is not a square")
    return checked_image_size(side * patch, image_size, factor)


def checked_image_size(size: int, image_size: int | None, factor: int | None) -> int:
    """The latent's side, after the picture's size in pixels was compared where it is given.

    factor: picture pixels per pixel of the network; None: unknown, any multiple may be true.
    """
    if image_size is not None and factor is not None and image_size != size * factor:
        raise CheckpointError(f"--image-size {image_size}: this checkpoint was trained for {size * factor}")
    if image_size is not None and (image_size < size or image_size % size):
        raise CheckpointError(f"--image-size {image_size} is not a multiple of the network's {size} x {size}")
    return size


def fitted_weights(state: dict[str, Tensor], config: DiTConfig) -> dict[str, Tensor]:
    """The weights of a DiT, see `fitted_tensors`; positions that were not saved are computed."""
    state.setdefault("pos_embed", sincos_position_embedding(config))
    with torch.device("meta"):
        expected = DiT(config).state_dict()
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
