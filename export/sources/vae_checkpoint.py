"""Reading a VAE's decoder: a diffusers folder, or one file of weights whose shapes say the rest.

Three layouts of keys are understood: diffusers' (also its attention names before 0.18), CompVis latent-diffusion's
(`decoder.up.3.block.0`, alone or inside a whole Stable Diffusion checkpoint), and TAESD's (`1.weight`, `3.conv.0`).
Files are untrusted: .safetensors, or pickles read with `weights_only=True`; config.json is validated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from ...runtime.errors import CheckpointError
from ...runtime.files import sha256_of_file
from ...runtime.json_files import MAX_CONFIG_BYTES, read_json
from ..networks.dc_ae import DcConfig, DcDecoder
from ..networks.vae import KlConfig, KlDecoder, TinyConfig, TinyDecoder, VaeDecoder
from ..networks.vae_encoder import VaeEncoder
from .checkpoint import fitted_tensors, load_weights
from .dc_ae_config import dc_from_json
from .flux2_vae import flux2_from_json, with_statistics
from .folder_weights import read_folder_weights, sha256_of_files
from .latent_stats import STATS_NAME, read_stats
from .vae_names import diffusers_names, numbered

CONFIG_NAME = "config.json"
SCALING_OF_CHANNELS = {4: 0.18215}  # Stable Diffusion 1 and 2, and every DiT trained on their latents
DEFAULT_GROUPS = 32  # not readable from shapes
MAX_LAYERS = 64  # per level: a file cannot make us build more


Count = Annotated[int, Field(ge=1, le=1 << 14)]
Widths = Annotated[tuple[Count, ...], Field(min_length=1, max_length=8)]
Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Shift = Annotated[float, Field(allow_inf_nan=False)]


VaeConfig = KlConfig | TinyConfig | DcConfig
KINDS: dict[type, tuple[str, Callable[[Any], VaeDecoder]]] = {
    KlConfig: ("kl", KlDecoder),
    TinyConfig: ("tiny", TinyDecoder),
    DcConfig: ("dc", DcDecoder),
}


@dataclass(frozen=True)
class VaeCheckpoint:
    """A decoder with its weights, float32 and in eval mode, and where it came from."""

    decoder: VaeDecoder
    kind: str  # of KINDS
    sha256: str  # of the file of weights, or of shards as `sha256_of_files` has it
    notes: tuple[str, ...] = ()  # for the user: which of a file's weights, and what was assumed
    encoder: VaeEncoder | None = None  # where it was asked for (`vae_encoder.py`)


class _KlJson(BaseModel):
    """Fields of an AutoencoderKL's config.json that decide what its decoder computes; the others are ignored."""

    model_config = ConfigDict(extra="ignore")
    latent_channels: Count = 4  # defaults as those of diffusers' class
    out_channels: Count = 3
    block_out_channels: Widths = (64,)
    layers_per_block: Annotated[int, Field(ge=1, le=MAX_LAYERS)] = 1
    norm_num_groups: Count = 32
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    scaling_factor: Scale = 0.18215
    shift_factor: Shift | None = None
    act_fn: Literal["silu", "swish"] = "silu"
    up_block_types: tuple[Literal["UpDecoderBlock2D", "AttnUpDecoderBlock2D"], ...] = ("UpDecoderBlock2D",)
    latents_mean: Annotated[tuple[Shift, ...], Field(max_length=1 << 14)] | None = None
    latents_std: Annotated[tuple[Scale, ...], Field(max_length=1 << 14)] | None = None

    @model_validator(mode="after")
    def _check(self) -> _KlJson:
        if any(width % self.norm_num_groups for width in self.block_out_channels):
            raise ValueError(f"block_out_channels are not multiples of norm_num_groups {self.norm_num_groups}")
        if (self.latents_mean is None) != (self.latents_std is None) or (self.latents_mean and self.shift_factor):
            raise ValueError("latents_mean and latents_std come together, and not with a shift_factor")
        for values in (self.latents_mean, self.latents_std):
            if values is not None and len(values) != self.latent_channels:
                raise ValueError(
                    f"latents_mean and latents_std have a number for each of {self.latent_channels} channels"
                )
        return self


