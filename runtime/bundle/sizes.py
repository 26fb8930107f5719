"""Sizes of pictures and latents of a model that takes prompts: what was asked for, in the model's terms."""

from __future__ import annotations

import re

from ..errors import RequestError
from .open import Bundle
from .text_info import TextInfo


def text_of(bundle: Bundle) -> TextInfo:
    """Raises RequestError for a model that takes classes."""
    if bundle.manifest.text is None:
        raise RequestError(f"{bundle.folder} takes classes, and no prompts: leave prompts and sizes out")
    return bundle.manifest.text


def sides_of(text: TextInfo) -> tuple[int, int]:
    """What a picture's sides in pixels are multiples of, and the longest that they may be."""
    return text.factor * text.multiple, text.factor * text.largest


def latent_of(bundle: Bundle, size: tuple[int, int] | None) -> tuple[int, int, int]:
    """C, H, W. size: (width, height) of pictures in pixels; None is the model's own. Raises RequestError."""
    shape = bundle.manifest.model.latent_shape
    if size is None:
        return shape
    text = text_of(bundle)
    unit, most = sides_of(text)
    for name, pixels in zip(("width", "height"), size, strict=True):
        if not isinstance(pixels, int) or not unit <= pixels <= most or pixels % unit:
            near = max(unit, min(most, round(pixels / unit) * unit)) if isinstance(pixels, int) else unit
            raise RequestError(
                f"{name} {pixels} is not a multiple of {unit} from {unit} to {most} pixels: the nearest is {near}"
            )
    return shape[0], size[1] // text.factor, size[0] // text.factor


def read_size(text: str, name: str = "--size") -> tuple[int, int]:
    """ "768x512" -> (768, 512): width and height in pixels. Raises RequestError. name: of what says it."""
    found = re.fullmatch(r"(\d{1,6})[xX](\d{1,6})", text)
    if found is None:
        raise RequestError(f"{name} {text!r} is not WIDTHxHEIGHT in pixels, such as 768x512")
    return int(found[1]), int(found[2])
