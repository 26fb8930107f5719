"""What a run on a device reads of its prompts and its size: uploaded where it is not there already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .device_memory import Arena, Memory, offsets_of
from .engine_trt import Gpu
from .prompts import Prompt

RECORD = "prompts"


class Prompts:
    """`context`, `context_bias` and `position` at one place: they are the same at every step of a run.

    shapes, addresses: by name; both empty where the model takes no prompts.
    """

    def __init__(self, gpu: Gpu, memory: Memory, told: Mapping[str, np.ndarray]) -> None:
        """told: what `TextGraphs.inputs` made of a run of this shape."""
        read = _read(told)
        self.shapes = {name: array.shape for name, array in read.items()}
        self._arena = Arena(gpu, memory, {RECORD: read}) if read else None
        start = self._arena.address(RECORD) if self._arena is not None else 0
        self.addresses = {name: start + offset for name, offset in offsets_of(read).items()}
        self._there: tuple[str, ...] = ()  # keys of the prompts whose context lies there

    def upload(self, prompts: Sequence[Prompt], told: Mapping[str, np.ndarray], stream: int) -> None:
        """Enqueues the copy, if there are other prompts than those of the run before. Nothing else is enqueued."""
        keys = tuple(prompt.key for prompt in prompts)
        if self._arena is None or keys == self._there:
            return
        self._there = ()
        self._arena.upload({RECORD: _read(told)}, stream)
        self._there = keys


def _read(told: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the step reads of it; the vector is the conditioner's."""
    return {name: array for name, array in told.items() if name != "vector"}
