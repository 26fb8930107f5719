"""The decoders that turn latents into pictures: Stable Diffusion's VAE (`KlDecoder`), and tiny ones (`TinyDecoder`).

Sana's (`DcDecoder`) is in dc_ae.py.

Only the decoding half, written out so that diffusers is not needed; parameter names are those of diffusers'
`AutoencoderKL` and `AutoencoderTiny` (models/autoencoders/), whose files load as they are. Both modules take latents as
the diffusion model makes them, undo their scaling, and return a picture in [-1, 1].
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dc_ae import DcDecoder

NORM_EPS = 1e-6
TINY_CLAMP = 3.0  # the tiny decoder squashes latents smoothly to +-3: tanh(z / 3) * 3


@dataclass(frozen=True)
class KlConfig:
    """Hyper-parameters of an AutoencoderKL's decoder, named as in diffusers' config.json."""

    latent_channels: int
    out_channels: int
    block_out_channels: tuple[int, ...]  # encoder order: the decoder walks it backwards
    layers_per_block: int
    norm_num_groups: int = 32
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    up_attentions: tuple[int, ...] = ()  # up blocks that have an attention behind each residual block
    scaling_factor: float = 0.18215  # the network's latents are the VAE's times this
    shift_factor: float = 0.0
    latents_mean: tuple[float, ...] | None = None  # or: the network's are (the VAE's - mean) / std * scaling_factor,
    latents_std: tuple[float, ...] | None = None  # channel by channel
    packed: int = 1  # side of the squares of the VAE's latents that are one pixel of latent_channels (FLUX.2: 2)
    variance_eps: float = 0.0  # of latents_std, where weights say a variance

    @property
    def own_channels(self) -> int:
        """Of the VAE's latents."""
        return self.latent_channels // self.packed**2

    @property
    def factor(self) -> int:
        """Picture pixels per latent pixel, along one side."""
        return self.packed * 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class TinyConfig:
    """Hyper-parameters of an AutoencoderTiny's decoder (TAESD, github.com/madebyollin/taesd)."""

    latent_channels: int
    out_channels: int
    block_out_channels: tuple[int, ...]
    num_blocks: tuple[int, ...]  # residual blocks of each stage
    upsampling: int = 2
    scaling_factor: float = 1.0  # it was trained on scaled latents
    shift_factor: float = 0.0

    @property
    def factor(self) -> int:
        return self.upsampling ** (len(self.num_blocks) - 1)


