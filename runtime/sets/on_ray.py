"""Batches of images by Ray: actors that each hold loaded engines, on this machine or a cluster; this process uses them.

Who samples a batch makes no difference to it: those of a worker that dies go to the others, and it is one of them again
when Ray has a place for it, which after the loss of a node may be never. At most IN_FLIGHT batches of each worker are
asked for and not used yet: a slow disk holds the workers back.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from typing import Any, Protocol

from ..errors import DitedgeError, EngineError, RequestError
from .request import RayOptions

IN_FLIGHT = 2
MOST_DEATHS = 5  # of workers over one batch: it is what kills them
CONNECT_SECONDS = 5.0
LOCAL = "local"  # an address: this machine alone, for the time of the command

Ask = Callable[[Sequence[Any]], Iterator[tuple[Any, Any]]]  # batches -> each with what it is, as they come


class Maker(Protocol):
    """What a worker holds: loaded engines."""

    def sample(self, batch: Any) -> Any:
        """Whatever a batch is; not None."""


class Worker:
    """An actor."""

    def __init__(self, make: Callable[[], Maker]) -> None:
        self._maker = make()

    def present(self) -> None:
        """Comes back when there is a worker, at first and again."""

    def sample(self, batch: Any) -> Any:
        """A batch; what a user can mend comes back as it is, since trying again does not help."""
        try:
            return self._maker.sample(batch)
        except DitedgeError as error:
            return RequestError(str(error))


def on_ray(
    options: RayOptions, threads: int, make: Callable[[], Maker], batches: list[int]
) -> Iterator[tuple[int, Any]]:
    """Each batch with what it is, in the order in which they are there. Raises RequestError, EngineError."""
    with crew(options, threads, make, len(batches)) as ask:
        yield from ask(batches)


@contextmanager
def crew(options: RayOptions, threads: int, make: Callable[[], Maker], most: int) -> Iterator[Ask]:
    """Workers that are asked again and again; asking raises RequestError, EngineError. Raises RequestError.

    threads: CPUs that a worker takes. make: called by each worker, on its node; what it was made with is pickled, and
    so are batches, which are hashable here. most: batches that are asked for at a time, and so workers.
    """
    with _cluster(options) as ray:
        settings = {"num_cpus": threads, "num_gpus": options.worker_gpus, "max_restarts": -1}
        kind = ray.remote(**settings)(Worker)
        workers = [kind.remote(make) for _ in range(_count(ray, options, threads, most))]
        yield partial(_in_turns, ray, workers)


def in_order(found: Iterator[tuple[int, Any]]) -> Iterator[Any]:
    """Batches 0, 1, 2 ... as they come, each when all before it are there."""
    early: dict[int, Any] = {}
    following = 0
    for batch, made in found:
        early[batch] = made
        while following in early:
            yield early.pop(following)
            following += 1


def _in_turns(ray: Any, workers: list[Any], batches: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    waiting = list(reversed(batches))
    asked: dict[Any, tuple[Any, int]] = {}  # what is to come -> batch, worker; no batch: whether it is there
    deaths: Counter[Any] = Counter()  # by batch
    left = len(batches)
    each = min(IN_FLIGHT, -(-left // len(workers)))  # few batches are spread, not queued

    def await_worker(number: int) -> None:
        asked[workers[number].present.options(max_task_retries=-1).remote()] = (None, number)

    for number in range(len(workers)):
        await_worker(number)
    while left:
        busy = Counter(number for _, number in asked.values())
        away = {number for batch, number in asked.values() if batch is None}  # nothing more until it is there
        for number in range(len(workers)):
            while waiting and number not in away and busy[number] < each:
                following = waiting.pop()
                asked[workers[number].sample.remote(following)] = (following, number)
                busy[number] += 1
        [ready], _ = ray.wait(list(asked), num_returns=1)
        batch, number = asked.pop(ready)
        made = _result(ray, ready)
        if batch is None:
            continue
        if made is not None:
            left -= 1
            yield batch, made
        else:
            waiting.append(batch)
            deaths[batch] += 1
            if deaths[batch] == MOST_DEATHS:
                raise EngineError(f"{MOST_DEATHS} workers died over batch {batch}: is there memory for --batch images?")
            if (None, number) not in asked.values():
                await_worker(number)


def _result(ray: Any, ready: Any) -> Any:
    """Of a batch; None where its worker died, or the node that had it. Raises what the worker raised, EngineError."""
    try:
        made = ray.get(ready)
    except (ray.exceptions.ActorUnavailableError, ray.exceptions.ObjectLostError, ray.exceptions.NodeDiedError):
        return None
    except ray.exceptions.RayError as error:
        raise EngineError(f"a worker failed: {str(error).strip().splitlines()[-1][:300]}") from None
    if isinstance(made, DitedgeError):
        raise made
    return made


def _count(ray: Any, options: RayOptions, threads: int, batches: int) -> int:
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
    return max(1, min(options.workers or room, room, batches))


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
