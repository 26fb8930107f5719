"""A bundle's run beside that of the pipeline that it was exported from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ditedge.runtime.bundle.open import Bundle
from ditedge.runtime.loop.generate import generate
from ditedge.runtime.loop.noise import GivenNoise
from ditedge.runtime.loop.prompts import Prompt
from ditedge.runtime.loop.verify import relative_error


def assert_same_run(
    bundle: Bundle,
    noise: GivenNoise,
    expected: Sequence[np.ndarray],
    pictures: np.ndarray,
    prompts: Sequence[str | Prompt],
    size: tuple[int, int],
    channels: int = 3,
    **told: Any,
) -> np.ndarray:
    """Latents within 1e-4 at every step, pictures within 1 of 255 in 99.9 % -> our pictures.

    expected: the pipeline's latents after each step; pictures [2, h, w, channels] in [0, 1]; size: (width, height).
    """
    found: list[np.ndarray] = []
    images = generate(
        bundle,
        seeds=[0, 1],
        prompts=prompts,
        size=size,
        noise=noise,
        on_step=lambda event: found.append(event.latents.copy()),
        **told,
    )
    assert len(found) == len(expected) == len(noise.noise)
    worst = max(relative_error(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert worst < 1e-4
    difference = np.abs(images.astype(int) - np.round(255 * pictures).astype(int))
    assert images.shape == (2, size[1], size[0], channels) and np.mean(difference <= 1) >= 0.999
    return images
