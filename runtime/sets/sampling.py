"""A process's own part of the work: loaded engines that sample one batch of a set after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np

from ..bundle.open import Bundle, open_bundle
from ..errors import RequestError
from ..loop.engine import options_for
from ..loop.generate import generate
from ..loop.session import Session
from .on_ray import on_ray
from .plan import SetPlan
from .request import SampleSetRequest


def opened_again(engine: Path, sha256: str, trusted_keys: Iterable[Path] | None = ()) -> Bundle:
    """The bundle of which somebody else knows the hash. Raises RequestError where it is another, BundleError."""
    bundle = open_bundle(engine, trusted_keys=trusted_keys)
    if bundle.sha256 != sha256:
        raise RequestError(f"{engine} is another bundle than the one that this was begun with")
    return bundle


class BatchMaker:
    """`close` frees the engines."""

    def __init__(self, request: SampleSetRequest, plan: SetPlan) -> None:
        """Raises BundleError, and RequestError where another bundle is there by now, or on this machine."""
        self._plan = plan
        bundle = opened_again(request.engine, plan.bundle_sha256, request.trusted_keys or None)
        self._program = bundle.program(**asdict(request.settings))
        self._session = Session(bundle, options_for(request.engine, request.options))

    def sample(self, batch: int) -> np.ndarray:
        """uint8 [b, h, w, 1 or 3]. Raises EngineError, NotFiniteError."""
        plan, images = self._plan, self._plan.images(batch)
        return generate(
            self._session.bundle,
            [plan.label(image) for image in images],
            [plan.seed + image for image in images],
            program=self._program,
            guidance=plan.guidance,
            batch=plan.batch,
            session=self._session,
        )

    def close(self) -> None:
        self._session.close()


def batches_here(request: SampleSetRequest, plan: SetPlan, gaps: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Each gap with its images, one after the other in this process."""
    maker = BatchMaker(request, plan)
    try:
        for batch in gaps:
            yield batch, maker.sample(batch)
    finally:
        maker.close()


def batches_on_ray(request: SampleSetRequest, plan: SetPlan, gaps: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Each gap with its images, in the order in which they are there. Raises RequestError, EngineError."""
    threads = request.options.threads or 1
    request = replace(request, options=replace(request.options, threads=threads), engine=request.engine.absolute())
    return on_ray(request.ray, threads, partial(BatchMaker, request, plan), gaps)
