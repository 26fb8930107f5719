"""How many images a call of the step graph takes: measured, for no processor says it.

A GPU is quicker by the image the more share a call. A CPU is full with one: more cost the same each while they fit its
caches, and up to a quarter more beyond (DiT-S/2, 16 images). Images share turns either way.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from copy import copy

from ..errors import EngineError
from ..loop.image_run import ImageRun
from ..loop.session import Session
from ..loop.subjects import any_subject, image_tokens

log = logging.getLogger(__name__)
ROUNDS = 3  # of which the quickest counts: whatever else the machine does only makes it slower
SECONDS = 5.0  # of measuring, of each bundle
HOPELESS = 1.2  # times the least cost of an image: no more are tried
SAME = 0.98  # of the cost with fewer, above which fewer are taken


def images_a_call(session: Session, most: int, clock: Callable[[], float] = time.perf_counter) -> int:
    """1, 2, 4 ... or `most`: with which an image's step costs the least. The step graph is loaded."""
    if most == 1:
        return 1
    began, costs = clock(), dict[int, float]()
    runs: list[ImageRun] = []
    for _ in range(ROUNDS):
        for count in (*_doubled(most), most):
            left = SECONDS - (clock() - began)
            if costs and (2 * count * min(costs.values()) > left or _is_hopeless(costs, count)):
                break
            try:
                runs = runs or [_begun(session)]
                runs += [copy(runs[0]) for _ in range(count - len(runs))]
                seconds = _step(session, runs[:count], clock)
            except EngineError as error:  # no memory for so many
                log.info("a step of %d images is too much: %s", count, error)
                break
            costs[count] = min(seconds / count, costs.get(count, math.inf))
    return cheapest(costs)


def cheapest(costs: Mapping[int, float]) -> int:
    """costs: seconds of an image by how many share a call. Fewer where more are worth next to nothing."""
    best = 1
    for count, cost in sorted(costs.items()):
        if cost < SAME * costs[best]:
            best = count
    return best


def _doubled(most: int) -> list[int]:
    """1, 2, 4 ... below most."""
    return [1 << i for i in range((most - 1).bit_length())]


def _is_hopeless(costs: Mapping[int, float], count: int) -> bool:
    fewer = [cost for number, cost in costs.items() if number < count]
    return bool(fewer) and fewer[-1] > HOPELESS * min(fewer)


def _begun(session: Session) -> ImageRun:
    """An image whose next step has all that it needs."""
    bundle = session.bundle
    subject, _, _ = any_subject(bundle)
    run = session.start(bundle.program(tokens=image_tokens(bundle, None)), subject, 0)
    _step(session, [run], time.perf_counter)
    return run


def _step(session: Session, runs: list[ImageRun], clock: Callable[[], float]) -> float:
    """Seconds that the first step of all of them takes. They are where they were afterwards."""
    states, began = [run.state for run in runs], clock()
    session.advance(runs, a_call=len(runs))
    seconds = clock() - began
    for run, state in zip(runs, states, strict=True):
        run.step, run.state = 0, state
    return seconds
