"""The graphs of a bundle that can start from a picture, as torch modules (docs/format.md, "Pictures to begin from")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..networks.vae_encoder import VaeEncoder


class ImageEncoder(nn.Module):
    """image [B, h, w, c] uint8 -> latent [B, C, H, W] float32. Without a VAE the pixels themselves, in [-1, 1]."""

    def __init__(self, vae: VaeEncoder | None) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor) -> Tensor:
        picture = image.to(torch.float32).permute(0, 3, 1, 2) / 127.5 - 1
        return picture if self.vae is None else self.vae(picture)


class Blend(nn.Module):
    """What is kept of a picture, put back into slot 0 as noisy as the next step expects it.

    next[b, 0] = (1 - keep) state[b, 0] + keep (level[b, 0] known + level[b, 1] noise); the other slots stay.
    """

    def forward(
        self,
        state: Tensor,  # [B, K, C, H, W]
        keep: Tensor,  # [B, 1, H, W]: 1 where the picture stays
        known: Tensor,  # [B, C, H, W]: its latent
        noise: Tensor,  # [B, C, H, W]: the run's first noise
        level: Tensor,  # [B, 2]: alpha and sigma of the next step
    ) -> Tensor:  # next_state [B, K, C, H, W]
        alpha, sigma = level[:, 0, None, None, None], level[:, 1, None, None, None]
        blended = torch.where(keep > 0.5, alpha * known + sigma * noise, state[:, 0])
        return torch.cat([blended[:, None], state[:, 1:]], dim=1)
