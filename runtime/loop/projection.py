"""A rough picture of latents without a decoder, by the manifest's `preview`: one colour for each latent pixel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def linear_picture(
    latents: np.ndarray, weight: Sequence[Sequence[float]], bias: Sequence[float], scale: int
) -> np.ndarray:
    """latents [B, C, H, W] float32 -> uint8 [B, H * scale, W * scale, colours]: a rough picture, for the eye only.

    weight [colours][C] and bias [colours] give colours in [-1, 1]; each becomes a square of scale x scale pixels.
    """
    colour = np.einsum("kc,bchw->bhwk", np.array(weight, np.float32), latents) + np.array(bias, np.float32)
    picture = np.clip(127.5 * colour + 128, 0, 255).astype(np.uint8)
    return picture.repeat(scale, axis=1).repeat(scale, axis=2)
