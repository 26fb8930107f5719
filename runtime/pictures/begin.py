"""The picture that a run begins from, and the mask of what is painted over: from files to the size of the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..bundle.open import Bundle
from ..bundle.sizes import latent_of, sides_of, text_of
from ..errors import RequestError
from ..files import sha256_of_file
from ..loop.given import picture_size
from .images import open_picture
from .request import ImageOptions

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Beginning:
    """image uint8 [h, w, c] of the size of the run; mask bool [h, w], true where it is painted over.

    files: hashes of both, as pictures remember them.
    """

    image: np.ndarray
    mask: np.ndarray | None = None
    files: dict[str, str] = field(default_factory=dict)


def beginning_of(asked: ImageOptions, bundle: Bundle, size: tuple[int, int] | None) -> Beginning | None:
    """size: (width, height) of a model that takes prompts; None is the model's. Raises RequestError.

    A picture of another shape is scaled until it covers the run's, and cut at both ends alike; so is its mask.
    """
    if asked.image is None:
        if asked.mask is not None:
            raise RequestError(f"--mask {asked.mask} says which part of a picture is painted over: give --image, too")
        return None
    height, width, channels = picture_size(bundle, latent_of(bundle, size))
    with open_picture(asked.image) as picture:
        own = picture.size
        image = _fitted(picture, (width, height), "L" if channels == 1 else "RGB")
    files = {"image_sha256": sha256_of_file(asked.image)}
    if asked.mask is None:
        return Beginning(image.reshape(height, width, channels), None, files)
    with open_picture(asked.mask) as picture:
        if picture.size != own:
            raise RequestError(
                f"{asked.mask} has {picture.size[0]} x {picture.size[1]} pixels, {asked.image} {own[0]} x {own[1]}: "
                "a mask has its picture's size"
            )
        mask = _fitted(picture, (width, height), "L") > 127
    return Beginning(image.reshape(height, width, channels), mask, files | {"mask_sha256": sha256_of_file(asked.mask)})


def own_size(image: Path, bundle: Bundle) -> tuple[int, int]:
    """(width, height) nearest to a picture's own that a model that takes prompts can make. Raises RequestError."""
    unit, most = sides_of(text_of(bundle))
    with open_picture(image) as picture:
        shrunk = min(1.0, most / max(picture.size))
        width, height = (max(unit, round(shrunk * side / unit) * unit) for side in picture.size)
    return min(width, most), min(height, most)


def _fitted(picture: Image.Image, size: tuple[int, int], mode: str) -> np.ndarray:
    from PIL import Image, ImageOps

    turned = ImageOps.exif_transpose(picture).convert(mode)
    return np.asarray(ImageOps.fit(turned, size, Image.Resampling.LANCZOS))
