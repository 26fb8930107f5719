"""Batches of a set by Ray: actors that each hold loaded engines, on this machine or a cluster; this process writes.

Who samples a batch makes no difference to it, so a worker or a node that dies is replaced and its batch sampled again.
At most IN_FLIGHT batches of each worker are asked for and not written yet: a slow disk holds the workers back.
"""

from __future__ import annotations

import os
import re
import socket
import sys
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
CONNECT_SECONDS = 5.0
LOCAL = "local"  # an address: this machine alone, for the time of the command


class Worker:
    """An actor. Opens the bundle by its path, which every node has to have."""

    def __init__(self, request: SampleSetRequest, plan: SetPlan) -> None:
        self._maker = BatchMaker(request, plan)

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
            "max_task_retries": -1,
        }
        kind = ray.remote(**settings)(Worker)
        workers = [kind.remote(request, plan) for _ in range(_count(ray, request.ray, threads, len(gaps)))]
        yield from _in_turns(ray, workers, gaps)


def _in_turns(ray: Any, workers: list[Any], gaps: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    waiting, asked = list(reversed(gaps)), {}
    for worker in workers * IN_FLIGHT:
        if waiting:
            batch = waiting.pop()
            asked[worker.sample.remote(batch)] = (batch, worker)
    while asked:
        [ready], _ = ray.wait(list(asked), num_returns=1)
        batch, worker = asked.pop(ready)
        images = _result(ray, ready)
        yield batch, images
        if waiting:
            following = waiting.pop()
            asked[worker.sample.remote(following)] = (following, worker)


def _result(ray: Any, ready: Any) -> np.ndarray:
    try:
        images = ray.get(ready)
    except ray.exceptions.RayError as error:
        raise EngineError(f"a worker failed: {str(error).strip().splitlines()[-1][:300]}") from None
    if isinstance(images, DitedgeError):
        raise images
    return np.asarray(images)


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
