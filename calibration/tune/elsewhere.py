"""A search's pictures by Ray's workers: the same batches as of one process, and so the same pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np

from ...runtime.bundle.open import Bundle
from ...runtime.loop.engine import EngineOptions
from ...runtime.loop.session import Session
from ...runtime.sets.on_ray import Ask, crew, in_order
from ...runtime.sets.sampling import opened_again
from ..pool import Pool
from .judge import Asked, Sample, sampled
from .request import TuneRequest


class ProgramMaker:
    """What a worker holds: the engines of each bundle, from the first program on that it samples there."""

    def __init__(self, sha256: Mapping[Path, str], options: EngineOptions, pool: Pool) -> None:
        """sha256: of the bundles, by their folders."""
        self._sha256, self._options, self._pool = sha256, options, pool
        self._sessions: dict[Path, Session] = {}

    def sample(self, batch: Asked) -> np.ndarray:
        """As `sampled`. Raises DitedgeError."""
        if batch.bundle not in self._sessions:
            bundle = opened_again(batch.bundle, self._sha256[batch.bundle])
            self._sessions[batch.bundle] = Session(bundle, self._options)
        return sampled(self._sessions[batch.bundle], self._pool, batch)


def sampled_elsewhere(request: TuneRequest, bundles: Sequence[Bundle], pool: Pool, stack: ExitStack) -> Sample | None:
    """By workers, which are there from the first batch until `stack` is closed; None where none are asked for."""
    if request.ray.ray is None:
        return None
    threads = request.options.threads or 1
    sha256 = {bundle.folder.absolute(): bundle.sha256 for bundle in bundles}
    make = partial(ProgramMaker, sha256, replace(request.options, threads=threads), pool)

    @cache
    def workers() -> Ask:
        return stack.enter_context(crew(request.ray, threads, make, -(-request.images[-1] // request.batch)))

    def sample(asked: Sequence[Asked]) -> Iterator[np.ndarray]:
        numbers = {batch: number for number, batch in enumerate(asked)}
        return in_order((numbers[batch], images) for batch, images in workers()(asked))

    return sample
