"""The server as a process: curl and OpenAI's client, closed connections, signals, what must not stand in its log."""

from __future__ import annotations

import http.client
import io
import json
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ditedge.runtime import generate, open_bundle
from tests.conftest import ROOT
from tests.runtime.serving.process import SECONDS, Server, serving
from tests.runtime.serving.serving import decoded, pixels

pytestmark = pytest.mark.slow
KEY = "a-key-of-24-characters--"
IMAGES = "/v1/images/generations"


@pytest.fixture(scope="module")
def gray(golden_bundle) -> Path:
    return golden_bundle("gray1_cfg", labels=True)


@pytest.fixture(scope="module")
def server(gray: Path, tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "keys.txt").write_text(f"{KEY}\n")
    with serving(folder / "log.txt", "--engine", gray, "--api-key-file", folder / "keys.txt", "--max-batch", 4) as one:
        yield one
        assert "Traceback" not in one.log.read_text()


@pytest.fixture(scope="module")
def slow_server(gray: Path, tmp_path_factory) -> Iterator[Server]:
    """One image at a time, and 1000 of its steps are ten seconds on any machine."""
    folder = tmp_path_factory.mktemp("slow")
    (folder / "keys.txt").write_text(f"{KEY}\n")
    options = ["--engine", gray, "--api-key-file", folder / "keys.txt", "--max-batch", 1]
    with serving(folder / "log.txt", *options, pace=0.01) as one:
        yield one
        assert "Traceback" not in one.log.read_text()


def asked(server: Server, method: str, path: str, body: dict | None = None) -> Any:
    request = urllib.request.Request(server.address + path, json.dumps(body).encode() if body else None, method=method)
    request.add_header("authorization", f"Bearer {KEY}")
    request.add_header("content-type", "application/json")
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return json.load(answer)


def expected(gray: Path, label: int, seed: int, steps: int = 20) -> np.ndarray:
    bundle = open_bundle(gray)
    return generate(bundle, [label], [seed], program=bundle.program(steps=steps))[0, ..., 0]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_two_curls_at_once(server: Server, gray: Path) -> None:
    def curl(*arguments: str) -> subprocess.Popen[bytes]:
        common = ["curl", "--silent", "--fail-with-body", "--no-buffer", "-H", f"authorization: Bearer {KEY}"]
        return subprocess.Popen([*common, "-H", "content-type: application/json", *arguments], stdout=subprocess.PIPE)

    bodies = [json.dumps({"prompt": "Sneaker", "seed": seed, "num_inference_steps": 50}) for seed in (1, 2)]
    processes = [curl("-d", body, server.address + IMAGES) for body in bodies]
    for seed, process in zip((1, 2), processes, strict=True):
        answer = json.loads(process.communicate(timeout=SECONDS)[0])
        assert process.returncode == 0
        assert np.array_equal(pixels(decoded(answer["data"][0]["b64_json"])), expected(gray, 7, seed, 50))
    stream = curl("-d", '{"prompt": "7", "stream": true, "partial_images": 3}', server.address + IMAGES)
    assert stream.communicate(timeout=SECONDS)[0].count(b"event: image_generation.completed") == 1
    refused = curl("-d", '{"prompt": "dragon"}', server.address + IMAGES)
    assert "class 'dragon' is unknown" in json.loads(refused.communicate(timeout=SECONDS)[0])["error"]["message"]
    assert refused.returncode == 22


def test_openais_client(server: Server, gray: Path) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key=KEY, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["gray1_cfg"]
        more = {"seed": 3, "num_inference_steps": 20}
        answer = client.images.generate(model="gray1_cfg", prompt="Bag", n=2, size="auto", extra_body=more)
        for i, one in enumerate(answer.data):
            assert np.array_equal(pixels(decoded(one.b64_json)), expected(gray, 8, 3 + i))
        kinds = []
        for event in client.images.generate(prompt="Bag", stream=True, partial_images=2, extra_body=more):
            kinds.append(event.type)
            last = event
        assert kinds[-1] == "image_generation.completed" and np.array_equal(
            pixels(decoded(last.b64_json)), expected(gray, 8, 3)
        )
        with pytest.raises(openai.BadRequestError, match="class 'dragon' is unknown"):
            client.images.generate(prompt="dragon")
        with pytest.raises(openai.NotFoundError, match="model 'gpt-image-1' is not one of gray1_cfg"):
            client.images.generate(model="gpt-image-1", prompt="Bag")
        by_address = client.images.generate(prompt="Bag", response_format="url", extra_body=more).data[0].url
    with urllib.request.urlopen(by_address, timeout=SECONDS) as file, Image.open(io.BytesIO(file.read())) as image:
        assert np.array_equal(np.asarray(image), expected(gray, 8, 3))
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError, match="this server wants a key"):
            client.models.list()


