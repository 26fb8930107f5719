"""Reading a VAE's encoder out of the files that its decoder is in (`vae_checkpoint.py`)."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from ...runtime.errors import CheckpointError
from ..networks.dc_ae import DcConfig
from ..networks.dc_ae_encoder import DcEncoder
from ..networks.vae import TinyConfig
from ..networks.vae_encoder import KlEncoder, TinyEncoder, VaeEncoder
from .checkpoint import fitted_tensors, load_weights
from .folder_weights import read_folder_weights
from .vae_checkpoint import VaeCheckpoint, _locate
from .vae_names import LDM_NAMES, OLD_ATTENTION, WHOLE_CHECKPOINT

ENCODER_NAMES = tuple(
    (pattern.replace("decoder", "encoder"), name.replace("decoder", "encoder")) for pattern, name in LDM_NAMES
)


def read_encoder(path: Path, vae: VaeCheckpoint) -> VaeEncoder:
    """The encoder beside the decoder that `read_vae(path)` gave, float32 and in eval mode.

    Raises CheckpointError where the files have none, as a TAESD decoder's.
    """
    weights, _ = _locate(path)
    state = read_folder_weights(weights).tensors if weights.is_dir() else load_weights(weights).tensors
    if any(key.startswith(WHOLE_CHECKPOINT) for key in state):
        state = {k.removeprefix(WHOLE_CHECKPOINT): v for k, v in state.items() if k.startswith(WHOLE_CHECKPOINT)}
    kept = {key: value for key, value in state.items() if key.startswith(("encoder.", "quant_conv."))}
    starts = ("encoder.layers.0.weight", "encoder.conv_in.weight", "encoder.conv_in.conv.weight")
    first = next((kept[key] for key in starts if key in kept), None)
    if first is None or first.ndim != 4:
        raise CheckpointError(f"{path} holds a decoder and no encoder: give a whole VAE, or leave --encoder out")
    config, channels = vae.decoder.config, int(first.shape[1])
    with torch.device("meta"):
        if isinstance(config, TinyConfig):
            kept = {key.removeprefix("encoder."): value for key, value in kept.items()}
            encoder: VaeEncoder = TinyEncoder(config, channels, int(first.shape[0]), _blocks(kept))
        elif isinstance(config, DcConfig):
            if config.encoder is None:
                raise CheckpointError(f"{path}: the levels of its encoder do not fit each other: leave --encoder out")
            encoder = DcEncoder(config, config.encoder, channels)
        else:
            kept = {_renamed(key): _as_linear(key, value) for key, value in kept.items()}
            encoder = KlEncoder(config, channels, "quant_conv.weight" in kept)
    try:
        encoder.load_state_dict(fitted_tensors(kept, encoder.state_dict(), "the encoder"), assign=True)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return encoder.eval().requires_grad_(False)


def _renamed(key: str) -> str:
    """A key of latent-diffusion's, or of diffusers before 0.18, under our name."""
    if ".down." in key or ".mid." in key or "encoder.norm_out" in key:
        key = re.sub(r"^encoder\.down\.(\d{1,4})\.block\.", r"encoder.down_blocks.\1.resnets.", key)
        key = re.sub(r"^encoder\.down\.(\d{1,4})\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0.", key)
        for pattern, name in ENCODER_NAMES:
            key = re.sub(pattern, name, key)
        key = key.replace(".nin_shortcut.", ".conv_shortcut.")
    return re.sub(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.", lambda m: f"{m[1]}.{OLD_ATTENTION[m[2]]}.", key)


def _as_linear(key: str, value: Tensor) -> Tensor:
    return value[:, :, 0, 0] if ".attn_1." in key and value.shape[2:] == (1, 1) else value


def _blocks(state: dict[str, Tensor]) -> tuple[int, ...]:
    """Residual blocks of each stage of a tiny encoder: those between its plain convolutions."""
    plain = sorted(int(m[1]) for key in state if (m := re.fullmatch(r"layers\.(\d{1,4})\.weight", key)))
    return tuple(after - before - 1 for before, after in zip(plain, plain[1:], strict=False))
