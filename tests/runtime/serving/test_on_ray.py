"""The server on Ray Serve: the same pictures and events through Ray's proxy, from two replicas."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from ditedge.runtime.errors import RequestError
from ditedge.runtime.serving.on_ray import Arguments, app
from tests.conftest import ROOT
from tests.runtime.serving.process import SECONDS
from tests.runtime.serving.serving import client, decoded, events, pixels
from tests.runtime.serving.test_api import ASKED, IMAGES, JOBS

PATIENCE = ("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S")
needs_serve = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("ray", "grpc", "aiohttp")), reason="needs ray[serve]"
)


def test_arguments_are_a_server(golden_bundle, tmp_path: Path) -> None:
    given = Arguments(engines="/a,/b", threads="2", max_batch="8", allowed_hosts="x.example,y.example")
    request = given.request()
    assert request.engines == (Path("/a"), Path("/b")) and request.allowed_hosts == ("x.example", "y.example")
    assert (request.options.threads, request.limits.max_batch, request.limits.max_queue) == (2, 8, 64)
    with pytest.raises(ValueError, match="stpes"):
        Arguments(engines="/a", stpes=3)


def test_replicas_that_are_none() -> None:
    with pytest.raises(RequestError, match="min_replicas 3 is more than max_replicas 2"):
        app(Arguments(engines="/a", min_replicas=3, max_replicas=2))


def test_one_of_several_replicas_remembers_nothing(golden_bundle) -> None:
    with client(golden_bundle("gray1_cfg"), alone=False) as server:
        for path, body, what in ((JOBS, {}, "jobs"), (IMAGES, {"response_format": "url"}, "addresses of pictures")):
            answer = server.post(path, json={**ASKED, **body})
            assert answer.status_code == 400
            assert answer.json()["error"]["message"].startswith(f"{what} are remembered by one of several replicas")
        assert server.post(IMAGES, json=ASKED).status_code == 200


@pytest.fixture(scope="module")
def address(golden_bundle, tmp_path_factory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("ray") / "log.txt"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "tests.runtime.serving.serve_run", str(port), str(golden_bundle("gray1_cfg"))]
    with log.open("wb") as written:
        patience = dict.fromkeys(PATIENCE, str(SECONDS))  # a proxy on a busy machine is none the worse
        environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", **patience}
        process = subprocess.Popen(words, stdout=written, stderr=written, cwd=ROOT, env=environment)
    try:
        end = time.monotonic() + SECONDS
        while not _answers(f"http://127.0.0.1:{port}/readyz"):
            assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(SECONDS)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def post(address: str, path: str, body: dict) -> tuple[int, str]:
    request = urllib.request.Request(address + path, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.slow
@needs_serve
def test_two_replicas_at_one_address(golden_bundle, address: str) -> None:
    with client(golden_bundle("gray1_cfg")) as alone:
        expected = alone.post(IMAGES, json=ASKED).json()["data"][0]["b64_json"]
    for _ in range(6):  # whoever answers
        status, text = post(address, IMAGES, ASKED)
        assert status == 200 and json.loads(text)["data"][0]["b64_json"] == expected
    status, text = post(address, IMAGES, {**ASKED, "num_inference_steps": 40, "stream": True, "partial_images": 3})
    said = events(text)
    assert status == 200 and said[-1][0] == "image_generation.completed"
    assert pixels(decoded(json.loads(said[-1][1])["b64_json"])).shape == (8, 8)
    status, text = post(address, IMAGES, {**ASKED, "prompt": "dragon"})
    assert status == 400 and "class 'dragon' is unknown" in json.loads(text)["error"]["message"]
    assert post(address, JOBS, ASKED)[0] == 400
