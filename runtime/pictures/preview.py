"""Previews: the x0 estimates of a running batch, as PNGs beside the picture to come.

The x0 estimate costs nothing: `with_x0_slot` gives the program one more slot, and the step graph leaves it there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..bundle.open import Bundle
from ..errors import RequestError
from ..loop.loop import StepEvent
from ..loop.session import Session
from ..samplers.program import Program


@dataclass
class Previews:
    """Hands every `every`-th step's x0 estimates to `write`, batch by batch, while sampling goes on.

    The program sampled must be `with_x0_slot(...)`. write(step, images, first): uint8 images [n, h, w, 1 or 3] of every
    batch that got to this step, the newest from index `first` on -> the files written.
    """

    session: Session
    every: int
    write: Callable[[int, np.ndarray, int], list[Path]]
    written: dict[Path, None] = field(default_factory=dict)  # in order, each once
    _images: dict[int, list[np.ndarray]] = field(default_factory=dict)

    def shows(self, step: int) -> bool:
        return step % self.every == 0

    def on_step(self, event: StepEvent) -> None:
        if not self.shows(event.step):
            return
        images = self._images.setdefault(event.step, [])
        images.append(self.session.preview(event.state[:, -1]))
        self.written |= dict.fromkeys(self.write(event.step, np.concatenate(images), event.first))


def preview_path(picture: Path, step: int) -> Path:
    """boot.png -> boot.preview-0010.png"""
    return picture.with_name(f"{picture.stem}.preview-{step:04d}.png")


def check_previews(bundle: Bundle, program: Program, every: int) -> None:
    """Raises RequestError when there would be nothing to see."""
    if not 1 <= every <= program.steps:
        raise RequestError(f"--preview-every {every} is not between 1 and the program's {program.steps} steps")
    if "preview" not in bundle.manifest.graphs:
        bundle.require("decoder")  # raises, with the remedy
