"""Sets by Ray: the same bytes as without, whatever dies on the way."""

from __future__ import annotations

import importlib.util
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ditedge.runtime.errors import EngineError, RequestError
from ditedge.runtime.sets.on_ray import IN_FLIGHT, _check_answers, _count, _in_turns, in_order
from ditedge.runtime.sets.request import RayOptions
from tests.conftest import ROOT

slow = pytest.mark.slow
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ditedge[ray] is not installed")
COUNT, BATCH, SECONDS = 600, 4, 300
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
second = cluster.add_node(wait=False, num_cpus=1)
cluster.wait_for_nodes(timeout=300)
print(cluster.address, second.all_processes["raylet"][0].process.pid, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


class Cluster:
    """What of Ray the number of workers depends on."""

    def __init__(self, **resources: float) -> None:
        self.cluster_resources = lambda: resources


def test_as_many_workers_as_fit() -> None:
    assert _count(Cluster(CPU=8), RayOptions(), threads=1, batches=100) == 8
    assert _count(Cluster(CPU=8), RayOptions(), threads=3, batches=100) == 2
    assert _count(Cluster(CPU=8), RayOptions(workers=3), threads=1, batches=100) == 3
    assert _count(Cluster(CPU=8), RayOptions(), threads=1, batches=2) == 2
    assert _count(Cluster(CPU=8, GPU=2), RayOptions(worker_gpus=0.5), threads=1, batches=100) == 4
    with pytest.raises(RequestError, match="the cluster has 2 CPUs and 0 GPUs, and a worker takes 4 and 0"):
        _count(Cluster(CPU=2), RayOptions(), threads=4, batches=1)
    with pytest.raises(RequestError, match="a worker takes 1 and 1"):
        _count(Cluster(CPU=2), RayOptions(worker_gpus=1.0), threads=1, batches=1)


def killing(words: list[str], *who: str) -> list[str]:
    """The same command, in which they die (killing.py)."""
    return [sys.executable, "-m", "tests.runtime.sets.killing", *who, *words[2:]]


def command(bundle: Path, out: Path, *more: object) -> list[str]:
    options = ["--count", COUNT, "--batch", BATCH, "--steps", 20, "--sampler", "ddim", "--json", "--out", out, *more]
    return [str(part) for part in (sys.executable, ROOT / "cli.py", "sample-set", "--engine", bundle, *options)]


def sha256(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    return json.loads(out)["sha256"]


def begin(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT)


@pytest.fixture(scope="module")
def whole(golden_bundle, tmp_path_factory) -> str:
    return sha256(begin(command(golden_bundle("gray1_cfg"), tmp_path_factory.mktemp("whole") / "set")))


@slow
@needs_ray
def test_a_killed_worker_and_a_killed_driver(golden_bundle, tmp_path: Path, whole: str) -> None:
    words = command(golden_bundle("gray1_cfg"), tmp_path / "set", "--ray", "local", "--workers", 2)
    process = begin(killing(words, "worker=5", "driver=30"))
    process.communicate(timeout=SECONDS)
    assert process.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "set").glob("0*.png"))) == 30 * BATCH
    assert sha256(begin(killing(words, "worker=5"))) == whole  # what is left, and a worker dies again


