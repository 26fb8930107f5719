"""A DiT's hyper-parameters: from the shapes of its weights, then from what its training run wrote down.

The shapes say all but the number of heads and whether the label table ends with "no class". A setting that contradicts
them is refused, since then it belongs to another network.
"""

from __future__ import annotations

import math
import re
from typing import Any

from torch import Tensor

from ...runtime.errors import CheckpointError
from ..networks.dit import DiTConfig
from .asked import Asked
from .settings import Settings

LATENT_FACTOR = 8  # a Stable Diffusion VAE makes one latent pixel of 8 x 8
USUAL_FACTORS = {1: 1, 4: LATENT_FACTOR}  # by channels, where no VAE says it: gray pictures, Stable Diffusion's latents
MAX_TOKENS = 1 << 16  # 4,096 pixels at patch 2: attention of more does not fit any memory
MAX_WIDTH = 1 << 16
MAX_MLP_RATIO = 1024  # of the manifest
STANDARD_SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}  # D, L, heads


def config_from_shapes(state: dict[str, Tensor], settings: Settings, asked: Asked) -> tuple[DiTConfig, str]:
    """The hyper-parameters of a state dict, and the sentence that says what else than shapes they come from.

    Only shapes are looked at. Raises CheckpointError naming the key, or the setting with both values.
    """
    hidden, channels, patch, _ = _shape(state, "x_embedder.proj.weight", 4)
    depth = _depth(state)
    rows, _ = _shape(state, "y_embedder.embedding_table.weight", 2)
    mlp, _ = _shape(state, "blocks.0.mlp.fc1.weight", 2) if "blocks.0.mlp.fc1.weight" in state else (4 * hidden, hidden)
    sinusoid = _shape(state, "t_embedder.mlp.0.weight", 2)[1] if "t_embedder.mlp.0.weight" in state else 256
    if hidden % 4 or hidden > MAX_WIDTH or sinusoid % 2 or mlp >= MAX_MLP_RATIO * hidden:
        raise CheckpointError(
            f"width {hidden}, an MLP of {mlp} and a sinusoid of {sinusoid} channels are not those of a DiT"
        )
    outputs, odd = divmod(_shape(state, "final_layer.linear.weight", 2)[0], patch * patch)
    if odd or outputs not in (channels, 2 * channels):
        raise CheckpointError(
            f"key 'final_layer.linear.weight' makes {outputs} channels of {channels}: "
            f"expected {channels} or {2 * channels}"
        )
    factor = asked.factor or USUAL_FACTORS.get(channels)
    size = _input_size(state, asked.image_size, settings, factor, patch)
    actual: dict[str, Any] = {
        "hidden_size": hidden, "depth": depth, "patch_size": patch, "in_channels": channels, "input_size": size,
        "learn_sigma": outputs == 2 * channels, "qk_norm": "blocks.0.attn.q_norm.weight" in state,
    }  # fmt: skip
    sure = asked.factor or (factor if channels == 4 else None)  # one channel may be a VAE's latents, too
    _check_settings(settings, actual, rows, mlp, sure)
    heads, why_heads = _heads(asked.heads, settings, hidden, depth)
    null_class, why_null = _null_class(asked.null_class, settings, rows)
    config = DiTConfig(
        input_size=size,
        patch_size=patch,
        in_channels=channels,
        hidden_size=hidden,
        depth=depth,
        num_heads=heads,
        num_classes=rows - int(null_class),
        learn_sigma=outputs == 2 * channels,
        null_class=null_class,
        frequency_divisor=sinusoid // 2,
        mlp_ratio=mlp / hidden,
        timestep_channels=sinusoid,
        qk_norm=bool(actual["qk_norm"]),
    )
    null = "and no class" if null_class else "without a null class"
    return config, f"{heads} heads ({why_heads}), {config.num_classes} classes {null} ({why_null})"


def _shape(state: dict[str, Tensor], key: str, dimensions: int) -> tuple[int, ...]:
    if key not in state:
        raise CheckpointError(f"key '{key}' is missing: not a DiT of facebookresearch/DiT's layout")
    shape = tuple(state[key].shape)
    if len(shape) != dimensions or 0 in shape:
        raise CheckpointError(f"key '{key}' has shape {list(shape)}, expected {dimensions} dimensions of at least 1")
    return shape


def _depth(state: dict[str, Tensor]) -> int:
    """L: the blocks are counted, so that one key `blocks.3000000.` is not a network of three million."""
    blocks = {match[1] for key in state if (match := re.match(r"blocks\.(\d+)\.", key))}
    if not blocks:
        raise CheckpointError("no key starts with 'blocks.': not a DiT of facebookresearch/DiT's layout")
    missing = next((i for i in range(len(blocks)) if str(i) not in blocks), None)
    if missing is not None:
        last = max(blocks, key=lambda block: (len(block), block))
        raise CheckpointError(f"no key starts with 'blocks.{missing}.', though there is a 'blocks.{last[:20]}.'")
    return len(blocks)


