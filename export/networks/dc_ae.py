"""The decoder of a deep compression autoencoder (DC-AE, Chen et al. 2024, arXiv:2410.10733): 32 times, Sana's.

Parameter names are those of diffusers' `AutoencoderDC` (models/autoencoders/autoencoder_dc.py), whose files load as
they are, but for the encoder and batch norm's counters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .sana import TINY, GluMbConv, RmsNorm

NORM_EPS = 1e-5
ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU}


@dataclass(frozen=True)
class DcHalf:
    """Hyper-parameters of an AutoencoderDC's encoder; a tuple has one of each level, most pixels first."""

    block_out_channels: tuple[int, ...]
    layers_per_block: tuple[int, ...]
    block_types: tuple[str, ...]
    qkv_multiscales: tuple[tuple[int, ...], ...]
    norm_types: tuple[str, ...]
    act_fns: tuple[str, ...]
    attention_head_dim: int
    shuffle: bool  # downsampling by shuffling pixels into channels; else by strides
    shortcut: bool  # at its end


@dataclass(frozen=True)
class DcConfig:
    """Hyper-parameters of an AutoencoderDC's decoder, named as in diffusers' config.json; levels in encoder order."""

    latent_channels: int
    out_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: tuple[int, ...]
    block_types: tuple[str, ...]  # "ResBlock", "EfficientViTBlock"
    qkv_multiscales: tuple[tuple[int, ...], ...]  # sizes of kernels over neighbours, of each level's attention
    norm_types: tuple[str, ...]  # "rms_norm", "batch_norm"
    act_fns: tuple[str, ...]
    conv_act_fn: str = "relu"
    attention_head_dim: int = 32
    interpolate: bool = False  # upsampling by nearest neighbours; else by shuffling channels into pixels
    in_shortcut: bool = True
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    encoder: DcHalf | None = None

    @property
    def factor(self) -> int:
        """Picture pixels per latent pixel, along one side."""
        return 2 ** (len(self.block_out_channels) - 1)


class PixelNorm(RmsNorm):
    """Root mean square normalisation over the channels of each pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, NORM_EPS, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, h, w] -> the same shape."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class BatchNorm(nn.Module):
    """Batch normalisation with the statistics of training."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.empty(channels)) for _ in range(2))
        for name in ("running_mean", "running_var"):
            self.register_buffer(name, torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=NORM_EPS)


NORMS: dict[str, Callable[[int], nn.Module]] = {"rms_norm": PixelNorm, "batch_norm": BatchNorm}


class ResBlock(nn.Module):
    def __init__(self, channels: int, norm: str, act: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.nonlinearity = ACTIVATIONS[act]()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = NORMS[norm](channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv2(self.nonlinearity(self.conv1(x))))


class Multiscale(nn.Module):
    """Queries, keys and values again, each a mixture of its neighbourhood's."""

    def __init__(self, channels: int, heads: int, kernel: int) -> None:
        super().__init__()
        self.proj_in = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)
        self.proj_out = nn.Conv2d(channels, channels, 1, groups=3 * heads, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj_out(self.proj_in(x))


class LinearAttention(nn.Module):
    """Attention with ReLU for a softmax over all pixels, at several scales, with a residual connection."""

    def __init__(self, channels: int, head_size: int, kernels: tuple[int, ...], norm: str) -> None:
        super().__init__()
        self.head_size = head_size
        heads = channels // head_size
        inner = heads * head_size
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, inner, bias=False) for _ in range(3))
        self.to_qkv_multiscale = nn.ModuleList(Multiscale(3 * inner, heads, kernel) for kernel in kernels)
        self.to_out = nn.Linear(inner * (1 + len(kernels)), channels, bias=False)
        self.norm_out = NORMS[norm](channels)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, h, w] -> the same shape. Sums over pixels are float32, whatever the precision of x.

        Heads are runs of 3 * head_size channels of [q, k, v], as their convolutions left them, not of each in turn.
        """
        pixels = x.movedim(1, -1)
        qkv = torch.cat([self.to_q(pixels), self.to_k(pixels), self.to_v(pixels)], dim=3).movedim(-1, 1)
        scales = torch.cat([qkv, *(part(qkv) for part in self.to_qkv_multiscale)], dim=1).float()
        q, k, v = scales.flatten(2).unflatten(1, (-1, 3 * self.head_size)).chunk(3, dim=2)  # [B, heads, head_size, h w]
        q, k = F.relu(q), F.relu(k)
        summed = (v @ k.transpose(2, 3)) @ q / (k.sum(dim=3)[:, :, None] @ q).clamp(min=TINY)
        attended = summed.flatten(1, 2).unflatten(2, x.shape[2:]).to(x.dtype)
        return x + self.norm_out(self.to_out(attended.movedim(1, -1)).movedim(-1, 1))


class GatedConv(GluMbConv):
    """Sana's feed-forward with a norm and a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 4)
        self.norm = PixelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(super().forward(x))


