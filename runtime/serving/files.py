"""Pixels of a ticket as the PNG that `ditedge run` writes: with what makes it again, for `run --like`."""

from __future__ import annotations

import numpy as np

from ..bundle.open import Bundle
from ..pictures.recipe import Recipe
from ..pictures.single import png_of
from .ticket import Asked


def png(bundle: Bundle, asked: Asked, image: np.ndarray, step: int | None = None) -> bytes:
    """image: uint8 [h, w, 1 or 3]. step: of an estimate."""
    recipe = Recipe(
        labels=[asked.label],
        seeds=[asked.seed],
        away_from=None if asked.away_from is None else [asked.away_from],
        guidance=bundle.manifest.defaults.guidance if asked.guidance is None else asked.guidance,
        program=asked.program,
    )
    return png_of(bundle, recipe, image, step)