def _input_size(
    state: dict[str, Tensor], image_size: int | None, settings: Settings, factor: int | None, patch: int
) -> int:
    """The latent's side, from pos_embed or, where that was not saved, from the image size."""
    if "pos_embed" in state:
        tokens = _shape(state, "pos_embed", 3)[1]
        side = math.isqrt(tokens)
        if side * side != tokens or tokens > MAX_TOKENS:
            raise CheckpointError(
                f"key 'pos_embed' has {tokens} positions, which is not a square of at most {MAX_TOKENS}"
            )
        return checked_image_size(side * patch, image_size, factor)
    said = f"--image-size {image_size}"
    if image_size is None:
        if "image_size" not in settings.values:
            raise CheckpointError("key 'pos_embed' is missing, so the size is unknown: give --image-size N")
        image_size, said = settings.values["image_size"], settings.said("image_size")
    if factor is None:
        raise CheckpointError("key 'pos_embed' is missing: give --image-size with --vae FOLDER, or with --pixels")
    step = factor * patch
    if image_size % step or not 0 < image_size // step <= math.isqrt(MAX_TOKENS):
        raise CheckpointError(f"{said} is not a multiple of {step} of at most {math.isqrt(MAX_TOKENS) * step}")
    return image_size // factor


def checked_image_size(size: int, image_size: int | None, factor: int | None) -> int:
    """The latent's side, after the picture's size in pixels was compared where it is given.

    factor: picture pixels per pixel of the network; None: unknown, any multiple may be true.
    """
    if image_size is not None and factor is not None and image_size != size * factor:
        raise CheckpointError(f"--image-size {image_size}: this checkpoint was trained for {size * factor}")
    if image_size is not None and (image_size < size or image_size % size):
        raise CheckpointError(f"--image-size {image_size} is not a multiple of the network's {size} x {size}")
    return size


def checked_heads(heads: int, hidden: int, said: str) -> int:
    """The number of heads, when it divides the width. said: how the message names it."""
    if heads < 1 or hidden % heads:
        raise CheckpointError(f"{said} does not divide the width {hidden}")
    return heads


def _heads(heads: int | None, settings: Settings, hidden: int, depth: int) -> tuple[int, str]:
    """The number of heads and who said it."""
    if heads is not None:
        return checked_heads(heads, hidden, f"--heads {heads}"), "--heads"
    if "num_heads" in settings.values:
        said = settings.said("num_heads")
        return checked_heads(settings.values["num_heads"], hidden, said), said
    for name, (width, blocks, standard) in STANDARD_SIZES.items():
        if (width, blocks) == (hidden, depth):
            return standard, f"the standard size {name}"
    raise CheckpointError(
        f"width {hidden} with {depth} blocks is not a standard size (S, B, L, XL), and the number of attention "
        "heads cannot be read from the weights: give --heads N"
    )


def _null_class(null_class: bool | None, settings: Settings, rows: int) -> tuple[bool, str]:
    """Whether the last row of the label table is "no class", and who said it."""
    why = "--null-class" if null_class else "--no-null-class"
    if null_class is None and "num_classes" in settings.values:
        null_class, why = settings.values["num_classes"] != rows, settings.said("num_classes")
    elif null_class is None and "class_dropout_prob" in settings.values:
        null_class, why = settings.values["class_dropout_prob"] > 0, settings.said("class_dropout_prob")
    elif null_class is None:
        null_class, why = True, "assumed: nothing says otherwise"
    if null_class and rows < 2:
        raise CheckpointError("the label table has one row, so there is no null class: give --no-null-class")
    return null_class, why


def _check_settings(settings: Settings, actual: dict[str, Any], rows: int, mlp: int, factor: int | None) -> None:
    """Raises CheckpointError for the first setting that contradicts the shapes, with both values."""
    values, hidden = settings.values, actual["hidden_size"]
    shapes: dict[str, tuple[bool, Any]] = {
        name: (values.get(name, value) == value, value) for name, value in actual.items()
    }
    classes = values.get("num_classes", rows)
    shapes["num_classes"] = (classes in (rows, rows - 1), f"{rows}, or {rows - 1} and a null class")
    ratio = values.get("mlp_ratio")
    shapes["mlp_ratio"] = (ratio is None or int(ratio * hidden) == mlp, mlp / hidden)
    image, side = values.get("image_size", 0), actual["input_size"]
    fits = image % side == 0 if factor is None else image in (0, side, side * factor)
    shapes["image_size"] = (fits, side * (factor or 1))
    for name, (agrees, value) in shapes.items():
        if not agrees:
            raise CheckpointError(
                f"{settings.said(name)} contradicts the weights, whose shapes say {value}: these settings are of "
                "another network; save the state dict alone, or move the settings' file away"
            )
