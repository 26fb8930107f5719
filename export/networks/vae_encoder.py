"""The encoders that turn pictures into latents, as `vae.py` has the decoders: Stable Diffusion's, and tiny ones.

Parameter names are those of diffusers' `AutoencoderKL` and `AutoencoderTiny`. Both take a picture in [-1, 1] and return
latents as the diffusion model makes them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dc_ae_encoder import DcEncoder
from .vae import GroupNorm, KlConfig, MidBlock, ResnetBlock, TinyBlock, TinyConfig, conv3x3


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, channels, 2h, 2w] -> [B, channels, h, w]; padded right and below only, as in training."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class DownBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, layers: int, groups: int, downsample: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(channels_out if i else channels_in, channels_out, groups) for i in range(layers)
        )
        self.downsamplers = nn.ModuleList([Downsample(channels_out)] if downsample else [])

    def forward(self, x: Tensor) -> Tensor:
        for layer in [*self.resnets, *self.downsamplers]:
            x = layer(x)
        return x


class Encoder(nn.Module):
    """The convolutional encoder of Esser et al., 2021 (arXiv:2012.09841), as diffusers' `Encoder` with double_z."""

    def __init__(self, config: KlConfig, picture_channels: int) -> None:
        super().__init__()
        channels, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = conv3x3(picture_channels, channels[0])
        self.down_blocks = nn.ModuleList(
            DownBlock(channels[max(i - 1, 0)], width, config.layers_per_block, groups, i < len(channels) - 1)
            for i, width in enumerate(channels)
        )
        self.mid_block = MidBlock(channels[-1], groups, config.mid_block_add_attention)
        self.conv_norm_out = GroupNorm(groups, channels[-1], 1e-6)
        self.conv_out = conv3x3(channels[-1], 2 * config.own_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class KlEncoder(nn.Module):
    """The mean of AutoencoderKL's `encode`, scaled as the diffusion model's latents are."""

    def __init__(self, config: KlConfig, picture_channels: int, quant_conv: bool) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, picture_channels)
        channels = 2 * config.own_channels
        self.quant_conv = nn.Conv2d(channels, channels, 1) if quant_conv else nn.Identity()

    def forward(self, picture: Tensor) -> Tensor:
        """picture [B, channels, H * factor, W * factor] float32 -> latent [B, C, H, W] float32."""
        config = self.config
        mean = self.quant_conv(self.encoder(picture))[:, : config.own_channels]
        mean = mean if config.packed == 1 else F.pixel_unshuffle(mean, config.packed)
        if config.latents_mean is None or config.latents_std is None:
            return (mean - config.shift_factor) * config.scaling_factor
        middle, width = (torch.tensor(v)[None, :, None, None] for v in (config.latents_mean, config.latents_std))
        return (mean - middle) * config.scaling_factor / width


class TinyEncoder(nn.Module):
    """AutoencoderTiny's `encode`: a picture in [0, 1] inside, a convolution of stride 2 between stages."""

    def __init__(self, config: TinyConfig, picture_channels: int, width: int, num_blocks: tuple[int, ...]) -> None:
        """width: of every stage; num_blocks: residual blocks of each."""
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        for i, count in enumerate(num_blocks):
            further = nn.Conv2d(width, width, 3, padding=1, stride=config.upsampling, bias=False)
            layers.append(further if i else conv3x3(picture_channels, width))
            layers += [TinyBlock(width) for _ in range(count)]
        layers.append(conv3x3(width, config.latent_channels))
        self.layers = nn.Sequential(*layers)

    def forward(self, picture: Tensor) -> Tensor:
        """picture [B, channels, H * factor, W * factor] float32 -> latent [B, C, H, W] float32."""
        return (self.layers((picture + 1) / 2) - self.config.shift_factor) * self.config.scaling_factor


VaeEncoder = KlEncoder | TinyEncoder | DcEncoder
