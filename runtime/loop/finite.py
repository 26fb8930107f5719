"""Pictures whose numbers overflowed: found at the end of each batch, and at the step where it begins when asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..bundle.open import Bundle
from ..errors import BrokenImage, NotFiniteError
from .loop import StepEvent

NAMED = 4  # broken pictures that a sentence names


def not_finite(values: np.ndarray) -> np.ndarray:
    """[B, ...] float32 -> [B] bool: which have a number that is infinite or none."""
    return ~np.isfinite(values).reshape(len(values), -1).all(axis=1)


@dataclass
class FirstBroken:
    """Of each image of a batch, the step after which its state was first not finite; 0: not seen."""

    batch: int
    step: np.ndarray = field(init=False)  # [B] int

    def __post_init__(self) -> None:
        self.step = np.zeros(self.batch, dtype=int)

    def on_step(self, event: StepEvent) -> None:
        self.step[not_finite(event.state) & (self.step == 0)] = event.step


def broken_images(
    bad: np.ndarray, first: int, labels: Sequence[int], seeds: Sequence[int] | None, steps: np.ndarray | None
) -> list[BrokenImage]:
    """bad [B] of the batch that begins with image `first`; steps [B] of `FirstBroken`, None when nobody looked.

    labels: empty where the images are of prompts.
    """
    return [
        BrokenImage(
            index=first + i,
            label=int(labels[first + i]) if labels else None,
            seed=int(seeds[first + i]) if seeds is not None else None,
            step=int(steps[i]) if steps is not None else None,
        )
        for i in np.flatnonzero(bad).tolist()
    ]


def not_finite_error(bundle: Bundle, broken: Sequence[BrokenImage], results: np.ndarray) -> NotFiniteError:
    """The sentence names the first few pictures, and what to do."""
    named = [_words(bundle, image) for image in broken[:NAMED]]
    more = [f"and {len(broken) - NAMED} more"] if len(broken) > NAMED else []
    precise = all(graph.precision == "float32" for graph in bundle.manifest.graphs.values())
    remedy = "try less guidance, or verify the bundle" if precise else "use the float32 bundle, or bf16"
    step = "" if any(image.step for image in broken) else "; --check-finite says at which step it begins"
    message = f"{len(broken)} of {len(results)} pictures overflowed: {', '.join(named + more)}; {remedy}{step}"
    return NotFiniteError(message, tuple(broken), results)


def _words(bundle: Bundle, image: BrokenImage) -> str:
    said = [_class(bundle, image.label)] if image.label is not None else []
    said += [f"seed {image.seed}"] if image.seed is not None else []
    said += [f"from step {image.step} on"] if image.step else []
    return f"image {image.index}" + (f" ({', '.join(said)})" if said else "")


def _class(bundle: Bundle, label: int) -> str:
    name = bundle.label_name(label) if label != bundle.manifest.model.null_class else "no class"
    return f"class {label}" + (f" {name}" if name != str(label) else "")