def runs(pid: int) -> bool:
    """Not dead, and no zombie either."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@contextmanager
def two_nodes() -> Iterator[tuple[str, int]]:
    """Two raylets on this machine -> the cluster's address, the process of the second's raylet."""
    script = [sys.executable, "-c", CLUSTER]
    cluster = subprocess.Popen(
        script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert cluster.stdin is not None and cluster.stdout is not None
    try:
        address, raylet = next(line for line in cluster.stdout if line[:1].isdigit()).split()
        yield address, int(raylet)
    finally:
        cluster.stdin.close()
        cluster.wait(SECONDS)
        cluster.stdout.close()


@slow
@needs_ray
@pytest.mark.parametrize("lost", [None, 1, 10])  # batches that are written when the second node is killed
def test_two_nodes_of_which_one_is_lost(golden_bundle, tmp_path: Path, whole: str, lost: int | None) -> None:
    with two_nodes() as (address, raylet):
        words = command(golden_bundle("gray1_cfg"), tmp_path / "set", "--ray", address, "--workers", 2)
        killed = [] if lost is None else [f"node={lost}", f"raylet={raylet}"]
        assert sha256(begin(killing(words, *killed))) == whole
        assert runs(raylet) == (lost is None)


class Died(Exception):
    """As Ray says that a worker is not there."""


class Crew:
    """What of Ray `_in_turns` needs, played by hand: `die` says who dies over which batch, and who never comes back."""

    class exceptions:
        ActorUnavailableError, ObjectLostError, NodeDiedError, RayError = Died, KeyError, KeyError, Died

    def __init__(self, die: dict[int, set[int]], gone: set[int] = frozenset()) -> None:
        self.die, self.gone, self.asked = die, gone, []
        self.dead: set[int] = set()

    def workers(self, count: int) -> list[SimpleNamespace]:
        return [self._worker(number) for number in range(count)]

    def _worker(self, number: int) -> SimpleNamespace:
        present = SimpleNamespace(remote=lambda: ("present", number, object()))
        return SimpleNamespace(
            sample=SimpleNamespace(remote=lambda batch: self._ask(batch, number)),
            present=SimpleNamespace(options=lambda **_: present),
        )

    def _ask(self, batch: int, number: int) -> tuple:
        self.asked.append((number, batch))
        return (batch, number, object())

    def wait(self, refs: list, num_returns: int) -> tuple[list, list]:
        there = [ref for ref in refs if not (ref[0] == "present" and ref[1] in self.dead)]
        return [there[0]], []

    def get(self, ref: tuple) -> np.ndarray | None:
        what, number, _ = ref
        if what == "present":
            return None
        if number in self.die.get(what, set()):
            if number in self.gone:
                self.dead.add(number)
            else:
                self.die[what].discard(number)
            raise Died
        return self.sample(what, number)

    def sample(self, batch: int, number: int) -> np.ndarray:
        return np.full((1, 1, 1, 1), batch, np.uint8)


@pytest.mark.parametrize(
    ("die", "gone"), [({}, set()), ({3: {1}, 8: {0}}, set()), ({batch: {1} for batch in range(12)}, {1})]
)
def test_batches_of_the_dead_go_to_the_living(die: dict[int, set[int]], gone: set[int]) -> None:
    ray = Crew(die, gone)
    made = list(_in_turns(ray, ray.workers(2), list(range(12))))
    assert sorted(batch for batch, _ in made) == list(range(12))
    assert all(images.item() == batch for batch, images in made)
    if gone:
        assert [number for number, _ in ray.asked].count(1) == IN_FLIGHT  # it is asked for nothing more


def test_few_batches_are_spread() -> None:
    ray = Crew({})
    assert len(list(_in_turns(ray, ray.workers(4), list(range(4))))) == 4
    assert sorted(number for number, _ in ray.asked) == [0, 1, 2, 3]


def test_batches_in_their_order() -> None:
    assert list(in_order(iter([(2, "c"), (0, "a"), (1, "b"), (4, "e"), (3, "d")]))) == list("abcde")


def test_who_never_began_holds_up_nobody() -> None:
    """As where the node of a worker is lost before the worker is there."""
    ray = Crew({}, {1})
    ray.dead = {1}
    assert sorted(batch for batch, _ in _in_turns(ray, ray.workers(2), list(range(12)))) == list(range(12))
    assert {number for number, _ in ray.asked} == {0}


def test_a_batch_that_kills_whoever_has_it() -> None:
    ray = Crew({5: {0, 1}})
    ray.die[5] = type("Always", (set,), {"discard": lambda *_: None})({0, 1})
    with pytest.raises(EngineError, match="5 workers died over batch 5"):
        list(_in_turns(ray, ray.workers(2), list(range(12))))


def test_nobody_at_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        _check_answers(f"127.0.0.1:{port}")
    for address in (f"127.0.0.1:{port}", "127.0.0.1:99999"):
        with pytest.raises(RequestError, match=f"--ray {address}: nobody answers there"):
            _check_answers(address)
    for other in ("auto", "local", "ray://head:10001"):
        _check_answers(other)
