"""One picture as the bytes that `run` writes for it, for who samples pictures by other ways."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..bundle.open import Bundle
from ..loop.engine import EngineOptions
from .images import picture_bytes
from .job import Files, Job, metadata
from .outputs import Output
from .recipe import Recipe
from .request import RunOptions

TO_MEMORY = Files(Output(Path("-"), "stdout"), None, None, None)


def png_of(bundle: Bundle, recipe: Recipe, image: np.ndarray, step: int | None = None) -> bytes:
    """image: uint8 [h, w, 1 or 3], the only one of the recipe. step: of an estimate."""
    job = Job(bundle, EngineOptions(), recipe, None, None, RunOptions(), TO_MEMORY)
    return picture_bytes("PNG", image, metadata(job, slice(None), step))
