"""The keys of a VAE's halves in the layouts that are read, by the names of `networks/vae.py`, which are diffusers'."""

from __future__ import annotations

import re

from torch import Tensor

WHOLE_CHECKPOINT = "first_stage_model."  # what a VAE's keys start with inside a Stable Diffusion checkpoint

# CompVis latent-diffusion's names (ldm/modules/diffusionmodules/model.py) -> diffusers'; `up` counts the other way.
LDM_NAMES = (
    (r"^mid\.attn_1\.norm\.", "mid_block.attentions.0.group_norm."),
    (r"^mid\.attn_1\.([qkv])\.", r"mid_block.attentions.0.to_\1."),
    (r"^mid\.attn_1\.proj_out\.", "mid_block.attentions.0.to_out.0."),
    (r"^mid\.block_1\.", "mid_block.resnets.0."),
    (r"^mid\.block_2\.", "mid_block.resnets.1."),
    (r"^norm_out\.", "conv_norm_out."),
    (r"^down\.(\d{1,4})\.", r"down_blocks.\1."),
    (r"\.attn\.(\d{1,4})\.norm\.", r".attentions.\1.group_norm."),
    (r"\.attn\.(\d{1,4})\.([qkv])\.", r".attentions.\1.to_\2."),
    (r"\.attn\.(\d{1,4})\.proj_out\.", r".attentions.\1.to_out.0."),
    (r"\.upsample\.conv\.", ".upsamplers.0.conv."),
    (r"\.downsample\.conv\.", ".downsamplers.0.conv."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"^((?:up|down)_blocks\.\d+)\.block\.", r"\1.resnets."),
)
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def diffusers_names(state: dict[str, Tensor], half: str = "decoder") -> dict[str, Tensor]:
    """A half's tensors, of "decoder" or "encoder", under the names of its network; anything else is left out."""
    if any(key.startswith(WHOLE_CHECKPOINT) for key in state):
        state = {k.removeprefix(WHOLE_CHECKPOINT): v for k, v in state.items() if k.startswith(WHOLE_CHECKPOINT)}
    if all(re.match(r"\d{1,4}\.", key) for key in state):  # TAESD's own file, a decoder: its layer 0 is the clamp
        found = {f"layers.{int(key.split('.')[0]) - 1}.{key.split('.', 1)[1]}": state[key] for key in state}
        return found if half == "decoder" else {}
    beside = "post_quant_conv." if half == "decoder" else "quant_conv."
    kept = {key: value for key, value in state.items() if key.startswith((f"{half}.", beside))}
    kept = {key: value for key, value in kept.items() if not key.endswith(".num_batches_tracked")}
    levels = numbered(kept, rf"{half}\.(?:up|down)\.")
    return {_renamed(key, half, levels): _as_linear(key, value) for key, value in kept.items()}


def _renamed(key: str, half: str, levels: int) -> str:
    """One key under our name. levels: of a latent-diffusion VAE, else 0."""
    name = key.removeprefix(f"{half}.")
    if name == key or name.startswith("layers."):
        return name
    name = re.sub(r"^up\.(\d{1,4})\.", lambda m: f"up_blocks.{levels - 1 - int(m[1])}.", name)
    for pattern, ours in LDM_NAMES if levels else ():
        name = re.sub(pattern, ours, name)
    name = re.sub(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.", lambda m: f"{m[1]}.{OLD_ATTENTION[m[2]]}.", name)
    return f"{half}.{name}"


def _as_linear(key: str, value: Tensor) -> Tensor:
    """latent-diffusion's attention uses 1 x 1 convolutions where diffusers has linear layers."""
    attention = re.search(r"\.attn(_1|\.\d+)\.", key)  # DC-AE's own attention is `.attn.to_q`, and has convolutions
    return value[:, :, 0, 0] if attention and value.shape[2:] == (1, 1) else value


def numbered(state: dict[str, Tensor], prefix: str) -> int:
    """One more than the largest number that follows the pattern `prefix` in a key."""
    return 1 + max((int(m[1]) for key in state if (m := re.match(prefix + r"(\d{1,4})\.", key))), default=-1)