def running(server: Server) -> int:
    return len(asked(server, "GET", "/v1/status")["models"]["gray1_cfg"]["running"])


def until_running(server: Server, count: int) -> None:
    end = time.monotonic() + SECONDS
    while running(server) != count:
        assert time.monotonic() < end
        time.sleep(0.002)


def cancelled(server: Server) -> float:
    """Images, since the server began."""
    request = urllib.request.Request(f"{server.address}/metrics", headers={"authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        found = re.search(r'^ditedge_images_total{.*state="cancelled"} (\S+)$', answer.read().decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.mark.parametrize("body", [{}, {"stream": True, "partial_images": 50}, {"stream": True}])
@pytest.mark.parametrize("path", [IMAGES, "/sdapi/v1/txt2img"])
def test_a_closed_connection_is_a_cancelled_image(slow_server: Server, path: str, body: dict) -> None:
    """Four images: the last of them would be done after 40 s."""
    server, before = slow_server, cancelled(slow_server)
    a1111 = path.startswith("/sdapi")
    wish = {"steps": 1000, "n_iter": 4} if a1111 else {"num_inference_steps": 1000, "n": 4, **body}
    connection = http.client.HTTPConnection(server.address.removeprefix("http://"), timeout=SECONDS)
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    connection.request("POST", path, json.dumps({"prompt": "1", **wish}), headers)
    until_running(server, 1)
    connection.close()
    until_running(server, 0)
    assert cancelled(server) - before > 0


def test_an_attached_job_goes_with_its_connection_and_another_does_not(slow_server: Server) -> None:
    server = slow_server
    for query in ("?attached=true", ""):
        job = asked(server, "POST", "/v1/jobs", {"prompt": "1", "num_inference_steps": 1000, "n": 4})["id"]
        connection = http.client.HTTPConnection(server.address.removeprefix("http://"), timeout=SECONDS)
        connection.request("GET", f"/v1/jobs/{job}/events{query}", headers={"authorization": f"Bearer {KEY}"})
        connection.getresponse().readline()
        connection.close()
        if not query:
            time.sleep(0.3)  # in which it would be noticed
            assert asked(server, "GET", f"/v1/jobs/{job}")["status"] == "running"
            asked(server, "DELETE", f"/v1/jobs/{job}")
        until_running(server, 0)
        assert asked(server, "GET", f"/v1/jobs/{job}")["status"] == "cancelled"


def raw(server: Server, data: bytes, hang_up: bool) -> bytes:
    """What comes back for bytes that need not be HTTP. hang_up: without reading it."""
    host, _, port = server.address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), SECONDS) as connection:
        connection.settimeout(SECONDS)
        try:
            connection.sendall(data)
            parts: list[bytes] = []
            if hang_up:
                return b""
            while part := connection.recv(65536):
                parts.append(part)
        except (ConnectionResetError, BrokenPipeError):
            parts = []
    return b"".join(parts)


