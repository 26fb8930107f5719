"""What the config.json of an AutoencoderDC says of its decoder."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..networks.dc_ae import DcConfig, DcHalf

Count = Annotated[int, Field(ge=1, le=1 << 14)]
Layers = Annotated[int, Field(ge=0, le=64)]
Block, Norm = Literal["ResBlock", "EfficientViTBlock"], Literal["rms_norm", "batch_norm"]
Activation = Literal["relu", "silu"]
Kernel = Annotated[int, Field(ge=1, le=31)]
LEVELS = 6  # of diffusers' defaults


def _levels(kind: Any) -> Any:
    return Annotated[tuple[kind, ...], Field(min_length=2, max_length=8)]


class _DcJson(BaseModel):
    """Fields that decide what the decoder computes, defaults as those of diffusers' class; the others are ignored."""

    model_config = ConfigDict(extra="ignore")
    in_channels: Count = 3
    latent_channels: Count = 32
    attention_head_dim: Count = 32
    decoder_block_types: Block | _levels(Block) = "ResBlock"  # type: ignore[valid-type]
    decoder_block_out_channels: _levels(Count) = (128, 256, 512, 512, 1024, 1024)  # type: ignore[valid-type]
    decoder_layers_per_block: _levels(Layers) = (3,) * LEVELS  # type: ignore[valid-type]
    decoder_qkv_multiscales: _levels(Annotated[tuple[Kernel, ...], Field(max_length=4)]) = (  # type: ignore[valid-type]
        (), (), (), (5,), (5,), (5,),
    )  # fmt: skip
    upsample_block_type: Literal["pixel_shuffle", "interpolate"] = "pixel_shuffle"
    decoder_norm_types: Norm | _levels(Norm) = "rms_norm"  # type: ignore[valid-type]
    decoder_act_fns: Activation | _levels(Activation) = "silu"  # type: ignore[valid-type]
    decoder_in_shortcut: bool = True
    decoder_conv_act_fn: Activation = "relu"
    encoder_block_types: Block | _levels(Block) = "ResBlock"  # type: ignore[valid-type]
    encoder_block_out_channels: _levels(Count) = (128, 256, 512, 512, 1024, 1024)  # type: ignore[valid-type]
    encoder_layers_per_block: _levels(Layers) = (2, 2, 2, 3, 3, 3)  # type: ignore[valid-type]
    encoder_qkv_multiscales: _levels(Annotated[tuple[Kernel, ...], Field(max_length=4)]) = (  # type: ignore[valid-type]
        (), (), (), (5,), (5,), (5,),
    )  # fmt: skip
    downsample_block_type: Literal["pixel_unshuffle", "Conv"] = "pixel_unshuffle"
    encoder_out_shortcut: bool = True
    scaling_factor: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0

    @model_validator(mode="after")
    def _check(self) -> _DcJson:
        widths, levels = self.decoder_block_out_channels, len(self.decoder_block_out_channels)
        for name in ("layers_per_block", "qkv_multiscales", "block_types", "norm_types", "act_fns"):
            value = getattr(self, f"decoder_{name}")
            if not isinstance(value, str) and len(value) != levels:
                raise ValueError(f"decoder_{name} has {len(value)} levels, decoder_block_out_channels {levels}")
        if any(layers == 0 for layers in self.decoder_layers_per_block[1:]):
            raise ValueError("decoder_layers_per_block has a level without layers that is not the first")
        for larger, smaller in zip(widths[1:], widths, strict=False):
            if 4 * smaller % larger:
                raise ValueError(
                    f"decoder_block_out_channels: {larger} channels do not become {smaller} of twice the size"
                )
        if self.decoder_in_shortcut and widths[-1] % self.latent_channels:
            raise ValueError("decoder_block_out_channels does not end with a multiple of latent_channels")
        kinds = of_levels(self.decoder_block_types, levels)
        if any(
            kind != "ResBlock" and width % self.attention_head_dim for kind, width in zip(kinds, widths, strict=True)
        ):
            raise ValueError(
                "decoder_block_out_channels are not multiples of attention_head_dim where there is attention"
            )
        return self


def of_levels(value: str | tuple[str, ...], levels: int) -> tuple[str, ...]:
    """One for each level: a single text is all of theirs."""
    return (value,) * levels if isinstance(value, str) else value


def dc_from_json(data: dict[str, Any]) -> DcConfig:
    """Raises pydantic's ValidationError."""
    fields = _DcJson.model_validate(data)
    levels = len(fields.decoder_block_out_channels)
    return DcConfig(
        encoder=_encoder(fields),
        latent_channels=fields.latent_channels,
        out_channels=fields.in_channels,
        block_out_channels=fields.decoder_block_out_channels,
        layers_per_block=fields.decoder_layers_per_block,
        block_types=of_levels(fields.decoder_block_types, levels),
        qkv_multiscales=fields.decoder_qkv_multiscales,
        norm_types=of_levels(fields.decoder_norm_types, levels),
        act_fns=of_levels(fields.decoder_act_fns, levels),
        conv_act_fn=fields.decoder_conv_act_fn,
        attention_head_dim=fields.attention_head_dim,
        interpolate=fields.upsample_block_type == "interpolate",
        in_shortcut=fields.decoder_in_shortcut,
        scaling_factor=fields.scaling_factor,
    )


def _encoder(fields: _DcJson) -> DcHalf | None:
    """None where its levels do not fit each other: only who asks for an encoder needs one."""
    widths, layers = fields.encoder_block_out_channels, fields.encoder_layers_per_block
    levels, kinds = len(widths), of_levels(fields.encoder_block_types, len(widths))
    fits = levels == len(fields.decoder_block_out_channels) and {len(layers), len(kinds)} == {levels}
    fits = fits and len(fields.encoder_qkv_multiscales) == levels and 0 not in layers[1:]
    fits = fits and not any(4 * width % after or after % 4 for width, after in zip(widths, widths[1:], strict=False))
    fits = fits and not (fields.encoder_out_shortcut and widths[-1] % fields.latent_channels)
    if not fits or any(k != "ResBlock" and w % fields.attention_head_dim for k, w in zip(kinds, widths, strict=True)):
        return None
    return DcHalf(
        block_out_channels=widths,
        layers_per_block=layers,
        block_types=kinds,
        qkv_multiscales=fields.encoder_qkv_multiscales,
        norm_types=("rms_norm",) * levels,
        act_fns=("silu",) * levels,
        attention_head_dim=fields.attention_head_dim,
        shuffle=fields.downsample_block_type == "pixel_unshuffle",
        shortcut=fields.encoder_out_shortcut,
    )
