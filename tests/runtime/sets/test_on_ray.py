"""Sets by Ray: the same bytes as without, whatever dies on the way."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ditedge.runtime.errors import RequestError
from ditedge.runtime.sets.on_ray import _check_answers, _count
from ditedge.runtime.sets.request import RayOptions
from tests.conftest import ROOT

slow = pytest.mark.slow
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ditedge[ray] is not installed")
COUNT, SECONDS = 600, 300
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


class Cluster:
    """What of Ray the number of workers depends on."""

    def __init__(self, **resources: float) -> None:
        self.cluster_resources = lambda: resources


def test_as_many_workers_as_fit() -> None:
    assert _count(Cluster(CPU=8), RayOptions(), threads=1, gaps=100) == 8
    assert _count(Cluster(CPU=8), RayOptions(), threads=3, gaps=100) == 2
    assert _count(Cluster(CPU=8), RayOptions(workers=3), threads=1, gaps=100) == 3
    assert _count(Cluster(CPU=8), RayOptions(), threads=1, gaps=2) == 2
    assert _count(Cluster(CPU=8, GPU=2), RayOptions(worker_gpus=0.5), threads=1, gaps=100) == 4
    with pytest.raises(RequestError, match="the cluster has 2 CPUs and 0 GPUs, and a worker takes 4 and 0"):
        _count(Cluster(CPU=2), RayOptions(), threads=4, gaps=1)
    with pytest.raises(RequestError, match="a worker takes 1 and 1"):
        _count(Cluster(CPU=2), RayOptions(worker_gpus=1.0), threads=1, gaps=1)


def command(bundle: Path, out: Path, *more: object) -> list[str]:
    options = ["--count", COUNT, "--batch", 4, "--steps", 20, "--sampler", "ddim", "--json", "--out", out, *more]
    return [str(part) for part in (sys.executable, ROOT / "cli.py", "sample-set", "--engine", bundle, *options)]


def sha256(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    return json.loads(out)["sha256"]


def begin(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def written(folder: Path) -> int:
    return len(list(folder.glob("0*.png")))


def below(pid: int) -> Iterator[int]:
    """Processes that it began, and theirs."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if parent == pid:
            yield int(stat.parent.name)
            yield from below(int(stat.parent.name))


def workers(pid: int) -> list[int]:
    """Ray's, of a driver, that sample."""
    names = {one: Path(f"/proc/{one}/cmdline") for one in below(pid)}
    return [one for one, path in names.items() if path.exists() and b"Worker" in path.read_bytes()[:200]]


@pytest.fixture(scope="module")
def whole(golden_bundle, tmp_path_factory) -> str:
    return sha256(begin(command(golden_bundle("gray1_cfg"), tmp_path_factory.mktemp("whole") / "set")))


@slow
@needs_ray
def test_a_killed_worker_and_a_killed_driver(golden_bundle, tmp_path: Path, whole: str) -> None:
    words = command(golden_bundle("gray1_cfg"), tmp_path / "set", "--ray", "local", "--workers", 2)
    process = begin(words)
    until(lambda: written(tmp_path / "set") > 20)
    found = workers(process.pid)
    assert found, "no worker was found to kill"
    os.kill(found[0], signal.SIGKILL)
    before = written(tmp_path / "set")
    until(lambda: written(tmp_path / "set") > before + 40 or process.poll() is not None)
    process.kill()
    process.communicate()
    assert 60 < written(tmp_path / "set") < COUNT, "it was over before it was killed"
    assert sha256(begin(words)) == whole


@slow
@needs_ray
def test_a_cluster_of_two_nodes(golden_bundle, tmp_path: Path, whole: str) -> None:
    script = [sys.executable, "-c", CLUSTER]
    cluster = subprocess.Popen(
        script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert cluster.stdin is not None and cluster.stdout is not None
    try:
        address = next(line.strip() for line in cluster.stdout if line[:1].isdigit())
        process = begin(command(golden_bundle("gray1_cfg"), tmp_path / "set", "--ray", address, "--workers", 2))
        assert sha256(process) == whole
    finally:
        cluster.stdin.close()
        cluster.wait(SECONDS)
        cluster.stdout.close()


def test_nobody_at_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        _check_answers(f"127.0.0.1:{port}")
    for address in (f"127.0.0.1:{port}", "127.0.0.1:99999"):
        with pytest.raises(RequestError, match=f"--ray {address}: nobody answers there"):
            _check_answers(address)
    for other in ("auto", "local", "ray://head:10001"):
        _check_answers(other)