def fuzzed(chosen: random.Random) -> tuple[bytes, bool]:
    """A request with something wrong with it, mostly; whether its sender hangs up, as he must who promised more."""
    values = ["1", 3, -1, None, True, 1e308, 10**30, "x" * 3000, "\x00", "\ud83d", [], {}, [[1]], {"a": 1}, "dragon"]
    names = ["prompt", "n", "seed", "size", "num_inference_steps", "guidance_scale", "sampler", "stream", "model", "a"]
    body: Any = {"prompt": "1", "num_inference_steps": 1}
    for name in chosen.sample(names, chosen.randint(0, 4)):
        body[name] = chosen.choice(values)
    text = json.dumps(body if chosen.random() < 0.9 else chosen.choice(values)).encode()
    if chosen.random() < 0.3:
        text = bytes(byte if chosen.random() < 0.97 else chosen.randrange(256) for byte in text)
    path = chosen.choice([IMAGES, "/v1/jobs", "/sdapi/v1/txt2img", "/v1/jobs/x", "/%ff%00", "/v1/images/../../x/0.png"])
    method = chosen.choice(["POST"] * 6 + ["GET", "DELETE", "PATCH", "\x01"])
    length = len(text) if chosen.random() < 0.9 else chosen.choice([0, len(text) // 2, len(text) + 50, -1, 10**12])
    head = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
    head += f"authorization: Bearer {KEY}\r\ncontent-length: {length}\r\n\r\n"
    return head.encode() + text, length > len(text) or chosen.random() < 0.1


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_fuzzed_requests_leave_nothing_behind(server: Server, seed: int) -> None:
    """2,500 of each seed: no traceback, no 500 of ours, and the server is as free as before."""
    chosen = random.Random(seed)
    statuses: dict[bytes, int] = {}
    for _ in range(2500):
        request, hang_up = fuzzed(chosen)
        answer = raw(server, request, hang_up)
        status = answer[9:12]
        statuses[status] = statuses.get(status, 0) + 1
        assert b"Traceback" not in answer and status != b"500", (request, answer)
    assert statuses.get(b"500", 0) == 0 and statuses.get(b"400", 0) > 100 and statuses.get(b"200", 0) > 100, statuses
    until_running(server, 0)
    assert asked(server, "GET", "/v1/status")["models"]["gray1_cfg"]["waiting"] == 0
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize(("drain", "status"), [(120, 200), (0, 409)])
def test_a_signal_drains_or_cancels(gray: Path, tmp_path: Path, drain: int, status: int) -> None:
    """An image of two seconds is waited for; of those that would be done after 16, and 160, nobody is."""
    body = (
        {"prompt": "1", "num_inference_steps": 200} if drain else {"prompt": "1", "num_inference_steps": 1000, "n": 16}
    )
    options = ["--engine", gray, "--drain", drain, "--max-batch", 1]
    with serving(tmp_path / "log.txt", *options, pace=0.01) as server:
        connection = http.client.HTTPConnection(server.address.removeprefix("http://"), timeout=SECONDS)
        connection.request("POST", IMAGES, json.dumps(body), {"content-type": "application/json"})
        until_running(server, 1)
        assert server.end(signal.SIGTERM) == 0
        answer = connection.getresponse()
        said = json.load(answer)
        assert answer.status == status and (len(said["data"]) == 1 if drain else "cancelled" in said["detail"])
        log = server.log.read_text()
        assert "stopped" in log and "Traceback" not in log
        connection.close()


def test_after_a_kill_another_one_serves_at_once(gray: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "log.txt", "--engine", gray) as server:
        asked(server, "POST", "/v1/jobs", {"prompt": "1", "num_inference_steps": 1000})
        server.end(signal.SIGKILL)
        port = server.address.rpartition(":")[2]
    with serving(tmp_path / "again.txt", "--engine", gray, "--port", port) as server:
        assert asked(server, "POST", IMAGES, {"prompt": "1"})["data"]


def test_what_cannot_be_served_is_one_line(gray: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, sentence in (
            (["--engine", gray, "--port", port], f"cannot listen on 127.0.0.1:{port}: Address already in use"),
            (["--engine", tmp_path / "none", "--port", 0], "none does not exist"),
            (["--port", 0], "there is nothing to serve: give --engine a bundle"),
            (["--engine", gray, "--port", 0, "--api-key-file", tmp_path / "none"], "No such file"),
        ):
            command = [sys.executable, ROOT / "cli.py", "serve", *arguments]
            ran = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=SECONDS)
            assert ran.returncode == 2 and sentence in ran.stderr and "Traceback" not in ran.stderr
