"""The encoder of a deep compression autoencoder, the other half of `dc_ae.py`; names are those of diffusers, too."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .dc_ae import DcConfig, DcHalf, block_of


def averaged(x: Tensor, channels: int) -> Tensor:
    """[B, n channels, h, w] -> [B, channels, h, w]: the mean of each n that follow one another."""
    return x.unflatten(1, (channels, -1)).mean(dim=2)


class DownBlock(nn.Module):
    """Half the size; shortcut: plus means of the pixels, shuffled into channels."""

    def __init__(self, channels_in: int, channels_out: int, shuffle: bool, shortcut: bool) -> None:
        super().__init__()
        self.shuffle, self.channels, self.shortcut = shuffle, channels_out, shortcut
        conv_out, stride = (channels_out // 4, 1) if shuffle else (channels_out, 2)
        self.conv = nn.Conv2d(channels_in, conv_out, 3, stride=stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, channels_in, 2h, 2w] -> [B, channels_out, h, w]."""
        smaller = F.pixel_unshuffle(self.conv(x), 2) if self.shuffle else self.conv(x)
        return smaller + averaged(F.pixel_unshuffle(x, 2), self.channels) if self.shortcut else smaller


class Encoder(nn.Module):
    def __init__(self, config: DcConfig, half: DcHalf, picture_channels: int) -> None:
        super().__init__()
        widths, self.latents = half.block_out_channels, config.latent_channels
        first = widths[0] if half.layers_per_block[0] else widths[1]
        self.conv_in = (
            nn.Conv2d(picture_channels, first, 3, padding=1)
            if half.layers_per_block[0]
            else DownBlock(picture_channels, first, half.shuffle, shortcut=False)
        )
        self.down_blocks = nn.ModuleList(nn.Sequential(*_level(half, i)) for i in range(len(widths)))
        self.conv_out, self.shortcut = nn.Conv2d(widths[-1], self.latents, 3, padding=1), half.shortcut

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(x) + averaged(x, self.latents) if self.shortcut else self.conv_out(x)


def _level(half: DcHalf, i: int) -> list[nn.Module]:
    """The layers of level i, most pixels first."""
    blocks = [block_of(half, i) for _ in range(half.layers_per_block[i])]
    if blocks and i + 1 < len(half.block_out_channels):
        blocks.append(
            DownBlock(half.block_out_channels[i], half.block_out_channels[i + 1], half.shuffle, shortcut=True)
        )
    return blocks


class DcEncoder(nn.Module):
    """AutoencoderDC's `encode`, scaled as the diffusion model's latents are."""

    def __init__(self, config: DcConfig, half: DcHalf, picture_channels: int) -> None:
        super().__init__()
        self.config, self.encoder = config, Encoder(config, half, picture_channels)

    def forward(self, picture: Tensor) -> Tensor:
        """picture [B, channels, H * factor, W * factor] float32 -> latent [B, C, H, W] float32."""
        return self.encoder(picture) * self.config.scaling_factor
