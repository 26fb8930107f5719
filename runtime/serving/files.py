"""Pixels of a ticket as the PNG that `ditedge run` writes: with what makes it again, for `run --like`."""

from __future__ import annotations

import numpy as np

from ..bundle.open import Bundle
from ..loop.prompts import Prompt
from ..pictures.recipe import Recipe
from ..pictures.single import png_of
from .ticket import Asked


def png(bundle: Bundle, asked: Asked, image: np.ndarray, step: int | None = None) -> bytes:
    """image: uint8 [h, w, 1 or 3]. step: of an estimate."""
    guidance = bundle.manifest.defaults.guidance if asked.guidance is None else asked.guidance
    away = [] if asked.away_from is None else [asked.away_from]
    recipe = Recipe(
        labels=[asked.subject] if isinstance(asked.subject, int) else [],
        seeds=[asked.seed],
        away_from=[label for label in away if isinstance(label, int)] or None,
        guidance=guidance,
        program=asked.program,
        prompts=[asked.subject] if isinstance(asked.subject, Prompt) else [],
        negative=[prompt for prompt in away if isinstance(prompt, Prompt)],
        size=asked.size,
    )
    return png_of(bundle, recipe, image, step)


def said_of(bundle: Bundle, asked: Asked) -> str:
    """What an image is of, in words."""
    subject = asked.subject
    return subject.text or "" if isinstance(subject, Prompt) else bundle.label_name(subject)
