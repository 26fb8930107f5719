"""Batches of a set by Ray: actors that each hold loaded engines, on this machine or a cluster; this process writes.

Who samples a batch makes no difference to it: those of a worker that dies go to the others, and it is one of them again
when Ray has a place for it, which after the loss of a node may be never. At most IN_FLIGHT batches of each worker are
asked for and not written yet: a slow disk holds the workers back.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import DitedgeError, EngineError, RequestError
from .plan import SetPlan
from .request import RayOptions, SampleSetRequest
from .sampling import BatchMaker

IN_FLIGHT = 2
MOST_DEATHS = 5  # of workers over one batch: it is what kills them
CONNECT_SECONDS = 5.0
LOCAL = "local"  # an address: this machine alone, for the time of the command


class Worker:
    """An actor. Opens the bundle by its path, which every node has to have."""

    def __init__(self, request: SampleSetRequest, plan: SetPlan) -> None:
        self._maker = BatchMaker(request, plan)

    def present(self) -> None:
        """Comes back when there is a worker, again."""

    def sample(self, batch: int) -> np.ndarray | DitedgeError:
        """uint8 [b, h, w, 1 or 3]; what a user can mend comes back as it is, since trying again does not help."""
        try:
            return self._maker.sample(batch)
        except DitedgeError as error:
            return RequestError(str(error))


def batches_on_ray(request: SampleSetRequest, plan: SetPlan, gaps: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Each gap with its images, in the order in which they are there. Raises RequestError, EngineError."""
    threads = request.options.threads or 1
    request = replace(request, options=replace(request.options, threads=threads), engine=request.engine.absolute())
    with _cluster(request.ray) as ray:
        settings = {
            "num_cpus": threads,
            "num_gpus": request.ray.worker_gpus,
            "max_restarts": -1,
        }
        kind = ray.remote(**settings)(Worker)
        workers = [kind.remote(request, plan) for _ in range(_count(ray, request.ray, threads, len(gaps)))]
        yield from _in_turns(ray, workers, gaps)


def _in_turns(ray: Any, workers: list[Any], gaps: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    waiting = list(reversed(gaps))
    asked: dict[Any, tuple[int | None, int]] = {}  # what is to come -> batch, worker; no batch: whether it is back
    deaths: Counter[int] = Counter()  # by batch
    left = len(gaps)
    while left:
        busy = Counter(number for _, number in asked.values())
        away = {number for batch, number in asked.values() if batch is None}  # nothing more until it is back
        for number in range(len(workers)):
            while waiting and number not in away and busy[number] < IN_FLIGHT:
                following = waiting.pop()
                asked[workers[number].sample.remote(following)] = (following, number)
                busy[number] += 1
        [ready], _ = ray.wait(list(asked), num_returns=1)
        batch, number = asked.pop(ready)
        images = _result(ray, ready)
        if batch is None:
            continue
        if images is not None:
            left -= 1
            yield batch, images
        else:
            waiting.append(batch)
            deaths[batch] += 1
            if deaths[batch] == MOST_DEATHS:
                raise EngineError(f"{MOST_DEATHS} workers died over batch {batch}: is there memory for --batch images?")
            if (None, number) not in asked.values():
                asked[workers[number].present.options(max_task_retries=-1).remote()] = (None, number)


def _result(ray: Any, ready: Any) -> np.ndarray | None:
    """Of a batch; None where its worker died, or the node that had it. Raises what the worker raised, EngineError."""
    try:
        images = ray.get(ready)
    except (ray.exceptions.ActorUnavailableError, ray.exceptions.ObjectLostError, ray.exceptions.NodeDiedError):
        return None
    except ray.exceptions.RayError as error:
        raise EngineError(f"a worker failed: {str(error).strip().splitlines()[-1][:300]}") from None
    if isinstance(images, DitedgeError):
        raise images
    return None if images is None else np.asarray(images)


def _count(ray: Any, options: RayOptions, threads: int, gaps: int) -> int:
    """Workers: as asked, or as many as the cluster has room for. Raises RequestError where it has none."""
    have = ray.cluster_resources()
    room = int(have.get("CPU", 0) // threads)
    if options.worker_gpus:
        room = min(room, int(have.get("GPU", 0) / options.worker_gpus))
    if room < 1:
        raise RequestError(
            f"the cluster has {have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs, and a worker takes "
            f"{threads} and {options.worker_gpus:g}: give other --threads or --worker-gpus"
        )
    return max(1, min(options.workers or room, room, gaps))


@contextmanager
def _cluster(options: RayOptions) -> Iterator[Any]:
    """Ray, connected. Raises RequestError where there is no cluster at the address."""
    _check_answers(options.ray or LOCAL)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told of it
    import ray

    address = None if options.ray == LOCAL else options.ray
    try:
        ray.init(
            address=address,
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            logging_level="error",
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RequestError(f"--ray {options.ray}: {str(error).strip().splitlines()[0][:300]}") from None
    with redirect_stdout(sys.stderr):  # what Ray says of workers that died is no result
        try:
            yield ray
        finally:
            ray.shutdown()


def _check_answers(address: str) -> None:
    """Raises RequestError where nobody listens at HOST:PORT: Ray would try for minutes, and then end the process."""
    found = re.fullmatch(r"(.+):(\d{1,5})", address)
    if found is None or "//" in address:
        return
    try:
        socket.create_connection((found[1], int(found[2])), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise RequestError(
            f"--ray {address}: nobody answers there ({getattr(error, 'strerror', None) or error})"
        ) from None