class _TinyJson(BaseModel):
    """The same of an AutoencoderTiny's."""

    model_config = ConfigDict(extra="ignore")
    latent_channels: Count = 4
    out_channels: Count = 3
    decoder_block_out_channels: Widths = (64,) * 4
    num_decoder_blocks: Widths = (3, 3, 3, 1)
    upsampling_scaling_factor: Annotated[int, Field(ge=1, le=8)] = 2
    scaling_factor: Scale = 1.0
    shift_factor: Shift | None = None
    act_fn: Literal["relu"] = "relu"
    upsample_fn: Literal["nearest"] = "nearest"

    @model_validator(mode="after")
    def _check(self) -> _TinyJson:
        if len(self.decoder_block_out_channels) != len(self.num_decoder_blocks):
            raise ValueError("decoder_block_out_channels and num_decoder_blocks differ in length")
        return self


def read_vae(path: Path) -> VaeCheckpoint:
    """The decoder of a diffusers AutoencoderKL, -KLFlux2, -DC, -Tiny or pipeline folder, or of one file.

    A file without a config.json beside it is described by its shapes; the scaling of its latents is then that of
    Stable Diffusion (0.18215) for 4 channels, and 1 for a tiny decoder.
    Raises CheckpointError naming the file and the key.
    """
    weights, described = _locate(path)
    files = [weights]
    if weights.is_dir():
        found = read_folder_weights(weights)
        state, files, weights = found.tensors, list(found.files), found.files[0]
        notes = [f"VAE's weights: {found.sentence}"]
    else:
        loaded = load_weights(weights)
        state, notes = loaded.tensors, [f"VAE's weights: {loaded.sentence}"]
    try:
        if isinstance(described, KlConfig) and described.packed > 1:
            described = with_statistics(described, state)
        state = diffusers_names(state)
        tiny = "layers.0.weight" in state
        if described is not None and tiny != isinstance(described, TinyConfig):
            raise CheckpointError(f"the weights are not of the class that {CONFIG_NAME} names")
        stats = read_stats(weights) if described is None and not tiny else None
        config = described or (_tiny_config(state) if tiny else _kl_config(state, stats))
        kind, network = KINDS[type(config)]
        with torch.device("meta"):
            decoder = network(config)
        decoder.load_state_dict(fitted_tensors(state, decoder.state_dict(), "the decoder"), assign=True)
    except CheckpointError as error:
        named = str(error) if str(error).startswith(str(weights)) else f"{weights}: {error}"
        raise CheckpointError(named) from None
    if stats is not None:
        notes.append(
            f"VAE's scaling: mean and deviation of each channel, from {weights.with_name(STATS_NAME)}, times 1"
        )
    elif described is None and not tiny:
        notes.append(
            f"VAE's scaling: {config.scaling_factor:g} (assumed: that of Stable Diffusion 1 and 2; {weights} does not "
            f"say it, a diffusers folder's {CONFIG_NAME} would)"
        )
    sha256 = sha256_of_file(weights) if len(files) == 1 else sha256_of_files(weights.parent, files)
    return VaeCheckpoint(decoder.eval().requires_grad_(False), kind, sha256, tuple(notes))


