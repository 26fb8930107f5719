"""`preview.onnx`: a rough picture of latents without their decoder, by a linear map from a latent pixel to a colour."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..networks.vae import VaeDecoder
from ..sources.shapes import LATENT_FACTOR
from .modules import uint8_image

PREVIEW_SAMPLES, PREVIEW_SIZE = 8, 16  # 2,048 equations for at most 17 unknowns per colour


class Preview(nn.Module):
    """weight [1 or 3 colours, C] and bias [colours] give colours in [-1, 1]; each becomes a square of scale x scale."""

    def __init__(self, weight: Tensor, bias: Tensor, scale: int) -> None:
        super().__init__()
        self.colour = nn.Conv2d(weight.shape[1], weight.shape[0], kernel_size=1)
        self.colour.weight.data, self.colour.bias.data = weight[:, :, None, None].float(), bias.float()  # type: ignore[union-attr]
        self.scale = scale

    @property
    def colours(self) -> int:
        return self.colour.out_channels

    def forward(self, latent: Tensor) -> Tensor:
        """latent [B, C, H, W] float32 -> image [B, H * scale, W * scale, colours] uint8."""
        return uint8_image(F.interpolate(self.colour(latent), scale_factor=float(self.scale), mode="nearest"))


@torch.no_grad()
def fitted_preview(vae: VaeDecoder) -> Preview:
    """The best linear map from a latent pixel to its patch's mean colour, by least squares over random latents.

    The latents are smooth (normal at a quarter of the size, interpolated, unit variance again): in white noise a pixel
    says little about its patch, because the decoder looks at its neighbours too, and the colours would come out grey.
    """
    config, generator = vae.config, torch.Generator().manual_seed(0)
    coarse = torch.randn(PREVIEW_SAMPLES, config.latent_channels, *[PREVIEW_SIZE // 4] * 2, generator=generator)
    latent = F.interpolate(coarse, size=(PREVIEW_SIZE, PREVIEW_SIZE), mode="bicubic")
    latent = latent / latent.std()
    picture = torch.cat([vae(one[None]) for one in latent]).clamp(-1, 1)
    colour = F.avg_pool2d(picture, config.factor).permute(0, 2, 3, 1).flatten(0, 2).double()
    pixels = latent.permute(0, 2, 3, 1).flatten(0, 2).double()
    unknowns = torch.cat([pixels, torch.ones(len(pixels), 1, dtype=torch.float64)], dim=1)
    solution = torch.linalg.lstsq(unknowns, colour).solution.T  # [colours, C + 1]
    solution = solution.round(decimals=5)  # far below one level of 255, and the same number on every machine
    return Preview(solution[:, :-1], solution[:, -1], config.factor)


def plain_preview(channels: int, factor: int = LATENT_FACTOR) -> Preview:
    """Without a VAE: the first three channels as red, green and blue, three standard deviations to black and white."""
    weight = torch.zeros(3, channels)
    for colour in range(3):
        weight[colour, min(colour, channels - 1)] = 1 / 3
    return Preview(weight, torch.zeros(3), factor)
