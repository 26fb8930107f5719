"""What a sampling loop is. It has no mathematics: bind row i of the tables, run the engine, swap two buffers.

host_loop.py runs a bundle's graphs step by step, device_loop.py enqueues plans; `Session` (session.py) has one of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..errors import RequestError
from ..samplers.program import Program
from .given import FromLatent
from .noise import NoiseSource
from .tables import StepTables


@dataclass(frozen=True)
class StepEvent:
    """What is told after each step. Arrays are views: copy them to keep them."""

    step: int  # steps done of this batch, 1 .. steps
    steps: int
    held: np.ndarray | None  # [B, K, C, H, W] float32; None: on the device, since nobody asked for it (`Watcher`)
    first: int = 0  # index of the batch's first image, where a run has several batches
    batch: int = 0  # that of this event
    batches: int = 1

    @property
    def state(self) -> np.ndarray:
        """[B, K, C, H, W] float32, every slot of the program. Raises RequestError where a `Watcher` did not want it."""
        if self.held is None:
            raise RequestError(f"the state after step {self.step} was not asked for: say so in the Watcher's `looks`")
        return self.held

    @property
    def latents(self) -> np.ndarray:
        """[B, C, H, W] float32, slot 0 of the state."""
        return self.state[:, 0]

    @property
    def done(self) -> int:
        """Steps done over all batches, 1 .. total."""
        return self.batch * self.steps + self.step

    @property
    def total(self) -> int:
        return self.batches * self.steps


Told = Callable[[StepEvent], None]  # is told of every step


@dataclass(frozen=True)
class Watcher:
    """An `on_step` that looks at latents or state after some steps only: where they lie on a device, others stay there.

    looks: whether it does after n steps (1 .. N).
    """

    tell: Told
    looks: Callable[[int], bool]

    def __call__(self, event: StepEvent) -> None:
        self.tell(event)


def looks_of(on_step: Told | None) -> Callable[[int], bool]:
    """After which steps it looks at the state: any, unless it is a `Watcher`."""
    return on_step.looks if isinstance(on_step, Watcher) else lambda _: on_step is not None


class Loop(Protocol):
    """The loaded engines of one bundle. One caller at a time."""

    def load(self, graph: str) -> None:
        """Loads a graph that the bundle has now rather than at first use."""

    def latents(
        self,
        program: Program,
        tables: StepTables,
        noise: NoiseSource,
        on_step: Told | None = None,
        cancel: threading.Event | None = None,
    ) -> np.ndarray:
        """Runs the whole program on one batch -> latents [B, C, H, W] float32. Raises Cancelled, RequestError."""

    def images(self, graph: str, latents: np.ndarray) -> np.ndarray:
        """latents [B, C, H, W] float32 -> uint8 [B, h, w, 1 or 3] by "decoder" or "preview", which the bundle has.

        A few at a time, so that memory stays bounded.
        """

    def close(self) -> None:
        """Frees everything. Calling it twice is fine."""


def first_state(program: Program, noise: NoiseSource, given: np.ndarray | None = None) -> np.ndarray:
    """[B, K, C, H, W] float32: scaled noise in slot 0, and given latents [B, C, H, W] if the program says so.

    Zeros in the other slots. given: those of a `FromLatent`, where left out. Raises RequestError when the program
    starts from given latents, and there are none.
    """
    if given is None and isinstance(noise, FromLatent):
        given = noise.latent
    if given is None and program.init[0] != 0:
        raise RequestError(
            f"program '{program.name}' starts from a given latent (its init is {list(program.init)}): give an image"
        )
    start = noise.initial()
    state = np.zeros((len(start), program.slots, *start.shape[1:]), dtype=np.float32)
    state[:, 0] = start * np.float32(program.init[1])
    if given is not None:
        state[:, 0] += np.float32(program.init[0]) * given
    return state