def _locate(path: Path) -> tuple[Path, VaeConfig | None]:
    """The file of weights, or the folder with them, and what config.json says, where there is one."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: give --vae a diffusers folder or a .safetensors file")
    path = path.parent if path.name in ("model_index.json", CONFIG_NAME) else path
    if path.is_file():
        return path, _read_config(path.parent / CONFIG_NAME, optional=True)
    folder = path if (path / CONFIG_NAME).is_file() else path / "vae"
    if not (folder / CONFIG_NAME).is_file():
        raise CheckpointError(f"{path} has no {CONFIG_NAME}: not a diffusers VAE folder; or give the file of weights")
    return folder, _read_config(folder / CONFIG_NAME)


def _read_config(path: Path, optional: bool = False) -> VaeConfig | None:
    """config.json as a description; None when it is `optional` and missing, or not about an autoencoder."""
    if optional and not path.is_file():
        return None
    data = read_json(path, MAX_CONFIG_BYTES, CheckpointError)
    name = data.get("_class_name") if isinstance(data, dict) else None
    readers: dict[Any, Any] = {"AutoencoderKL": _kl_from_json, "AutoencoderTiny": _tiny_from_json}
    readers |= {"AutoencoderDC": dc_from_json, "AutoencoderKLFlux2": flux2_from_json}
    if not isinstance(name, str) or name not in readers:
        if optional and not str(name).startswith("Autoencoder"):
            return None
        raise CheckpointError(f"{path}: _class_name is {name!r}; understood are {', '.join(readers)}")
    try:
        return readers[name](data)  # type: ignore[no-any-return]
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "config"
        raise CheckpointError(f"{path}: {place}: {first['msg']}") from None


def _kl_from_json(data: dict[str, Any]) -> KlConfig:
    read = _KlJson.model_validate(data)
    fields = read.model_dump(include=set(KlConfig.__dataclass_fields__))
    attentions = tuple(i for i, kind in enumerate(read.up_block_types) if kind.startswith("Attn"))
    return KlConfig(**fields | {"shift_factor": fields["shift_factor"] or 0.0, "up_attentions": attentions})


def _tiny_from_json(data: dict[str, Any]) -> TinyConfig:
    fields = _TinyJson.model_validate(data)
    return TinyConfig(
        latent_channels=fields.latent_channels,
        out_channels=fields.out_channels,
        block_out_channels=fields.decoder_block_out_channels,
        num_blocks=fields.num_decoder_blocks,
        upsampling=fields.upsampling_scaling_factor,
        scaling_factor=fields.scaling_factor,
        shift_factor=fields.shift_factor or 0.0,
    )


def _channels(state: dict[str, Tensor], key: str) -> tuple[int, int]:
    """Output and input channels of a convolution."""
    if key not in state:
        raise CheckpointError(f"key '{key}' is missing: not the decoder of an AutoencoderKL or a TAESD")
    if state[key].ndim != 4 or 0 in state[key].shape:
        raise CheckpointError(f"key '{key}' has shape {list(state[key].shape)}, expected that of a convolution")
    return state[key].shape[0], state[key].shape[1]


def _kl_config(state: dict[str, Tensor], stats: tuple[tuple[float, ...], tuple[float, ...]] | None) -> KlConfig:
    """What the shapes say of an AutoencoderKL's decoder. stats: of its latents' channels, mean and deviation."""
    levels, layers = numbered(state, r"decoder\.up_blocks\."), numbered(state, r"decoder\.up_blocks\.0\.resnets\.")
    channels = _channels(state, "decoder.conv_in.weight")[1]
    if not 2 <= layers <= MAX_LAYERS:
        raise CheckpointError("key 'decoder.up_blocks.0.resnets.1.conv1.weight' is missing: not an AutoencoderKL")
    widths = tuple(_channels(state, f"decoder.up_blocks.{i}.resnets.0.conv1.weight")[0] for i in range(levels))
    remedy = f"give the diffusers folder with its {CONFIG_NAME}"
    if stats is not None and not len(stats[0]) == len(stats[1]) == channels:
        raise CheckpointError(f"{STATS_NAME} beside it is of {len(stats[0])} channels, its latents have {channels}")
    if channels not in SCALING_OF_CHANNELS and stats is None:
        raise CheckpointError(f"the scaling of its {channels}-channel latents is not in the file: {remedy}")
    if any(width % DEFAULT_GROUPS for width in widths):
        raise CheckpointError(f"widths {list(widths)} are not multiples of {DEFAULT_GROUPS} norm groups: {remedy}")
    return KlConfig(
        latent_channels=channels,
        out_channels=_channels(state, "decoder.conv_out.weight")[0],
        block_out_channels=widths[::-1],
        layers_per_block=layers - 1,
        norm_num_groups=DEFAULT_GROUPS,
        use_post_quant_conv="post_quant_conv.weight" in state,
        mid_block_add_attention="decoder.mid_block.attentions.0.to_q.weight" in state,
        up_attentions=tuple(i for i in range(levels) if f"decoder.up_blocks.{i}.attentions.0.to_q.weight" in state),
        scaling_factor=SCALING_OF_CHANNELS[channels] if stats is None else 1.0,
        latents_mean=stats[0] if stats is not None else None,
        latents_std=stats[1] if stats is not None else None,
    )


def _tiny_config(state: dict[str, Tensor]) -> TinyConfig:
    """What the shapes say of a tiny decoder: stages of residual blocks, a plain convolution after each."""
    blocks, widths, count, outputs = [], [], 0, 0
    for index in range(1, numbered(state, r"layers\.")):
        if f"layers.{index}.weight" in state:
            outputs, width = _channels(state, f"layers.{index}.weight")
            widths.append(width)
            blocks.append(count)
            count = 0
        elif f"layers.{index}.conv.0.weight" in state:
            count += 1
    if not blocks or count:
        raise CheckpointError("its layers do not end with a convolution: not a TAESD decoder, perhaps cut short")
    inputs = _channels(state, "layers.0.weight")[1]
    return TinyConfig(inputs, outputs, block_out_channels=tuple(widths), num_blocks=tuple(blocks))
