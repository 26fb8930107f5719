"""PNG files that remember how they were made, so that a picture can be made again from its own file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .errors import RequestError
from .files import written_atomically

METADATA_KEY = "ditedge"


def grid(images: np.ndarray, columns: int | None = None, gap: int = 2) -> np.ndarray:
    """uint8 [n, h, w, c] -> one uint8 [H, W, c] picture, rows filled first; None is the squarest grid."""
    count, height, width, channels = images.shape
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    picture = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        picture[top : top + height, left : left + width] = image
    return picture


def linear_picture(
    latents: np.ndarray, weight: Sequence[Sequence[float]], bias: Sequence[float], scale: int
) -> np.ndarray:
    """latents [B, C, H, W] float32 -> uint8 [B, H * scale, W * scale, colours]: a rough picture, for the eye only.

    weight [colours][C] and bias [colours] give colours in [-1, 1]; each becomes a square of scale x scale pixels.
    """
    colour = np.einsum("kc,bchw->bhwk", np.array(weight, np.float32), latents) + np.array(bias, np.float32)
    picture = np.clip(127.5 * colour + 128, 0, 255).astype(np.uint8)
    return picture.repeat(scale, axis=1).repeat(scale, axis=2)


def write_png(path: Path, image: np.ndarray, metadata: dict[str, Any]) -> None:
    """image uint8 [h, w, 1 or 3] -> PNG, atomically, with `metadata` as JSON in a text chunk."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text(METADATA_KEY, json.dumps(metadata))
    with written_atomically(path) as temporary:
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(temporary, format="PNG", pnginfo=text)


def read_png_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a PNG that `write_png` made. Raises RequestError when it has none."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            text = image.info.get(METADATA_KEY)
        data = json.loads(text) if isinstance(text, str) else None
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise RequestError(f"{path}: not a readable PNG ({error})") from None
    if not isinstance(data, dict):
        raise RequestError(f"{path}: has no ditedge metadata: it was not made by `run`, or was re-saved since")
    return data
