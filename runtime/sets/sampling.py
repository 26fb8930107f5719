"""A process's own part of the work: loaded engines that sample one batch of a set after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import numpy as np

from ..bundle.open import open_bundle
from ..errors import RequestError
from ..loop.engine import options_for
from ..loop.generate import generate
from ..loop.session import Session
from .plan import SetPlan
from .request import SampleSetRequest


class BatchMaker:
    """`close` frees the engines."""

    def __init__(self, request: SampleSetRequest, plan: SetPlan) -> None:
        """Raises BundleError, and RequestError where another bundle is there by now, or on this machine."""
        self._plan = plan
        bundle = open_bundle(request.engine, trusted_keys=request.trusted_keys or None)
        if bundle.sha256 != plan.bundle_sha256:
            raise RequestError(f"{request.engine} is another bundle than the set was begun with")
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
