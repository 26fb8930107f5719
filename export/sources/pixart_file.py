"""A PixArt in one file: PixArt's own checkpoints (`PixArt-XL-2-1024-MS.pth`), or a diffusers transformer's weights.

Shapes say its sizes, but for the number of heads of other widths than XL's, and the size of pictures that it was
trained on where positions were not saved.
"""

from __future__ import annotations

import math
import re
import zipfile
from pathlib import Path

from torch import Tensor

from ...runtime.errors import CheckpointError
from ...runtime.files import sha256_of_file
from ..networks.pixart import PixArt, PixArtConfig
from .checkpoint import load_weights
from .config_values import check_none
from .merging import merged
from .pixart_folder import LEFT_OVER, MAX_DEPTH, MAX_WIDTH, RELEASED, TOKENS, pixart_of
from .prompt_checkpoint import PromptCheckpoint, fitted_network
from .shapes import LATENT_FACTOR

OWN_MARK, DIFFUSERS_MARK = "y_embedder.y_proj.fc1.weight", "caption_projection.linear_1.weight"
ADALN = "adaln_single.linear.weight"  # what a PixArt has beside, and a Sana has not
MOST_NAMES = 64 << 20  # bytes of a file's list of names
HEADS_OF_WIDTH = {1152: 16}  # XL, the only size that was released
# PixArt's own names -> diffusers'; blocks come after these.
NAMES = (
    (r"^x_embedder\.proj\.", "pos_embed.proj."),
    (r"^y_embedder\.y_proj\.fc([12])\.", r"caption_projection.linear_\1."),
    (r"^t_block\.1\.", "adaln_single.linear."),
    (r"^final_layer\.linear\.", "proj_out."),
    (r"^final_layer\.scale_shift_table$", "scale_shift_table"),
    (r"^blocks\.(\d{1,4})\.", r"transformer_blocks.\1."),
    (r"\.cross_attn\.q_linear\.", ".attn2.to_q."),
    (r"\.cross_attn\.proj\.", ".attn2.to_out.0."),
    (r"\.attn\.proj\.", ".attn1.to_out.0."),
    (r"\.mlp\.fc1\.", ".ff.net.0.proj."),
    (r"\.mlp\.fc2\.", ".ff.net.2."),
)
EMBEDDERS = {"t_embedder": "timestep", "csize_embedder": "resolution", "ar_embedder": "aspect_ratio"}
FUSED = {"attn.qkv": ("attn1", ("to_q", "to_k", "to_v")), "cross_attn.kv_linear": ("attn2", ("to_k", "to_v"))}


def is_pixart_file(path: Path) -> bool:
    """Whether a file of tensors is a PixArt, by the names in it; nothing is unpickled."""
    names = _names(path)
    return OWN_MARK.encode() in names or (DIFFUSERS_MARK.encode() in names and ADALN.encode() in names)


def _names(path: Path) -> bytes:
    """The part of a file that names its tensors; empty where it is neither .safetensors nor PyTorch's zip."""
    try:
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                return file.read(min(int.from_bytes(file.read(8), "little"), MOST_NAMES))
        if not zipfile.is_zipfile(path):
            return b""
        with zipfile.ZipFile(path) as archive:
            found = next((entry for entry in archive.infolist() if entry.filename.endswith("data.pkl")), None)
            return b"" if found is None or found.file_size > MOST_NAMES else archive.read(found)
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile):
        return b""  # whoever reads it says so


def read_pixart_file(path: Path, heads: int | None = None, image_size: int | None = None) -> PromptCheckpoint:
    """heads, image_size (of training, in pixels): where the file does not say them. Raises CheckpointError."""
    loaded = load_weights(path)
    try:
        tokens = (
            loaded.tensors["y_embedder.y_embedding"].shape[0] if "y_embedder.y_embedding" in loaded.tensors else None
        )
        positions = loaded.tensors.get("pos_embed")
        tensors = diffusers_names(loaded.tensors) if OWN_MARK in loaded.tensors else loaded.tensors
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    tensors = merged({key: value for key, value in tensors.items() if key not in LEFT_OVER})
    try:
        config = _config(tensors, _side(tensors, positions, image_size), heads, tokens)
        weights = fitted_network(tensors, lambda: PixArt(config), "PixArt")
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    said = "as its file says" if tokens is not None else "assumed: the file does not say it"
    notes = (
        f"weights: {loaded.sentence}",
        f"text: {config.tokens} tokens of a prompt, positions {config.interpolation_scale:g} times those of 256 "
        f"pixels apart ({said})",
        "predicts: epsilon (as every PixArt that was released)",
    )
    return pixart_of(config, weights, sha256_of_file(path), path, RELEASED, notes)


