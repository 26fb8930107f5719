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
from .vae_names import diffusers_names


def read_encoder(path: Path, vae: VaeCheckpoint) -> VaeEncoder:
    """The encoder beside the decoder that `read_vae(path)` gave, float32 and in eval mode.

    Raises CheckpointError where the files have none, as a TAESD decoder's.
    """
    weights, _ = _locate(path)
    state = read_folder_weights(weights).tensors if weights.is_dir() else load_weights(weights).tensors
    kept = diffusers_names(state, "encoder")
    starts = ("layers.0.weight", "encoder.conv_in.weight", "encoder.conv_in.conv.weight")
    first = next((kept[key] for key in starts if key in kept), None)
    if first is None or first.ndim != 4:
        raise CheckpointError(f"{path} holds a decoder and no encoder: give a whole VAE, or leave --encoder out")
    config, channels = vae.decoder.config, int(first.shape[1])
    with torch.device("meta"):
        if isinstance(config, TinyConfig):
            encoder: VaeEncoder = TinyEncoder(config, channels, int(first.shape[0]), _blocks(kept))
        elif isinstance(config, DcConfig):
            if config.encoder is None:
                raise CheckpointError(f"{path}: the levels of its encoder do not fit each other: leave --encoder out")
            encoder = DcEncoder(config, config.encoder, channels)
        else:
            encoder = KlEncoder(config, channels, "quant_conv.weight" in kept)
    try:
        encoder.load_state_dict(fitted_tensors(kept, encoder.state_dict(), "the encoder"), assign=True)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return encoder.eval().requires_grad_(False)


def _blocks(state: dict[str, Tensor]) -> tuple[int, ...]:
    """Residual blocks of each stage of a tiny encoder: those between its plain convolutions."""
    plain = sorted(int(m[1]) for key in state if (m := re.fullmatch(r"layers\.(\d{1,4})\.weight", key)))
    return tuple(after - before - 1 for before, after in zip(plain, plain[1:], strict=False))
