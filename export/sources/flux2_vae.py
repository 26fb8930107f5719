"""config.json of an AutoencoderKLFlux2, whose network knows its latents in squares, and their mean and deviation."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from ...runtime.errors import CheckpointError
from ..networks.vae import KlConfig

PACKED = 2  # side of a square
Count = Annotated[int, Field(ge=1, le=1 << 12)]
Widths = Annotated[tuple[Count, ...], Field(min_length=1, max_length=8)]


class _Json(BaseModel):
    """Fields that decide what its decoder computes; the others are ignored."""

    model_config = ConfigDict(extra="ignore")
    latent_channels: Count = 32  # defaults as those of diffusers' class
    out_channels: Count = 3
    block_out_channels: Widths = (128, 256, 512, 512)
    decoder_block_out_channels: Widths | None = None
    layers_per_block: Annotated[int, Field(ge=1, le=64)] = 2
    norm_num_groups: Count = 32
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    act_fn: Literal["silu", "swish"] = "silu"
    up_block_types: tuple[Literal["UpDecoderBlock2D"], ...] = ("UpDecoderBlock2D",)
    batch_norm_eps: Annotated[float, Field(ge=0, lt=1)] = 1e-4
    patch_size: tuple[Literal[2], Literal[2]] = (2, 2)

    @model_validator(mode="after")
    def _check(self) -> _Json:
        if any(width % self.norm_num_groups for width in self.decoder_block_out_channels or self.block_out_channels):
            raise ValueError(f"block_out_channels are not multiples of norm_num_groups {self.norm_num_groups}")
        return self


def flux2_from_json(data: dict[str, Any]) -> KlConfig:
    """`with_statistics` adds what the weights say. Raises pydantic's ValidationError."""
    read = _Json.model_validate(data)
    return KlConfig(
        latent_channels=PACKED**2 * read.latent_channels,
        out_channels=read.out_channels,
        block_out_channels=read.decoder_block_out_channels or read.block_out_channels,
        layers_per_block=read.layers_per_block,
        norm_num_groups=read.norm_num_groups,
        use_post_quant_conv=read.use_post_quant_conv,
        mid_block_add_attention=read.mid_block_add_attention,
        scaling_factor=1.0,
        packed=PACKED,
        variance_eps=read.batch_norm_eps,
    )


def with_statistics(config: KlConfig, state: dict[str, Tensor]) -> KlConfig:
    """Mean and deviation of each channel, which a batch norm counted in training. Raises CheckpointError."""
    found = []
    for name in ("bn.running_mean", "bn.running_var"):
        values = state.get(name)
        if values is None or values.shape != (config.latent_channels,) or not values.is_floating_point():
            raise CheckpointError(f"key '{name}' is not a number for each of {config.latent_channels} channels")
        found.append(values.float())
    mean, std = found[0], torch.sqrt(found[1] + config.variance_eps)
    if not (torch.isfinite(mean).all() and torch.isfinite(std).all() and bool((std > 0).all())):
        raise CheckpointError("key 'bn.running_var': it or the mean has a number that is not possible")
    return replace(config, latents_mean=tuple(mean.tolist()), latents_std=tuple(std.tolist()))
