"""Pixels of a ticket as the PNG that `ditedge run` writes: with what makes it again, for `run --like`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..bundle.open import Bundle
from ..loop.engine import EngineOptions
from ..pictures.images import picture_bytes
from ..pictures.job import Files, Job, metadata
from ..pictures.outputs import Output
from ..pictures.recipe import Recipe
from ..pictures.request import RunOptions
from .ticket import Asked

TO_MEMORY = Files(Output(Path("-"), "stdout"), None, None, None)


def png(bundle: Bundle, asked: Asked, image: np.ndarray, step: int | None = None) -> bytes:
    """image: uint8 [h, w, 1 or 3]. step: of an estimate."""
    recipe = Recipe(
        labels=[asked.label],
        seeds=[asked.seed],
        away_from=None if asked.away_from is None else [asked.away_from],
        guidance=bundle.manifest.defaults.guidance if asked.guidance is None else asked.guidance,
        program=asked.program,
    )
    job = Job(bundle, EngineOptions(), recipe, None, None, RunOptions(), TO_MEMORY)
    return picture_bytes("PNG", image, metadata(job, slice(None), step))
