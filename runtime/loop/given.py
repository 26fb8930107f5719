"""Images that begin from a picture instead of noise alone: what is kept of it, and where it is painted over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..bundle.open import Bundle
from ..errors import RequestError
from ..samplers.levels import levels_of_program
from ..samplers.program import Program
from .engine import Engine
from .noise import NoiseSource

PAINTED = 0.5  # share of the pixels of a latent pixel: from it on, it is painted over


@dataclass(frozen=True)
class FromLatent:
    """A `NoiseSource` for a program that starts from given latents (its `init[0]` is not 0).

    latent: [B, C, H, W] float32. keep: [B, 1, H, W] float32, 1 where the picture stays and 0 where it is painted over;
    None paints all of it over.
    """

    source: NoiseSource
    latent: np.ndarray
    keep: np.ndarray | None = None

    def initial(self) -> np.ndarray:
        return self.source.initial()

    def step(self, step: int) -> np.ndarray:
        return self.source.step(step)


class Blend:
    """Puts what is kept back after each step, as noisy as the next step expects it: the graph `blend`."""

    def __init__(self, program: Program, noise: FromLatent) -> None:
        """Raises ProgramError where the program does not say how noisy its steps are."""
        self._levels = levels_of_program(program).astype(np.float32)
        known = {"keep": noise.keep, "known": noise.latent, "noise": noise.initial()}
        self._known = {name: np.ascontiguousarray(values) for name, values in known.items()}
        self._batch = len(noise.latent)

    def inputs(self, step: int, state: np.ndarray) -> dict[str, np.ndarray]:
        """After `step` (0 .. N - 1). state [B, K, C, H, W]"""
        level = np.repeat(self._levels[step + 1][None], self._batch, axis=0)
        return {"state": state, "level": level, **self._known}


def blend_of(program: Program, noise: NoiseSource) -> Blend | None:
    """None where nothing is kept."""
    return Blend(program, noise) if isinstance(noise, FromLatent) and noise.keep is not None else None


def picture_size(bundle: Bundle, latent: tuple[int, int, int]) -> tuple[int, int, int]:
    """h, w and channels of the pictures that the graph `encoder` reads. latent: C, H, W. Raises RequestError."""
    if "encoder" not in bundle.manifest.graphs:
        raise RequestError(
            f"{bundle.folder} has no encoder, so it cannot start from a picture: export it again with --encoder"
        )
    height, width, channels = bundle.manifest.graphs["encoder"].inputs[0].shape[1:]
    if bundle.manifest.text is not None:
        height, width = (side * bundle.manifest.text.factor for side in latent[1:])
    return int(height), int(width), int(channels)


def pictures_of(bundle: Bundle, image: np.ndarray, images: int, latent: tuple[int, int, int]) -> np.ndarray:
    """image uint8 [h, w, c] for all, or [n, h, w, c] -> [1 or n, h, w, c]. Raises RequestError."""
    size, given = picture_size(bundle, latent), np.asarray(image)
    stack = given[None] if given.ndim == 3 else given
    if stack.dtype != np.uint8 or stack.shape[1:] != size or len(stack) not in (1, images):
        raise RequestError(
            f"the image is {stack.dtype} {list(given.shape)}: give uint8 {list(size)}, or {[images, *size]}"
        )
    return np.ascontiguousarray(stack)


def kept_of(mask: np.ndarray, images: int, size: tuple[int, int], latent: tuple[int, int, int]) -> np.ndarray:
    """mask [h, w] or [n, h, w], bool or uint8, not 0 where the picture is painted over -> keep [1 or n, 1, H, W].

    size: h, w. A latent pixel is painted over where at least half of its pixels are. Raises RequestError.
    """
    given = np.asarray(mask)
    stack = given[None] if given.ndim == 2 else given
    if stack.dtype not in (np.bool_, np.uint8) or stack.shape[1:] != size or len(stack) not in (1, images):
        raise RequestError(
            f"the mask is {stack.dtype} {list(given.shape)}: give bool or uint8 {list(size)}, or {[images, *size]}"
        )
    height, width = latent[1:]
    cells = (stack != 0).reshape(len(stack), height, size[0] // height, width, size[1] // width)
    keep: np.ndarray = (cells.mean(axis=(2, 4)) < PAINTED).astype(np.float32)[:, None]
    return keep


def encoded(engine: Callable[[str], Engine], pictures: np.ndarray, latent: tuple[int, int, int]) -> np.ndarray:
    """pictures uint8 [n, h, w, c] -> latents [n, C, H, W] float32, one at a time: memory stays bounded."""
    latents = np.empty((len(pictures), *latent), dtype=np.float32)
    for i in range(len(pictures)):
        engine("encoder").run({"image": pictures[i : i + 1]}, {"latent": latents[i : i + 1]})
    if not np.isfinite(latents).all():
        raise RequestError("the encoder overflowed on the picture")
    return latents