class EfficientVitBlock(nn.Module):
    def __init__(self, channels: int, head_size: int, kernels: tuple[int, ...], norm: str) -> None:
        super().__init__()
        self.attn, self.conv_out = LinearAttention(channels, head_size, kernels, norm), GatedConv(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.attn(x))


def repeated(x: Tensor, times: int) -> Tensor:
    """[B, C, h, w] -> [B, C * times, h, w]: every channel so often, one after the other."""
    return x[:, :, None].expand(-1, -1, times, -1, -1).flatten(1, 2)


class UpBlock(nn.Module):
    """Twice the size; shortcut: plus the channels themselves, shuffled into pixels."""

    def __init__(self, channels_in: int, channels_out: int, interpolate: bool, shortcut: bool) -> None:
        super().__init__()
        self.interpolate, self.repeats = interpolate, 4 * channels_out // channels_in if shortcut else 0
        self.conv = nn.Conv2d(channels_in, channels_out if interpolate else 4 * channels_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, channels_in, h, w] -> [B, channels_out, 2h, 2w]."""
        if self.interpolate:
            larger = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        else:
            larger = F.pixel_shuffle(self.conv(x), 2)
        return larger + F.pixel_shuffle(repeated(x, self.repeats), 2) if self.repeats else larger


class Decoder(nn.Module):
    def __init__(self, config: DcConfig) -> None:
        super().__init__()
        widths, layers = config.block_out_channels, config.layers_per_block
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.repeats = widths[-1] // config.latent_channels if config.in_shortcut else 0
        self.up_blocks = nn.ModuleList(nn.Sequential(*_level(config, i)) for i in range(len(widths)))
        last = widths[0] if layers[0] else widths[1]
        self.norm_out, self.conv_act = PixelNorm(last), ACTIVATIONS[config.conv_act_fn]()
        self.conv_out = (
            nn.Conv2d(last, config.out_channels, 3, padding=1)
            if layers[0]
            else UpBlock(last, config.out_channels, config.interpolate, shortcut=False)
        )

    def forward(self, z: Tensor) -> Tensor:
        x = self.conv_in(z) + repeated(z, self.repeats) if self.repeats else self.conv_in(z)
        for level in reversed(self.up_blocks):  # type: ignore[call-overload]  # a ModuleList is a sequence
            x = level(x)
        return self.conv_out(self.conv_act(self.norm_out(x)))


def _level(config: DcConfig, i: int) -> list[nn.Module]:
    """The layers of level i, most pixels first."""
    width, layers = config.block_out_channels[i], config.layers_per_block[i]
    blocks: list[nn.Module] = []
    if layers and i + 1 < len(config.block_out_channels):
        blocks.append(UpBlock(config.block_out_channels[i + 1], width, config.interpolate, shortcut=True))
    return blocks + [block_of(config, i) for _ in range(layers)]


def block_of(half: DcConfig | DcHalf, i: int) -> nn.Module:
    """A block of level i."""
    width, norm = half.block_out_channels[i], half.norm_types[i]
    if half.block_types[i] == "ResBlock":
        return ResBlock(width, norm, half.act_fns[i])
    return EfficientVitBlock(width, half.attention_head_dim, half.qkv_multiscales[i], norm)


class DcDecoder(nn.Module):
    """AutoencoderDC's `decode(z / scaling_factor)`."""

    def __init__(self, config: DcConfig) -> None:
        super().__init__()
        self.config, self.decoder = config, Decoder(config)

    def forward(self, latent: Tensor) -> Tensor:
        """latent [B, C, H, W] float32 -> picture [B, out_channels, H * factor, W * factor] float32."""
        z = latent / self.config.scaling_factor
        return self.decoder(z.to(self.decoder.conv_in.weight.dtype)).float()
