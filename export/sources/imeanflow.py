"""Improved MeanFlow's checkpoints: the state dict of Lyy-iiis/imeanflow's branch torch (docs/sources.md).

Known by `omega_tokens`. Its files say no settings: the heads are in the shapes, latents are taken to be 32 x 32,
and guidance and its times for those that its README gives for the released sizes.
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor

from ...runtime.errors import CheckpointError
from ..networks.imeanflow import CONDITIONS, ImprovedConfig
from .asked import Asked
from .family import Described, left_out
from .settings import Settings
from .shapes import config_from_shapes

KEY, NORM = "omega_tokens", "blocks.0.attn.q_norm.weight"
WRAPPERS = ("._flax_linear.", "._flax_embedding.")
UNSAMPLED = ("v_heads.", "v_final_layer.", "rope_freqs")
SIDE = 32  # of latents of 256 x 256 pixels, the only size that was released
# (depth, width) of iMF-B/2, -M/2, -L/2 and -XL/2 -> guidance and the times between which it acts, of one evaluation
RELEASED = {
    (12, 768): (8.0, (0.4, 0.65)),
    (24, 768): (10.5, (0.4, 0.6)),
    (32, 1024): (10.5, (0.4, 0.6)),
    (48, 1024): (8.0, (0.42, 0.62)),
}
OTHER = (8.0, (0.4, 0.65))


def read(state: dict[str, Tensor], settings: Settings, asked: Asked) -> Described | None:
    """None where the keys are another family's. Raises CheckpointError naming the key, or the setting."""
    if KEY not in state:
        return None
    sampled, dropped = left_out(state, *UNSAMPLED)
    before = _shared(sampled)
    tensors = {_renamed(key, before): value for key, value in sampled.items()}
    heads = _heads(tensors) if asked.heads is None else asked.heads
    config, said = config_from_shapes(_like_dit(tensors, asked), settings, replace(asked, heads=heads, null_class=True))
    if config.learn_sigma:
        raise CheckpointError("key 'u_final_layer.linear.weight': improved MeanFlow with a variance is not supported")
    guidance, times = RELEASED.get((config.depth, config.hidden_size), OTHER)
    return Described(
        tensors,
        ImprovedConfig(
            **vars(replace(config, qk_norm=False, null_class=True)),
            tokens_of=tuple(_rows(tensors, f"{name}_tokens") for name in CONDITIONS),
            guided=times,
        ),
        said.replace("--heads", "the width of q_norm") if asked.heads is None else said,
        prediction="mean-flow",
        guided_channels=config.in_channels,
        guidance=guidance,
        notes=_notes(dropped, guidance, times, asked),
    )


def _notes(dropped: int, guidance: float, times: tuple[float, float], asked: Asked) -> tuple[str, ...]:
    between = f"{times[0]:g} to {times[1]:g}"
    notes = [f"guidance: {guidance:g} where t is {between}, which the network is told (of its README, one evaluation)"]
    if asked.image_size is None:
        notes.append(f"size: latents of {SIDE} x {SIDE} (assumed: no shape says it; --image-size N says another)")
    return (*notes, *([f"left out: {dropped:,} parameters that only training uses"] if dropped else []))


def _shared(state: dict[str, Tensor]) -> int:
    """How many blocks come before the head's."""
    return len({key.split(".")[1] for key in state if key.startswith("shared_blocks.")})


def _renamed(key: str, before: int) -> str:
    for wrapper in WRAPPERS:
        key = key.replace(wrapper, ".")
    key = re.sub(r"^shared_blocks\.", "blocks.", re.sub(r"^u_final_layer\.", "final_layer.", key))
    found = re.fullmatch(r"u_heads\.(\d{1,9})\.(.+)", key)
    return f"blocks.{before + int(found[1])}.{found[2]}" if found else key


def _rows(tensors: dict[str, Tensor], key: str) -> int:
    if key not in tensors or tensors[key].ndim != 2 or not 1 <= len(tensors[key]) <= 1024:
        raise CheckpointError(f"key '{key}' is missing, or not 1 to 1024 rows: it is not improved MeanFlow's")
    return len(tensors[key])


def _heads(tensors: dict[str, Tensor]) -> int | None:
    norm, rows = tensors.get(NORM), tensors[KEY]
    if norm is None or norm.ndim != 1 or rows.ndim != 2 or not len(norm) or rows.shape[1] % len(norm):
        raise CheckpointError(f"key '{NORM}' is missing, or does not divide the width of '{KEY}'")
    return int(rows.shape[1]) // len(norm)


def _like_dit(tensors: dict[str, Tensor], asked: Asked) -> dict[str, Tensor]:
    """What the shapes of a DiT are read from: its MLP's key, its timesteps', and as many positions as are assumed."""
    like = dict(tensors)
    for ours, theirs in (("blocks.0.mlp.w1.weight", "blocks.0.mlp.fc1.weight"), ("h_embedder", "t_embedder")):
        like |= {key.replace(ours, theirs): value for key, value in tensors.items() if key.startswith(ours)}
    patches = tensors.get("x_embedder.proj.weight")
    if asked.image_size is None and patches is not None and patches.ndim == 4 and patches.shape[2]:
        like["pos_embed"] = torch.empty(1, (SIDE // patches.shape[2]) ** 2, 1, device="meta")
    return like