def diffusers_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint of PixArt-alpha's or -sigma's training code under diffusers' names; positions are left out.

    As diffusers' scripts/convert_pixart_sigma_to_diffusers.py has it. Keys that it does not know stay what they are.
    """
    found: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if key in ("pos_embed", "y_embedder.y_embedding"):
            continue
        fused = re.fullmatch(r"blocks\.(\d{1,4})\.(attn\.qkv|cross_attn\.kv_linear)\.(weight|bias)", key)
        if fused is not None:
            attention, parts = FUSED[fused[2]]
            if value.ndim == 0 or value.shape[0] % len(parts):
                raise CheckpointError(f"key '{key}' has shape {list(value.shape)}, not {len(parts)} parts of one size")
            for part, rows in zip(parts, value.chunk(len(parts)), strict=True):
                found[f"transformer_blocks.{fused[1]}.{attention}.{part}.{fused[3]}"] = rows
        else:
            found[_renamed(key)] = value
    return found


def _renamed(key: str) -> str:
    embedder = re.fullmatch(r"(t_embedder|csize_embedder|ar_embedder)\.mlp\.([02])\.(weight|bias)", key)
    if embedder is not None:
        layer = 1 if embedder[2] == "0" else 2
        return f"adaln_single.emb.{EMBEDDERS[embedder[1]]}_embedder.linear_{layer}.{embedder[3]}"
    for pattern, name in NAMES:
        key = re.sub(pattern, name, key)
    return key


def _shape(tensors: dict[str, Tensor], key: str, rank: int) -> tuple[int, ...]:
    if key not in tensors:
        raise CheckpointError(f"key '{key}' is missing: not a PixArt, perhaps cut short")
    if tensors[key].ndim != rank or 0 in tensors[key].shape:
        raise CheckpointError(f"key '{key}' has shape {list(tensors[key].shape)}, expected one of {rank} sizes")
    return tuple(tensors[key].shape)


def _side(tensors: dict[str, Tensor], positions: Tensor | None, image_size: int | None) -> int:
    """H = W of the latents of training: what positions or the user say."""
    patch = _shape(tensors, "pos_embed.proj.weight", 4)[2]
    saved = None
    if positions is not None and positions.ndim == 3:
        saved = math.isqrt(positions.shape[1]) * patch
    if image_size is None and saved is None:
        raise CheckpointError("the file does not say the size of pictures it was trained on: give --image-size")
    if image_size is not None and (image_size % LATENT_FACTOR or saved not in (None, image_size // LATENT_FACTOR)):
        told = (
            f", the file has positions of {saved * LATENT_FACTOR}"
            if saved is not None
            else f": not {LATENT_FACTOR} times"
        )
        raise CheckpointError(f"--image-size {image_size} is not its size of training{told}")
    return saved if saved is not None else int(image_size or 0) // LATENT_FACTOR


def _config(tensors: dict[str, Tensor], side: int, heads: int | None, tokens: int | None) -> PixArtConfig:
    width, channels, patch, _ = _shape(tensors, "pos_embed.proj.weight", 4)
    outputs, told = (
        _shape(tensors, "proj_out.weight", 2)[0] // patch**2,
        "adaln_single.emb.resolution_embedder.linear_1.weight",
    )
    depth = 1 + max(
        (int(m[1]) for key in tensors if (m := re.match(r"transformer_blocks\.(\d{1,4})\.", key))), default=-1
    )
    heads = heads or HEADS_OF_WIDTH.get(width)
    if heads is None:
        raise CheckpointError(f"the file does not say how many heads its width of {width} has: give --heads")
    problems = {
        f"--heads {heads} does not divide the width {width}": width % heads,
        f"the width {width} is not a multiple of 4 of at most {MAX_WIDTH}": width % 4 or width > MAX_WIDTH,
        f"it has {depth} blocks: 1 to {MAX_DEPTH} are read": not 1 <= depth <= MAX_DEPTH,
        f"its output has {outputs} channels: expected {channels} or {2 * channels}": outputs
        not in (channels, 2 * channels),
        f"latents of {side} are not a multiple of its patch {patch}": side % patch or side < patch,
    }
    check_none(problems)
    alpha = tokens == min(TOKENS.values()) or (tokens is None and told in tensors)
    return PixArtConfig(
        sample_size=side,
        patch_size=patch,
        in_channels=channels,
        out_channels=outputs,
        num_heads=heads,
        head_size=width // heads,
        depth=depth,
        caption_channels=_shape(tensors, "caption_projection.linear_1.weight", 2)[1],
        interpolation_scale=float(max(side // 64, 1)) if alpha else side / 64,  # Sigma's 256 pixels have 0.5
        told_size=told in tensors,
        tokens=tokens or (min(TOKENS.values()) if alpha else max(TOKENS.values())),
    )
