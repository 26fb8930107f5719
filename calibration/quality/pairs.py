"""The images of a comparison, batch by batch: sampled here or by Ray's workers; A's pictures may come from a set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from ...runtime.bundle.open import Bundle
from ...runtime.errors import RequestError
from ...runtime.loop.loop import StepEvent
from ...runtime.loop.noise import SeededNoise
from ...runtime.loop.session import Session
from ...runtime.report import silent
from ...runtime.samplers.settings import SamplerSettings
from ...runtime.sets.finished import FinishedSet, finished_set
from ...runtime.sets.on_ray import in_order, on_ray
from ...runtime.sets.request import SampleSetRequest
from ...runtime.sets.sampling import opened_again
from ..pool import Subject
from .metric import Batch, Comparing
from .pictures import has_pictures
from .request import CompareRequest

_REMEDY = "give one of `sample-set --balanced` of A, with --seed, --batch, sampler and guidance as here"


class Pairs:
    """Both bundles, loaded. `close` frees their engines."""

    def __init__(self, comparing: Comparing) -> None:
        self._comparing, self._done = comparing, 0
        self._a = Session(comparing.a, comparing.request.options_a)
        self._b = Session(comparing.b, comparing.request.options_b)

    def sample(self, batch: int) -> Batch:
        """A, then A with other seeds, then B. Raises EngineError, NotFiniteError."""
        comparing, request = self._comparing, self._comparing.request
        images, known = images_of(comparing, batch), comparing.samples is not None
        of, seed = comparing.pool.cycled(images.start, len(images)), request.seed + images.start
        a = other = pictures_a = pictures_b = pictures_other = None
        if batch == 0 or not known:
            a = self._path(self._a, of, seed)
        if batch == 0 or (request.features is not None and not known):
            other = self._path(self._a, of, seed + request.count)[-1].copy()
        b = self._path(self._b, of, seed)
        if has_pictures(comparing.a, comparing.b):
            pictures_b = self._b.images(b[-1])
            pictures_a = self._a.images(a[-1]) if a is not None and not known else None
            if other is not None and request.features is not None and not known:
                pictures_other = self._a.images(other)
        return Batch(a, b, other, pictures_a, pictures_b, pictures_other)

    def _path(self, session: Session, subjects: Sequence[Subject], seed: int) -> np.ndarray:
        """Latents after each step, [N, B, C, H, W] float32."""
        program, shape = self._comparing.program, session.bundle.manifest.model.latent_shape
        path = np.empty((program.steps, len(subjects), *shape), dtype=np.float32)
        total = program.steps * paths_of(self._comparing)

        def on_step(event: StepEvent) -> None:
            path[event.step - 1] = event.latents
            self._done += 1
            self._comparing.report("sampling", self._done, total)

        noise = SeededNoise([seed + i for i in range(len(subjects))], shape)
        self._comparing.pool.latents(session, program, subjects, self._comparing.guidance, noise, on_step)
        return path

    def close(self) -> None:
        self._a.close()
        self._b.close()


def images_of(comparing: Comparing, batch: int) -> range:
    size, count = comparing.request.batch, comparing.request.count
    return range(batch * size, min(count, (batch + 1) * size))


def paths_of(comparing: Comparing) -> int:
    """Batches that are sampled, of A, of A with other seeds and of B together."""
    batches = -(-comparing.request.count // comparing.request.batch)
    of_a = batches if comparing.samples is None else 1
    return of_a + (of_a if comparing.request.features is not None else 1) + batches


def batches_of(comparing: Comparing) -> Iterator[Batch]:
    """All, from the first on. Raises DitedgeError."""
    for number, batch in enumerate(_sampled(comparing)):
        yield batch if comparing.samples is None else _with_samples(comparing, comparing.samples, number, batch)


def _sampled(comparing: Comparing) -> Iterator[Batch]:
    request = comparing.request
    numbers = list(range(-(-request.count // request.batch)))
    if request.ray.ray is not None:
        threads = request.options_a.threads or 1
        batches = on_ray(request.ray, threads, partial(_pairs_elsewhere, _told(comparing, threads)), numbers)
        for done, batch in enumerate(in_order(batches)):
            comparing.report("sampling", done + 1, len(numbers))
            yield batch
        return
    pairs = Pairs(comparing)
    try:
        yield from map(pairs.sample, numbers)
    finally:
        pairs.close()


def _told(comparing: Comparing, threads: int) -> Comparing:
    """What other processes can be sent: bundles by their folders and hashes."""
    a, b = (Bundle(bundle.folder.absolute(), bundle.manifest, bundle.sha256) for bundle in (comparing.a, comparing.b))
    options = replace(comparing.request.options_a, threads=threads)
    return replace(comparing, a=a, b=b, report=silent, request=replace(comparing.request, options_a=options))


def _pairs_elsewhere(told: Comparing) -> Pairs:
    a, b = (opened_again(bundle.folder, bundle.sha256) for bundle in (told.a, told.b))
    return Pairs(replace(told, a=a, b=b))


def samples_of_a(a: Bundle, request: CompareRequest) -> FinishedSet | None:
    """The set that was given. Raises RequestError where it is not of A's pictures as a comparison would make them."""
    if request.sample_set is None:
        return None
    a.require_classes("--sample-set")
    found = finished_set(request.sample_set)
    needed = request.count * (1 if request.features is None else 2)
    if found.plan.count < needed:
        raise RequestError(f"{found.folder} has {found.plan.count} images, and {needed} are needed: give one of more")
    if request.features is not None and request.count % a.manifest.model.num_classes:
        raise RequestError(
            f"--count {request.count} is no multiple of {a.manifest.model.num_classes} classes, so the later images of "
            f"{found.folder} are not of those that A has with other seeds: give another --count"
        )
    asked = SampleSetRequest(
        a.folder,
        count=found.plan.count,
        out=found.folder,
        format=found.plan.format,
        layout=found.plan.layout,
        balanced=True,
        seed=request.seed,
        settings=SamplerSettings(sampler=request.sampler, steps=request.steps),
        guidance=request.guidance,
        batch=request.batch,
        options=request.options_a,
    )
    found.check_was_made_with(asked, a, _REMEDY)
    return found


def _with_samples(comparing: Comparing, samples: FinishedSet, number: int, batch: Batch) -> Batch:
    """With A's pictures from the set: with other seeds they are those behind the first `count`."""
    images, count = images_of(comparing, number), comparing.request.count
    channels = comparing.a.manifest.picture_size("decoder")[2]
    other = None
    if comparing.request.features is not None:
        other = samples.read(range(count + images.start, count + images.stop))[..., :channels]
    return replace(batch, pictures_a=samples.read(images)[..., :channels], pictures_other=other)
