"""`sample-set` and `merge` as functions: fill the gaps of a set, then make it whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..bundle.open import Bundle, open_bundle
from ..errors import RequestError
from ..files import sha256_of_file
from ..pictures.recipe import Recipe
from ..pictures.single import png_of
from ..report import Report, silent
from ..samplers.program import Program
from .places import Arrays, Encode, Place, place_of
from .plan import SetPlan, begin, check_same, plan_of, read_plan, shard_of
from .request import MergeRequest, SampleSetRequest
from .sampling import batches_here, batches_on_ray


@dataclass(frozen=True)
class Done:
    """What was found, made and is missing. whole: the file with which the set is complete; None: it is not yet."""

    folder: Path
    plan: SetPlan
    kept: int  # images that were there
    sampled: int
    missing: int  # of the whole set: other shards'
    whole: Path | None
    sha256: str | None  # of `whole`, which holds all pixels, or the hashes of all files


def sample_set(request: SampleSetRequest, report: Report = silent) -> Done:
    """Raises DitedgeError. What was written stays, and the same request goes on from there."""
    bundle = open_bundle(request.engine, trusted_keys=request.trusted_keys or None)
    plan, shard = plan_of(request, bundle), shard_of(request.shard)
    begin(request.out, plan)
    place = place_of(request.out, plan)
    if isinstance(place, Arrays) and place.complete():
        return _done(request.out, plan, place, 0, set())
    there = _there(place, range(plan.batches), report)
    gaps = [batch for batch in shard.batches(plan) if batch not in there]
    if gaps:
        _fill(request, bundle, plan, place, gaps, report)
    missing = _missing(plan, there, gaps)
    if _came_meanwhile(place, missing):
        missing = set()
    return _done(request.out, plan, place, sum(len(plan.images(batch)) for batch in gaps), missing, report)


def merge(request: MergeRequest, report: Report = silent) -> Done:
    """Shards -> the whole set in `out`. Raises RequestError where they are of different sets."""
    if not request.shards:
        raise RequestError("there is nothing to merge: give --shard a folder of `sample-set`, once for each")
    plan = read_plan(request.shards[0])
    for folder in request.shards[1:]:
        check_same(folder, read_plan(folder), plan)
    begin(request.out, plan)
    place = place_of(request.out, plan)
    if isinstance(place, Arrays) and place.complete():
        return _done(request.out, plan, place, 0, set())
    there = set(_there(place, range(plan.batches), report))
    for folder in request.shards:
        theirs = place_of(folder, plan)
        for batch in range(plan.batches):
            if batch not in there and theirs.has(batch):
                place.take(batch, folder)
                there.add(batch)
    return _done(request.out, plan, place, 0, _missing(plan, there, ()), report)


def _there(place: Place, batches: range, report: Report) -> set[int]:
    found = set()
    for batch in batches:
        if place.has(batch):
            found.add(batch)
        report("looking at what is there", batch + 1, len(batches))
    return found


def _missing(plan: SetPlan, there: Iterable[int], made: Iterable[int]) -> set[int]:
    return set(range(plan.batches)) - {*there, *made}


def _came_meanwhile(place: Place, missing: set[int]) -> bool:
    """Whether other shards that write into the same folder have made all that was missing."""
    if not missing:
        return False
    joined = isinstance(place, Arrays) and place.complete()
    return joined or all(place.has(batch) for batch in missing)


def _fill(
    request: SampleSetRequest, bundle: Bundle, plan: SetPlan, place: Place, gaps: list[int], report: Report
) -> None:
    encode = _encoder(bundle, bundle.program(**asdict(request.settings)), plan)
    batches = batches_here if request.ray.ray is None else batches_on_ray
    for number, (batch, images) in enumerate(batches(request, plan, gaps)):
        place.write(batch, images, encode)
        report("sampling", number + 1, len(gaps))


def _encoder(bundle: Bundle, program: Program, plan: SetPlan) -> Encode:
    """PNGs as `run` writes them: each knows how it is made again."""

    def encode(image: int, pixels: np.ndarray) -> bytes:
        return png_of(bundle, Recipe([plan.label(image)], [plan.seed + image], None, plan.guidance, program), pixels)

    return encode


def _done(folder: Path, plan: SetPlan, place: Place, sampled: int, missing: set[int], report: Report = silent) -> Done:
    left = sum(len(plan.images(batch)) for batch in missing)
    if left:
        whole = None
    elif isinstance(place, Arrays) and place.complete():
        whole = place.whole
    else:
        whole = place.finish(report)
    kept = plan.count - left - sampled
    return Done(folder, plan, kept, sampled, left, whole, sha256_of_file(whole) if whole is not None else None)