class GroupNorm(nn.GroupNorm):
    """Group normalisation with float32 statistics and parameters, whatever the precision of x."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


def conv3x3(channels_in: int, channels_out: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, bias=bias)


class ResnetBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, channels_in, NORM_EPS)
        self.conv1 = conv3x3(channels_in, channels_out)
        self.norm2 = GroupNorm(groups, channels_out, NORM_EPS)
        self.conv2 = conv3x3(channels_out, channels_out)
        self.conv_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x [B, channels_in, h, w] -> [B, channels_out, h, w]."""
        h = self.conv1(F.silu(self.norm1(x)))
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    """One head over all pixels, with a residual connection."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = GroupNorm(groups, channels, NORM_EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """x [B, channels, h, w] -> the same shape."""
        pixels = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.to_q(pixels), self.to_k(pixels), self.to_v(pixels)
        # The scale comes first: float16 sums of 512 products would overflow without it. Softmax in float32.
        scores = ((q * q.shape[-1] ** -0.5) @ k.transpose(1, 2)).float()
        attended = self.to_out[0](torch.softmax(scores, dim=-1).to(x.dtype) @ v)
        return x + attended.transpose(1, 2).reshape(x.shape)


class MidBlock(nn.Module):
    def __init__(self, channels: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([Attention(channels, groups)] if attention else [])
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, channels, h, w] -> [B, channels, 2h, 2w]."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class UpBlock(nn.Module):
    def __init__(
        self, channels_in: int, channels_out: int, layers: int, groups: int, *, upsample: bool, attention: bool
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(channels_out if i else channels_in, channels_out, groups) for i in range(layers)
        )
        self.attentions = nn.ModuleList(Attention(channels_out, groups) for _ in range(layers if attention else 0))
        self.upsamplers = nn.ModuleList([Upsample(channels_out)] if upsample else [])

    def forward(self, x: Tensor) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            x = resnet(x)
            x = self.attentions[i](x) if len(self.attentions) else x
        for upsampler in self.upsamplers:
            x = upsampler(x)
        return x


class Decoder(nn.Module):
    """The convolutional decoder of Esser et al., 2021 (arXiv:2012.09841), as diffusers' `Decoder`."""

    def __init__(self, config: KlConfig) -> None:
        super().__init__()
        channels, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = conv3x3(config.own_channels, channels[0])
        self.mid_block = MidBlock(channels[0], groups, config.mid_block_add_attention)
        self.up_blocks = nn.ModuleList(
            UpBlock(
                channels[max(i - 1, 0)],
                width,
                config.layers_per_block + 1,
                groups,
                upsample=i < len(channels) - 1,
                attention=i in config.up_attentions,
            )
            for i, width in enumerate(channels)
        )
        self.conv_norm_out = GroupNorm(groups, channels[-1], NORM_EPS)
        self.conv_out = conv3x3(channels[-1], config.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class KlDecoder(nn.Module):
    """AutoencoderKL's `decode(z / scaling_factor + shift_factor)`, or `decode(z * std / scaling_factor + mean)`."""

    def __init__(self, config: KlConfig) -> None:
        super().__init__()
        self.config = config
        self._std, self._mean = _per_channel(config.latents_std), _per_channel(config.latents_mean)
        channels = config.own_channels
        self.post_quant_conv = nn.Conv2d(channels, channels, 1) if config.use_post_quant_conv else nn.Identity()
        self.decoder = Decoder(config)

    def forward(self, latent: Tensor) -> Tensor:
        """latent [B, C, H, W] float32 -> picture [B, out_channels, H * factor, W * factor] float32."""
        if self._std is None or self._mean is None:
            z = latent / self.config.scaling_factor + self.config.shift_factor
        else:  # as diffusers' StableDiffusionXLPipeline has it
            z = latent * self._std / self.config.scaling_factor + self._mean
        z = z if self.config.packed == 1 else F.pixel_shuffle(z, self.config.packed)
        return self.decoder(self.post_quant_conv(z.to(self.decoder.conv_in.weight.dtype))).float()


def _per_channel(values: tuple[float, ...] | None) -> Tensor | None:
    """[1, C, 1, 1] float32 on the CPU, also in a module on "meta". No buffer: it stays float32 in half()."""
    return None if values is None else torch.tensor(values, device="cpu")[None, :, None, None]


class TinyBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            conv3x3(channels, channels), nn.ReLU(), conv3x3(channels, channels), nn.ReLU(), conv3x3(channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


class TinyDecoder(nn.Module):
    """AutoencoderTiny's `decode`: latents squashed by tanh, no normalisation, [0, 1] moved to [-1, 1] at the end."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = [conv3x3(config.latent_channels, config.block_out_channels[0]), nn.ReLU()]
        for i, (width, blocks) in enumerate(zip(config.block_out_channels, config.num_blocks, strict=True)):
            last = i == len(config.num_blocks) - 1
            layers += [TinyBlock(width) for _ in range(blocks)]
            layers += [] if last else [nn.Upsample(scale_factor=float(config.upsampling), mode="nearest")]
            layers.append(conv3x3(width, config.out_channels if last else width, bias=last))
        self.layers = nn.Sequential(*layers)

    def forward(self, latent: Tensor) -> Tensor:
        """latent [B, C, H, W] float32 -> picture [B, out_channels, H * factor, W * factor] float32."""
        z = latent / self.config.scaling_factor + self.config.shift_factor
        z = torch.tanh(z / TINY_CLAMP) * TINY_CLAMP
        return self.layers(z.to(self.layers[0].weight.dtype)).float() * 2 - 1


VaeDecoder = KlDecoder | TinyDecoder | DcDecoder


def half_precision(vae: VaeDecoder) -> VaeDecoder:
    """A copy with float16 weights and activations: half the file, and what a GPU runs fastest.

    Latents come in and pictures go out as float32; group norm statistics and softmax are float32 inside. Stable
    Diffusion 1 and 2 decoders stay within float16's range, SDXL's does not: the check at export tells. On a CPU
    without float16 convolutions ONNX Runtime computes in float32 again, so nothing is gained there but the file's size.
    """
    half = copy.deepcopy(vae).half()
    for module in half.modules():
        if isinstance(module, GroupNorm):
            module.float()
    return half
